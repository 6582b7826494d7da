"""Every example of a command's help does what it says, typed as it stands there.

An example is typed in a folder that holds what it names, made tiny: data, models in the released layouts, and a Hub
cache with what it fetches. A few would take hours, run until they are told, or change the Hub; these get further
words, and say why.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from made_commands import ALL, Molmoact, Words
from made_datasets import make_dataset
from made_gl import render
from made_hub import Hub
from made_outputs import (
    BrightestPixel,
    DotSource,
    FakeDepth,
    source_statistics,
    write_output,
)
from made_released import into_cache, write_vqvae
from made_web import PictureServer, pixmo
from PIL import Image

import cli
from molmoact_data import schema
from molmoact_data.teachers import choice
from molmoact_data.teachers.published import RELEASED_VQVAE
from molmoact_data.teachers.registry import EMBEDDED_VQVAE
from molmoact_data.text import tokens
from molmoact_train.config import resolve
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.debug.tiny import TinySize, write_tiny_checkpoint
from molmoact_train.train import train
from vqvae.checkpoint import MODEL_FILE

DEMO = Path(__file__).parents[1] / "examples" / "demo_dataset"
SIZE = TinySize(width=32, layers=1, vit_width=16, vit_layers=2, image_size=56)
STATISTICS = {"lab/arm": {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7}}}


def example(words: Words) -> list[str]:
    """What the help says to type, after `molmoact`."""
    _, _, text = (ALL[words].help or "").partition("Example: ")
    first, *rest = shlex.split(text)
    assert first == "molmoact"
    return rest


# What the examples name -> how it is made.


def tiny_model(folder: Path) -> None:
    write_tiny_checkpoint(folder, SIZE, norm_stats=STATISTICS)


def dataset(folder: Path) -> None:
    make_dataset(folder, lengths=(3, 2))


def truth(folder: Path) -> None:
    folder.symlink_to(DEMO)


def output(folder: Path) -> None:
    write_output(folder)


def more_of_it(folder: Path) -> None:
    """Later episodes, with the statistics of `output`."""
    write_output(folder, DotSource(lengths=(5, 6), first_episode=4), source_statistics(DotSource()))


def same_statistics(file: Path) -> None:
    write_output(file.parent / "another")
    shutil.copy(file.parent / "another" / schema.STATISTICS_FILE, file)


def picture(file: Path) -> None:
    Image.new("RGB", (64, 48), (90, 60, 30)).save(file)


def depth_maps(file: Path) -> None:
    np.save(file, np.random.default_rng(0).integers(0, 256, (2, 32, 32), np.uint8))


def codes(file: Path) -> None:
    np.save(file, np.random.default_rng(0).integers(0, 128, (2, 100), np.int16))


def generations(file: Path) -> None:
    file.write_text(json.dumps({"text": tokens.encode_depth([3] * 100)}) + "\n")


def trained(folder: Path) -> None:
    """What one step of LoRA training leaves, as the folder of its end or of its step."""
    tiny_model(folder.parent / "base")
    data = write_debug_dataset(folder.parent / "data", episodes=2, frames=3, size=56, chunk_size=2)
    run = folder.parent / "run"
    wanted = {"checkpoint": str(folder.parent / "base"), "data": [str(data)], "output_path": str(run), "lora": True,
              "duration": 1, "warmup": 0, "save_interval": 1,
              "global_batch_size": 2, "device_batch_size": 2}  # fmt: skip
    train(resolve("debug", wanted), device="cpu")
    (run / ("final" if folder.name == "final" else "step00000001")).rename(folder)


def codebook_run(folder: Path) -> None:
    folder.mkdir()
    shutil.copy(EMBEDDED_VQVAE, folder / MODEL_FILE)


INPUTS: dict[str, Callable[[Path], object]] = {
    "my/dataset": dataset,
    "heldout": truth,
    "out": output,
    "out-a": output,
    "out-b": more_of_it,
    "out/my_robot": write_debug_dataset,
    "merged.json": same_statistics,
    "dataset_statistics.json": same_statistics,
    "generations.jsonl": generations,
    "front.png": picture,
    "wrist.png": picture,
    "my-model": tiny_model,
    "MolmoAct-7B-D-0812": tiny_model,
    "RUN/final": trained,
    "RUN/step00002000": trained,
    "runs/vqvae": codebook_run,
    "depth.npy": depth_maps,
    "codes.npy": codes,
    "vae-final.pt": write_vqvae,
}
OTHERWISE: dict[tuple[Words, str], Callable[[Path], object]] = {
    (("export-hf",), "RUN/final"): tiny_model
}
"""Where one command means something else by a name."""


# What is not done as it is written, and why.

FURTHER: dict[Words, tuple[tuple[str, ...], str]] = {
    ("evaluate-labels",): (("--episodes", "0", "--depth-every", "30"), "five episodes are half a minute"),
    ("download",): (("--endpoint", "HUB"), "the Hub is far; this one is in the test"),
    ("preprocess-web",): (("--private-hosts", "PICTURES"), "the pictures of the test are on this machine"),
    ("eval",): (("--trials", "1", "--max-steps", "2", "--no-video"), "24 episodes are minutes"),
}  # fmt: skip
"""Words that are typed behind the example; flags typed last win."""
HELD: dict[Words, tuple[str, str]] = {
    ("demo",): ("pipelines.preprocess.preprocess", "a minute and a half; test_cli.py goes the whole way"),
    ("train",): ("molmoact_train.train.train", "days on GPUs; test_cli_train.py trains"),
    ("serve",): ("molmoact_robot.serving.server.serve_until_told", "it runs until it is told"),
    ("portal",): ("molmoact_robot.portal.app.serve", "it runs until it is told"),
    ("vqvae", "eval"): ("vqvae.evaluate.measure", "200 rendered frames; test_vqvae_commands.py measures"),
    ("vqvae", "train"): ("vqvae.training.train.train", "hours; test_vqvae_commands.py trains"),
}  # fmt: skip
"""Where the work begins: the example is typed as written, and its configuration comes as far as that."""
SMALL_TEACHERS = {("preview",), ("preprocess",)}
"""Where depth and points come from fakes: a 7B model points. test_pipelines_released.py has it in its layout."""


class Begun(BaseException):
    """Everything that can be wrong has been looked at."""


def begin(*_: object, **__: object) -> None:
    raise Begun


def small(kind: str, name: str, *_: object) -> object:
    return {"depth-anything-v2": FakeDepth, "molmo": BrightestPixel}[name]()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub cache with the codebook that `released` fetches."""
    home = tmp_path_factory.mktemp("cache")
    write_vqvae(home / "m" / "vae-final.pt")
    into_cache(home, RELEASED_VQVAE.repository, home / "m")
    return home / "hub"


@pytest.fixture
def lay_out(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> Iterator[Callable[[Words], tuple[str, ...]]]:
    """Put what an example names into an empty folder; what is typed behind it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    hub.files["libero_goal/train.parquet"] = b"rows"
    with PictureServer() as server:

        def lay(words: Words) -> tuple[str, ...]:
            typed = example(words)
            for name, make in INPUTS.items():
                if name in typed and name != made_by(typed):
                    Path(name).parent.mkdir(parents=True, exist_ok=True)
                    OTHERWISE.get((words, name), make)(tmp_path / name)
            if words == ("preprocess-web",):
                pixmo(tmp_path / "raw", server)
            if words == ("version",):
                monkeypatch.setattr("importlib.metadata.version", {"molmoact": "1.2.3"}.__getitem__)
            if words in SMALL_TEACHERS:
                monkeypatch.setattr(choice, "_load", small)
                monkeypatch.setattr(choice, "_loaded", {})
            known = {"HUB": hub.url, "PICTURES": server.host}
            return tuple(known.get(word, word) for word in FURTHER.get(words, ((), ""))[0])

        yield lay


def made_by(typed: list[str]) -> str | None:
    """The path that an example writes."""
    return typed[typed.index("--output-path") + 1] if "--output-path" in typed else None


RUN = [
    pytest.param(words, id=" ".join(words), marks=render if words == ("eval",) else ())
    for words in ALL
    if words not in HELD
]


@pytest.mark.parametrize("words", RUN)
def test_an_example_runs_as_written(
    words: Words, lay_out: Callable[[Words], tuple[str, ...]], molmoact: Molmoact
) -> None:
    more = lay_out(words)
    typed = example(words)
    code, out, err = molmoact(*typed, *more)
    assert code == 0, err
    assert out or err
    written = made_by(typed)
    assert written is None or "--dry-run" in typed or Path(written).exists()


@pytest.mark.parametrize("words", HELD, ids=" ".join)
def test_an_example_that_would_take_long_begins(
    words: Words,
    lay_out: Callable[[Words], tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lay_out(words)
    monkeypatch.setattr(HELD[words][0], begin)
    monkeypatch.setattr("sys.argv", ["molmoact", *example(words)])
    with pytest.raises(Begun):
        cli.main()


@pytest.mark.parametrize("words", [*FURTHER, *HELD], ids=" ".join)
def test_what_is_not_as_written_has_a_reason(words: Words) -> None:
    assert words in ALL
    assert (FURTHER.get(words) or HELD[words])[1]
