"""What the operating system refuses to write is one line and exit code 2, in every command that writes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_commands import ALL, Molmoact, Words
from made_datasets import make_dataset
from made_hub import RunningHub
from made_outputs import DotSource, source_statistics, write_output
from made_web import PictureServer, write_everything
from PIL import Image
from refusing_disks import TROUBLES, full

from molmoact_data.teachers.registry import EMBEDDED_VQVAE

DEMO = Path(__file__).parent.parent / "examples" / "demo_dataset"
TARGET = "--output-path"


class Inputs:
    """What the commands are given, each made when it is first asked for."""

    def __init__(self, root: Path, molmoact: Molmoact, hub: str) -> None:
        self.root, self.hub, self._molmoact = root, hub, molmoact

    @cached_property
    def checkpoint(self) -> Path:
        from molmoact_train.debug.tiny import TinySize, write_tiny_checkpoint

        size = TinySize(width=32, layers=1, vit_width=16, vit_layers=2, image_size=56)
        return write_tiny_checkpoint(self.root / "tiny", size)

    @cached_property
    def rows(self) -> Path:
        from molmoact_train.debug.data import write_debug_dataset

        return write_debug_dataset(self.root / "rows", episodes=3, frames=4, size=56, chunk_size=2)

    @cached_property
    def lora_run(self) -> Path:
        code, _, err = self._molmoact(
            *self.training(), "--lora", "--duration", 1, TARGET, self.root / "run"
        )
        assert code == 0, err
        return self.root / "run"

    def training(self) -> list[Any]:
        return [
            "train", "--stage", "debug", "--checkpoint", self.checkpoint, "--data", self.rows,
            "--device", "cpu", "--warmup", 0,
        ]  # fmt: skip

    @cached_property
    def dataset(self) -> Path:
        return make_dataset(self.root / "dataset", lengths=(6, 5))

    @cached_property
    def output(self) -> Path:
        return Path(write_output(self.root / "output"))

    @cached_property
    def labelled(self) -> Path:
        """An output with depth codes that was made of the dataset."""
        code, _, err = self._molmoact(
            "preprocess", "--dataset-path", self.dataset, "--preset", "embedded", "--pointer", "none",
            TARGET, self.root / "labelled",
        )  # fmt: skip
        assert code == 0, err
        return self.root / "labelled"

    @cached_property
    def norm_stats(self) -> Path:
        return self.rows / "dataset_statistics.json"

    @cached_property
    def other_output(self) -> Path:
        same = source_statistics(DotSource())
        return Path(write_output(self.root / "other", DotSource(name="spots"), same))

    @cached_property
    def raw(self) -> Path:
        with PictureServer() as server:
            write_everything(self.root / "raw", server)
        return self.root / "raw"

    @cached_property
    def depth(self) -> Path:
        np.save(self.root / "depth.npy", np.zeros((9, 64, 64), np.uint8))
        return self.root / "depth.npy"

    @cached_property
    def codes(self) -> Path:
        np.save(self.root / "codes.npy", np.zeros((1, 100), np.int16))
        return self.root / "codes.npy"

    @cached_property
    def picture(self) -> Path:
        Image.new("RGB", (56, 56), (90, 30, 30)).save(self.root / "a.png")
        return self.root / "a.png"


MENDED = ("half-full", "full", "short-files", "read-only")
PATHS = ("inside-a-file", "long-name", "long-path")
"""`demo` does what `preprocess`, `train` and `predict` do: a disk that fills up is tried there."""
LABELS = ["--depth", "none", "--pointer", "none"]
# A command in words -> what to type before `--output-path`, and what to write: a folder, or a file in one.
CASES: dict[str, tuple[Callable[[Inputs], list[Any]], str]] = {
    "demo": (lambda _: ["demo"], "out"),
    "preview": (
        lambda i: ["preview", "--dataset-path", DEMO, "--preset", "embedded", "--frames", 2],
        "new/x.png",
    ),
    "preprocess": (lambda i: ["preprocess", "--dataset-path", i.dataset, *LABELS], "out"),
    "preprocess-web": (lambda i: ["preprocess-web", "dv_qa", "--input-path", i.raw], "out"),
    "viz film": (lambda i: ["viz", i.output], "new/x.mp4"),
    "viz sheet": (lambda i: ["viz", i.output], "new/x.png"),
    "viz codes": (
        lambda i: ["viz", "--tokens", "1 " * 100, "--vqvae", "embedded"], "new/x.jpg",
    ),
    "evaluate-labels": (
        lambda i: [
            "evaluate-labels", "--dataset-path", DEMO, "--episodes", 0, "--depth", "none",
            "--pointer", "column", "--pointer-column", "observation.gripper_pixel", "--point-every", 8,
        ],
        "out",
    ),
    "validate": (lambda i: ["validate", i.output], "new/x.json"),
    "stats": (lambda i: ["stats", i.output], "new/x.json"),
    "retokenize": (lambda i: ["retokenize", i.output, "--action-chunk-size", 4], "out"),
    "merge": (lambda i: ["merge", i.output, i.other_output], "out"),
    "export reference": (lambda i: ["export", i.output, "--format", "reference"], "out"),
    "export conversations": (lambda i: ["export", i.output, "--format", "conversations"], "out"),
    "export lerobot": (lambda i: ["export", i.output, "--format", "lerobot"], "out"),
    "export molmoact2-depth": (
        lambda i: [
            "export", i.labelled, "--format", "molmoact2-depth", "--dataset-path", i.dataset,
        ],
        "out",
    ),
    "download": (lambda i: ["download", "libero_10", "--endpoint", i.hub], "out"),
    "train": (lambda i: [*i.training(), "--duration", 2, "--save-interval", 1], "out"),
    "train lora": (lambda i: [*i.training(), "--duration", 1, "--lora"], "out"),
    "predict": (
        lambda i: [
            "predict", "--checkpoint", i.checkpoint, "--images", i.picture, "--constrained",
            "--instruction", "move", "--action-chunk-size", 2, "--norm-stats", i.norm_stats, "--vqvae", "embedded",
        ],
        "out",
    ),
    "predict data": (
        lambda i: [
            "predict", "--checkpoint", i.checkpoint, "--data", i.rows, "--episodes", 0,
            "--constrained", "--device", "cpu", "--norm-stats", i.norm_stats,
        ],
        "out",
    ),
    "unshard": (lambda i: ["unshard", "--checkpoint", next(i.lora_run.glob("step*"))], "out"),
    "merge-lora": (lambda i: ["merge-lora", "--adapter", i.lora_run / "final"], "out"),
    "export-hf": (lambda i: ["export-hf", "--checkpoint", i.checkpoint], "out"),
    "eval": (
        lambda i: [
            "eval", "--env", "made_worlds:LineEnv", "--checkpoint", "idle", "--tasks", "open",
            "--trials", 2,
        ],
        "out",
    ),
    "vqvae train": (lambda i: ["vqvae", "train", "--preset", "debug"], "out"),
    "vqvae eval": (
        lambda i: ["vqvae", "eval", "--checkpoint", EMBEDDED_VQVAE, "--data", "procedural:2"],
        "new/x.png",
    ),
    "vqvae encode": (
        lambda i: ["vqvae", "encode", "--checkpoint", EMBEDDED_VQVAE, "--input-path", i.depth],
        "new/x.npy",
    ),
    "vqvae encode text": (
        lambda i: ["vqvae", "encode", "--checkpoint", EMBEDDED_VQVAE, "--input-path", i.depth],
        "new/x.txt",
    ),
    "vqvae decode": (
        lambda i: ["vqvae", "decode", "--checkpoint", EMBEDDED_VQVAE, "--input-path", i.codes],
        "new/x.png",
    ),
    "vqvae convert": (
        lambda i: ["vqvae", "convert", "--input-path", EMBEDDED_VQVAE], "new/x.safetensors",
    ),
    "vqvae convert pt": (
        lambda i: ["vqvae", "convert", "--input-path", EMBEDDED_VQVAE], "new/x.pt",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="refused-disk-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with RunningHub() as running:
        running.files["libero_10/train.parquet"] = b"rows" * 4000
        yield running.url


_INPUTS: dict[Path, Inputs] = {}


@pytest.fixture
def inputs(root: Path, hub: str, molmoact: Molmoact) -> Inputs:
    return _INPUTS.setdefault(root, Inputs(root, molmoact, hub))


def words_of(name: str) -> Words:
    return next(words for words in ALL if name.split()[: len(words)] == list(words))


def test_no_command_that_writes_is_forgotten() -> None:
    writing = {words for words, c in ALL.items() if any(TARGET in p.opts for p in c.params)}
    assert {words_of(name) for name in CASES} == writing


def files(folder: Path) -> dict[str, int]:
    return {
        p.relative_to(folder).as_posix(): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


_TROUBLES = {**TROUBLES, "half-full": full}
_SOUND: dict[tuple[Path, str], dict[str, int]] = {}


def sound(name: str, inputs: Inputs, molmoact: Molmoact) -> dict[str, int]:
    """The files that a run on a sound disk leaves, and their sizes."""
    key = (inputs.root, name)
    if key not in _SOUND:
        make, target = CASES[name]
        given, top = make(inputs), inputs.root / f"sound-{name}"
        code, _, err = molmoact(*given, TARGET, top / target)
        assert code == 0, err
        _SOUND[key] = files(top)
    return _SOUND[key]


@pytest.mark.parametrize(
    ("name", "trouble"),
    [(n, t) for n in CASES for t in (PATHS if n == "demo" else MENDED + PATHS)],
)
def test_a_disk_that_refuses_is_one_line_and_nothing_looks_finished(
    name: str, trouble: str, inputs: Inputs, molmoact: Molmoact, tmp_path: Path
) -> None:
    expected = sound(name, inputs, molmoact) if trouble in MENDED else {}
    make, target = CASES[name]
    given = make(inputs)
    room = sum(expected.values()) // 2 if trouble == "half-full" else 0
    (tmp_path / "disk").mkdir()
    with _TROUBLES[trouble](tmp_path / "disk", room) as place:
        code, _, err = molmoact(*given, TARGET, place.folder / target)
        assert (code, err.count("error: ")) == (2, 1), err
        assert "Traceback" not in err
        assert err.splitlines()[-1].startswith("error: "), err
        if place.heal is None:
            return
        place.heal()
        resume = "--resume" in {flag for p in ALL[words_of(name)].params for flag in p.opts}
        code, _, err = molmoact(
            *given, TARGET, place.folder / target, *(["--resume"] if resume else [])
        )
        assert code == 0, err
        left = files(place.folder)
        left.pop("filler", None)
        assert left.keys() == expected.keys()
