"""One process, and two over gloo with FSDP2, train alike: in full and with LoRA; checkpoints go from two to one.

Both runs of a pair see the same global batches, so their losses may differ by float32 rounding alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from molmoact_data.runs import read_metrics
from molmoact_train import train as loop
from molmoact_train.checkpoint import TrainerState, load_trainer_state
from molmoact_train.config import TrainConfig, resolve, to_json
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.debug.tiny import TinySize, write_tiny_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SIZE = TinySize(width=32, layers=1, vit_width=16, vit_layers=2, image_size=56)
KINDS: dict[str, dict[str, Any]] = {
    "full": {"ft_embedding": "lm_head"},
    "lora": {"lora": True, "lora_rank": 4, "lora_alpha": 8.0},
}
# Runs every kind one after the other, as torchrun would run `molmoact train` (one start-up instead of two).
SCRIPT = """
import json, sys
from pathlib import Path
from molmoact_train.config import from_json
from molmoact_data.processes import join_world
from molmoact_train.train import train
with join_world("cpu") as world:
    for text in Path(sys.argv[1]).read_text().splitlines():
        train(from_json(json.loads(text)), device="cpu")
"""


def config(base: Path, run: Path, kind: str) -> TrainConfig:
    given = {
        "checkpoint": str(base / "checkpoint"),
        "data": [str(base / "data")],
        "output_path": str(run),
        "device_batch_size": 1,  # the same micro-batches either way
        "residual_dropout": 0.0,  # masks belong to a process, so they differ between 1 and 2
        "duration": 4,
        "save_interval": 2,
        "eval_fraction": 0.25,
        "eval_samples": 2,
        "activation_checkpointing": True,
    }
    return resolve("debug", given, KINDS[kind])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one-full`, `one-lora`, `two-full`, `two-lora`: the same runs by one and by two processes."""
    base = tmp_path_factory.mktemp("distributed")
    write_tiny_checkpoint(base / "checkpoint", SIZE)
    write_debug_dataset(base / "data", episodes=4, frames=5, size=56, chunk_size=2)
    for kind in KINDS:
        loop.train(config(base, base / f"one-{kind}", kind), device="cpu")
    lines = [json.dumps(to_json(config(base, base / f"two-{kind}", kind))) for kind in KINDS]
    (base / "configs.jsonl").write_text("\n".join(lines))
    (base / "script.py").write_text(SCRIPT)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(base / "script.py"), str(base / "configs.jsonl"),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return base


def numbers(run: Path, name: str) -> list[float]:
    return [line[name] for line in read_metrics(run / "metrics.jsonl") if name in line]


@pytest.mark.parametrize("kind", KINDS)
def test_two_sharded_processes_train_like_one(runs: Path, kind: str) -> None:
    one, two = runs / f"one-{kind}", runs / f"two-{kind}"
    assert len(numbers(one, "train/loss")) == 4
    for name in ("train/loss", "grad_norm/llm", "grad_norm/connector", "batch/loss_tokens",
                 "eval/loss", "eval/loss_depth", "eval/accuracy"):  # fmt: skip
        assert numbers(two, name) == pytest.approx(numbers(one, name), rel=2e-4), name


@pytest.mark.parametrize("kind", KINDS)
def test_their_exports_hold_the_same_weights(runs: Path, kind: str) -> None:
    file = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    one, two = (load_file(runs / f"{n}-{kind}" / "final" / file) for n in ("one", "two"))
    assert set(one) == set(two)
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-4), name


def test_lora_starts_from_equal_values_on_every_process(runs: Path) -> None:
    """A, after four small steps, is still the seeded matrix to within the steps; B is what was learned."""
    one = load_file(runs / "one-lora" / "final" / "adapter_model.safetensors")
    two = load_file(runs / "two-lora" / "final" / "adapter_model.safetensors")
    first = next(name for name in one if "lora_A" in name)
    assert torch.allclose(one[first], two[first], atol=1e-4)
    assert one[first].std() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_resumes_what_two_have_saved(runs: Path, kind: str) -> None:
    run = runs / f"two-{kind}"
    expected = numbers(run, "train/loss")
    assert load_trainer_state(run / "step00000004") == TrainerState(
        4, 16, 2, 6198, 50189, too_long=0
    )
    shutil.rmtree(run / "step00000004")
    loop.train(config(runs, run, kind), resume=True, device="cpu")
    assert numbers(run, "train/loss") == pytest.approx(expected, rel=2e-4)
