"""Every dry run is a table for people on stdout, JSON with --json, and writes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_commands import ALL, Molmoact, Words
from made_datasets import make_dataset
from made_hub import RunningHub
from made_web import PictureServer, write_everything

from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.debug.tiny import TinySize, write_tiny_checkpoint

SIZE = TinySize(width=32, layers=1, vit_width=16, vit_layers=2, image_size=56)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny", SIZE)


@pytest.fixture
def tiny_run(tiny: Path, tmp_path: Path, molmoact: Molmoact) -> Path:
    """A LoRA run of two steps: checkpoints, and an adapter under `final`."""
    data = write_debug_dataset(tmp_path / "data", episodes=3, frames=4, size=56, chunk_size=2)
    code, _, err = molmoact(
        *("train", "--stage", "debug", "--checkpoint", tiny, "--data", data, "--lora"),
        *("--output-path", tmp_path / "run", "--device", "cpu", "--duration", "2", "--warmup", "0"),
    )
    assert code == 0, err
    return tmp_path / "run"


def preprocess(get: Callable[[str], Any], tmp_path: Path) -> list[Any]:
    dataset = make_dataset(tmp_path / "d", lengths=(6, 5))
    return [
        "--dataset-path",
        dataset,
        "--depth",
        "none",
        "--pointer",
        "none",
        "--vqvae",
        "embedded",
    ]


def preprocess_web(get: Callable[[str], Any], tmp_path: Path) -> list[Any]:
    with PictureServer() as server:
        write_everything(tmp_path / "raw", server)
    return ["dv_qa", "--input-path", tmp_path / "raw"]


def train(get: Callable[[str], Any], tmp_path: Path) -> list[Any]:
    data = write_debug_dataset(tmp_path / "data", episodes=3, frames=4, size=56, chunk_size=2)
    return ["--stage", "debug", "--checkpoint", get("tiny"), "--data", data, "--device", "cpu"]


Case = Callable[[Callable[[str], Any], Path], list[Any]]
# Command -> what to type before `--output-path NEW --dry-run`, and names of the facts that are told.
CASES: dict[Words, tuple[Case, tuple[str, ...]]] = {
    ("demo",): (
        lambda get, _: ["--duration", "2"],
        ("frames", "time", "disk", "downloads", "teachers", "starts from", "steps", "held out"),
    ),
    ("preprocess",): (preprocess, ("frames", "time", "disk", "memory", "downloads", "teachers")),
    ("preprocess-web",): (preprocess_web, ("examples", "downloads", "time", "licence")),
    ("train",): (train, ("starts from", "frames", "time", "memory", "licence")),
    ("unshard",): (
        lambda get, _: ["--checkpoint", next(get("tiny_run").glob("step*"))],
        ("tensors", "disk", "memory"),
    ),
    ("merge-lora",): (
        lambda get, _: ["--adapter", get("tiny_run") / "final"],
        ("base", "tensors", "disk", "memory", "licence"),
    ),
    ("export-hf",): (
        lambda get, _: ["--checkpoint", get("tiny")],
        ("tensors", "disk", "memory", "licence"),
    ),
    ("publish",): (
        lambda get, _: [get("make_output")(), "--repo-id", "lab/dots"],
        ("bytes", "file", "README.md", "total", "licence"),
    ),
    ("download",): (lambda get, _: ["libero_10"], ("files", "size", "time", "licence")),
    ("vqvae", "train"): (
        lambda get, _: ["--preset", "debug"],
        ("data", "frames", "parameters", "memory", "disk", "downloads"),
    ),
}
WRITES_NO_FOLDER = {("publish",)}


def test_no_dry_run_is_forgotten() -> None:
    having = {words for words, c in ALL.items() if any("--dry-run" in p.opts for p in c.params)}
    assert having == set(CASES)


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_a_dry_run_tells_people_on_stdout_and_programs_in_json(
    words: Words, molmoact: Molmoact, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make, told = CASES[words]
    given = make(request.getfixturevalue, tmp_path)
    if words not in WRITES_NO_FOLDER:
        given += ["--output-path", tmp_path / "new"]
    with RunningHub() as hub:
        hub.files["libero_10/train.parquet"] = b"rows"
        if words == ("download",):
            given += ["--endpoint", hub.url]
        before = sorted(tmp_path.rglob("*"))
        code, out, err = molmoact(*words, *given, "--dry-run")
        assert code == 0, err
        first, *rows = out.splitlines()
        assert first.startswith("Would ")
        assert [name for name in told if name not in "\n".join(rows)] == []
        assert "{" not in first, "a table, not JSON"
        code, out, err = molmoact(*words, *given, "--dry-run", "--json")
        assert code == 0, err
        assert json.loads(out)
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written"
