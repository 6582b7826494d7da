"""Paths and flags are looked at before torch is imported: a typing error costs no waiting.

One process without torch runs every mistake: whatever needed torch first would say that it is not installed.
"""

from __future__ import annotations

import json
import socket
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
    "predict --checkpoint nowhere --images a.png --instruction x": "nowhere is not a model folder: nothing is there",
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
    # a folder of another kind
    "eval --checkpoint run --output-path new": "it is a training run; what it trained is run/final",
    "serve --checkpoint run": "it is a training run; what it trained is run/final",
    "portal --checkpoint run": "it is a training run; what it trained is run/final",
    "predict --checkpoint run --data out": "it is a training run; what it trained is run/final",
    "eval --checkpoint cut --output-path new": "molmoact unshard --checkpoint cut/step00000010",
    "serve --checkpoint run/step00000010": "molmoact unshard --checkpoint run/step00000010",
    "portal --checkpoint adapter": "molmoact merge-lora --adapter adapter --output-path MODEL",
    "predict --checkpoint adapter --data out": "molmoact merge-lora --adapter adapter",
    "eval --checkpoint out --output-path new": "output of `molmoact preprocess`, which goes with --data",
    "serve --checkpoint codebook": "which goes with --vqvae",
    "serve --checkpoint a.png": "it is a file, not a folder",
    "eval --checkpoint lab/model --output-path new": "hf download lab/model --local-dir FOLDER",
    "portal --checkpoint tiny --data dataset": "molmoact preprocess --dataset-path dataset",
    "predict --checkpoint tiny --data run": "it is a training run",
    "viz dataset --output-path s.png": "molmoact preprocess --dataset-path dataset",
    "publish tiny --repo-id lab/name": "it is a model folder, which goes with --checkpoint",
    "export out/data --format reference --output-path new": "it is a folder inside the output out",
    "validate dataset": "molmoact preprocess --dataset-path dataset",
    "validate run": "it is a training run",
    f"{PREPROCESS.replace(str(ROOT / 'examples/demo_dataset'), 'out')} --depth none --pointer none":
        "an output of `molmoact preprocess` already",
    "merge-lora --adapter lora --output-path new": "give lora/final",
    "merge-lora --adapter run --output-path new": "its model is whole and there is nothing to merge",
    "unshard --checkpoint run --output-path new": "give run/step00000010",
    # the new commands' own flags
    "eval --checkpoint tiny --env tabeltop --output-path new": "Did you mean 'tabletop'",
    "eval --checkpoint tiny --env json:World --output-path new": "Give module:Class",
    "eval --checkpoint tiny --trials -3 --output-path new": "at least 1, got -3",
    "eval --checkpoint tiny --min-success 50 --output-path new": "min_success is a share, 0..1",
    "eval --checkpoint tiny --env-arg split --output-path new": "--env-arg wants KEY=VALUE",
    "eval --checkpoint tiny --env-python /no/python --output-path new": "--env-python /no/python: there is no such",
    "eval --server localhost:8000 --output-path new": "write ws://HOST:PORT",
    "serve --checkpoint tiny --declare gripper": "--declare wants KEY=VALUE",
    "serve --checkpoint tiny --port PORT": "Choose another --port",
    "portal --checkpoint tiny --port PORT": "Choose another --port",
    "portal --checkpoint tiny --port 99999": "--port 99999: ports are 0..65535",
    "serve --checkpoint tiny --host nowhere.invalid": "--host nowhere.invalid",
    "portal --checkpoint tiny --vqvae no.pt": "no VQ-VAE checkpoint at no.pt",
    "download allenai/ --output-path new": "write owner/name",
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
    write_kinds(folder)
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    np.save(folder / "d.npy", np.zeros((1, 8, 8), np.uint8))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_all(folder, [line.replace("PORT", port) for line in EVERY])
    found = json.loads(done.stdout)
    return {line: tuple(found[line.replace("PORT", port)]) for line in EVERY}


def write_kinds(folder: Path) -> None:
    """Folders of the other kinds, by the files by which each is known."""
    for name, content in {
        "run/config.json": "{}", "run/metrics.jsonl": "", "run/step00000010/trainer.json": "{}",
        "run/final/config.json": '{"model_type": "molmoact"}', "run/final/model.safetensors": "",
        "cut/config.json": "{}", "cut/metrics.jsonl": "", "cut/step00000010/trainer.json": "{}",
        "lora/config.json": "{}", "lora/metrics.jsonl": "", "lora/final/adapter_config.json": "{}",
        "adapter/adapter_config.json": "{}", "out/manifest.json": "{}", "out/data/a.parquet": "",
        "codebook/config.json": "{}", "codebook/metrics.jsonl": "", "codebook/model.safetensors": "",
        "dataset/meta/info.json": "{}",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def run_all(folder: Path, lines: list[str]) -> subprocess.CompletedProcess[str]:
    """What is said of every line, as JSON on stdout."""
    return subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=json.dumps(lines), cwd=folder,
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT), "NO_COLOR": "1",
        "COLUMNS": "300", "PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )  # fmt: skip


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
