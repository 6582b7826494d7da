"""Paths and flags are looked at before torch is imported: a typing error costs no waiting.

One process without torch runs every mistake: whatever needed torch first would say that it is not installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_cli import MISTAKES

from molmoact_train.debug.tiny import TinySize, write_tiny_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SIZE = TinySize(width=32, layers=1, vit_width=16, vit_layers=2, image_size=56)
PREPROCESS = f"preprocess --dataset-path {ROOT / 'examples/demo_dataset'} --output-path new"
ASK = "predict --checkpoint tiny --images a.png --instruction x"
# What is typed in a folder with `full/file`, `tiny` (a model), `a.png`, `d.npy` -> a piece of what is said.
TYPOS = {
    "demo --output-path full": "full is not empty",
    f"{PREPROCESS} --vqvae no.pt": "no VQ-VAE checkpoint at no.pt",
    f"{PREPROCESS} --vqvae embedded --statistics no.json": "cannot read the statistics no.json",
    f"{PREPROCESS} --vqvae embedded --pointer-checkpoint no/such/model": "nothing is there",
    f"{PREPROCESS} --vqvae embedded --depth-checkpoint no/such/model": "nothing is there",
    f"{PREPROCESS} --preset embedded --output-path full": "full is not empty",
    f"{PREPROCESS} --preset embedded --dry-run --vqvae no.pt": "no VQ-VAE checkpoint at no.pt",
    f"{PREPROCESS.replace('preprocess', 'preview')} --output-path s.png --vqvae no.pt": "no VQ-VAE",
    f"evaluate-labels --dataset-path {ROOT / 'examples/demo_dataset'} --output-path q --vqvae n.pt": "no VQ-VAE",
    "validate nowhere": "nowhere: no such folder",
    "viz nowhere --output-path s.png --vqvae embedded": "nowhere has no manifest.json",
    "viz --tokens 1,2 --output-path s.png --vqvae no.pt": "no VQ-VAE checkpoint at no.pt",
    "train --stage debug --checkpoint no/such/dir --data full --output-path new": "no such folder",
    "train --stage debug --checkpoint tiny --data nowhere --output-path new": "--data nowhere: no such",
    "train --stage debug --checkpoint tiny --data nowhere:2 --output-path new": "--data nowhere: no such",
    "train --stage debug --checkpoint tiny --data full --output-path full": "full is not empty",
    "train --stage debug --checkpoint tiny --data full --output-path a.png": "a.png is a file",
    "train --stage debug --checkpoint tiny --data full --norm-stats-path no.json --output-path new": "no such file",
    "train --stage debug --checkpoint tiny --data nowhere --output-path new --dry-run": "no such folder",
    f"{ASK} --images no.png": "cannot read the image",
    f"{ASK} --trace x": "--trace wants",
    f"{ASK} --norm-stats no.json": "cannot read the statistics no.json",
    f"{ASK} --output-path new --vqvae no.pt": "no VQ-VAE checkpoint at no.pt",
    f"{ASK} --episodes 1": "--episodes means nothing here",
    f"{ASK} --data full": "--images means nothing here",
    "predict --checkpoint tiny --images a.png": "--instruction is missing",
    "predict --checkpoint nowhere --images a.png --instruction x": "nowhere is not a checkpoint",
    "predict --checkpoint tiny --data nowhere": "nowhere has no manifest.json",
    "merge-lora --adapter tiny --output-path new": "tiny is not an adapter folder",
    "unshard --checkpoint tiny --output-path new": "tiny is not a training checkpoint",
    "export-hf --checkpoint tiny --output-path full": "full is not empty",
    "export-hf --checkpoint tiny --output-path new --norm-stats no.json": "cannot read the statistics",
    "eval --checkpoint nowhere --output-path new": "nowhere is not a model folder",
    "serve --checkpoint nowhere": "nowhere is not a model folder",
    "portal --checkpoint nowhere": "nowhere is not a model folder",
    "vqvae train --preset debug --data nowhere --output-path new": "no folder at nowhere",
    "vqvae train --preset debug --output-path full": "full is not empty",
    "vqvae eval --checkpoint no.pt --data procedural:2": "no VQ-VAE checkpoint at no.pt",
    "vqvae eval --checkpoint embedded --data nowhere": "no folder at nowhere",
    "vqvae encode --checkpoint no.pt --input-path d.npy --output-path c.npy": "no VQ-VAE",
    "vqvae encode --checkpoint embedded --input-path no.npy --output-path c.npy": "no depth to encode",
    "vqvae decode --checkpoint no.pt --tokens 1,2 --output-path d.png": "no VQ-VAE",
    "vqvae convert --input-path embedded --output-path x.bin": "write .pt for",
}  # fmt: skip
EVERY = TYPOS | {f"{' '.join(w)} {typed}": piece for w, (typed, piece) in MISTAKES.items()}
RUN_ALL = """
import contextlib, io, json, shlex, sys
sys.modules["torch"] = None
import cli
said = {}
for line in json.load(sys.stdin):
    sys.argv = ["molmoact", *shlex.split(line)]
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main()
        except SystemExit as ended:
            said[line] = [ended.code, " ".join(err.getvalue().split())]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Everything that the commands say, in one process without torch."""
    import numpy as np

    folder = tmp_path_factory.mktemp("typos")
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    write_tiny_checkpoint(folder / "tiny", SIZE)
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    np.save(folder / "d.npy", np.zeros((1, 8, 8), np.uint8))
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=json.dumps(list(EVERY)), cwd=folder,
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT), "NO_COLOR": "1",
        "COLUMNS": "300", "PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )  # fmt: skip
    return {line: (code, text) for line, (code, text) in json.loads(done.stdout).items()}


@pytest.mark.parametrize("line", EVERY)
def test_a_typing_error_is_found_without_torch(line: str, said: dict[str, tuple[int, str]]) -> None:
    code, text = said[line]
    assert code == 2, text
    assert EVERY[line] in text
    assert "torch" not in text


def test_every_command_that_loads_networks_has_such_a_case() -> None:
    heavy = {"demo", "preprocess", "preview", "evaluate-labels", "validate", "viz", "train", "predict",
             "merge-lora", "unshard", "export-hf", "eval", "serve", "portal", "vqvae"}  # fmt: skip
    assert heavy <= {line.partition(" ")[0] for line in TYPOS}
