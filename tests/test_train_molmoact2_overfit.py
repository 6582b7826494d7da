"""The over-fitting run of the specification through the real command: the golden batch by heart, killed on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from golden_molmoact2 import FOLDER, TINY, arrays, needs_molmoact2
from made_golden_chunks import raw, write_golden_chunks

from molmoact_data.policies import Observation
from molmoact_train.families.molmoact2.policy import MolmoAct2Policy

ROOT = Path(__file__).resolve().parent.parent
STEPS, CHECKPOINT, KILLED = 600, 300, 350


def losses(run: Path) -> dict[int, tuple[float, float]]:
    """Step -> flow loss over the horizon's ten of twelve steps, and cross-entropy."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    entries = [e for e in map(json.loads, lines) if "train/flow_loss" in e]
    return {e["step"]: (e["train/flow_loss"] * 12 / 10, e["train/cross_entropy"]) for e in entries}


@needs_molmoact2
def test_the_golden_batch_is_learned_by_heart_and_a_kill_changes_nothing(tmp_path: Path) -> None:
    """The reference: flow loss 1.91 at the start, 0.16 at step 300; cross-entropy 8.5, then 0.003."""
    data = [
        argument for path in write_golden_chunks(tmp_path) for argument in ("--data", str(path))
    ]
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "cli", "train", "--family", "molmoact2", "--stage", "debug", *data,
        "--checkpoint", str(TINY), "--action-tokenizer", str(FOLDER / "fast"), "--tags", "golden_0=libero",
        "--tags", "golden_1=libero", "--max-samples", "1", "--duration", str(STEPS), "--device", "cpu",
        "--save-interval", str(CHECKPOINT), "--log-interval", "5", "--eval-interval", str(STEPS),
        "--output-path", str(run),
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and max(losses(run), default=0) < KILLED:
        time.sleep(0.2)
    assert process.poll() is None, process.stderr and process.stderr.read().decode()[-2000:]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = losses(run)
    subprocess.run([*command, "--resume"], cwd=ROOT, check=True, capture_output=True)
    found = losses(run)
    assert max(before) >= KILLED > CHECKPOINT
    assert {step: found[step] for step in before} == before, (
        "the same numbers, before and after the kill"
    )

    def near(step: int) -> np.ndarray:
        return np.median([v for s, v in found.items() if abs(s - step) <= 30], axis=0)

    assert found[5][0] > 0.7
    assert found[5][1] > 6
    assert near(300)[0] < 0.16
    assert near(300)[1] < 0.01
    assert near(570)[0] < 0.08
    policy = MolmoAct2Policy.from_folder(
        run / "final", statistics_key="libero", device="cpu", seed=0
    )
    policy.options = dataclasses.replace(policy.options, whole_chunk=True)
    golden, told = (
        arrays("training_sample.npz"),
        json.loads((FOLDER / "training_sample.json").read_text()),
    )
    for n, task in enumerate(told["tasks"]):
        pictures = {"a": golden["image_0"][n], "b": golden["image_1"][n]}
        state = raw(golden["state_normalised"][n], "state_stats")
        chunk = policy.act(Observation(pictures, task, state)).actions_HD
        error = np.abs(policy.tag.action.normalise(chunk) - golden["actions_normalised"][n][:10])
        assert error.mean() < 0.06, "the reference after 1500 steps: 0.02 to 0.04"
