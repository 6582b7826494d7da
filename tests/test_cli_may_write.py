"""One rule, for every command that writes: what is there is replaced only where --overwrite says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_commands import ALL, Molmoact, Words

from molmoact_data.teachers.registry import EMBEDDED_VQVAE

TARGET = "--output-path"
CONTINUES = {
    ("download",): "each file is fetched once, and held against its size",
    ("preprocess-web",): "goes on with --resume, and replaces nothing",
}


WRITING = sorted(
    words for words, command in ALL.items() if any(TARGET in p.opts for p in command.params)
)


@pytest.mark.parametrize("words", WRITING, ids=" ".join)
def test_every_command_that_writes_can_be_told_to_replace(words: Words) -> None:
    flags = {name for p in ALL[words].params for name in p.opts}
    assert "--overwrite" in flags or words in CONTINUES


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    path = tmp_path / "codes.npy"
    np.save(path, np.zeros((1, 100), np.int16))
    return path


@pytest.fixture
def depth(tmp_path: Path) -> Path:
    path = tmp_path / "depth.npy"
    np.save(path, np.zeros((1, 64, 64), np.uint8))
    return path


Case = Callable[..., list[Any]]
CASES: dict[str, Case] = {
    "vqvae encode": lambda target, depth, codes, out: [
        "vqvae", "encode", "--checkpoint", EMBEDDED_VQVAE, "--input-path", depth, "--output-path", target / "x.npy",
    ],
    "vqvae decode": lambda target, depth, codes, out: [
        "vqvae", "decode", "--checkpoint", EMBEDDED_VQVAE, "--input-path", codes, "--output-path", target / "x.npy",
    ],
    "vqvae convert": lambda target, depth, codes, out: [
        "vqvae", "convert", "--input-path", EMBEDDED_VQVAE, "--output-path", target / "x.safetensors",
    ],
    "vqvae eval": lambda target, depth, codes, out: [
        "vqvae", "eval", "--checkpoint", EMBEDDED_VQVAE, "--data", "procedural:2", "--output-path", target / "x.png",
    ],
    "validate": lambda target, depth, codes, out: ["validate", out, "--output-path", target / "x.json"],
    "stats": lambda target, depth, codes, out: ["stats", out, "--output-path", target / "x.json"],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_file_that_is_there_is_kept_and_then_replaced_when_asked(
    name: str, molmoact: Molmoact, depth: Path, codes: Path, make_output: Any, tmp_path: Path
) -> None:
    out = make_output()
    folder = tmp_path / "target"
    command = CASES[name](folder, depth, codes, out)
    (target,) = (p for p in command if isinstance(p, Path) and p.parent == folder)
    folder.mkdir()
    target.write_text("precious")
    code, _, err = molmoact(*command)
    assert (code, target.read_text()) == (2, "precious"), err
    assert f"{target} exists. Add --overwrite" in err
    code, _, err = molmoact(*command, "--overwrite")
    assert code == 0, err
    assert target.read_bytes() != b"precious"
    assert [p.name for p in folder.iterdir()] == [target.name]


def test_an_earlier_prediction_is_kept(molmoact: Molmoact, tmp_path: Path) -> None:
    """Refused before the model is looked for."""
    answer = tmp_path / "out" / "prediction.json"
    answer.parent.mkdir()
    answer.write_text("precious")
    code, _, err = molmoact(
        "predict", "--checkpoint", tmp_path, "--images", tmp_path / "a.png", "--instruction", "x",
        "--output-path", answer.parent,
    )  # fmt: skip
    assert (code, answer.read_text()) == (2, "precious")
    assert f"{answer} exists. Add --overwrite" in err
