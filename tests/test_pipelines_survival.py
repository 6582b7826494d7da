"""Runs that are killed: resumed to the same bytes, nothing left over, and never a hang."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from made_datasets import make_dataset

from molmoact_data import schema
from pipelines.state import PROGRESS_DIR

ROOT = Path(__file__).resolve().parent.parent
MOMENTS = 10


def command(dataset: Path, output: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "cli.py"), "preprocess"),
        *("--dataset-path", str(dataset), "--output-path", str(output)),
        *("--depth", "none", "--pointer", "column", "--pointer-column", "gripper_xy"),
        *("--pointer-units", "pixels", "--frames-per-shard", "1", "--batch-size", "4"),
        *more,
    ]


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.002)


def files_of(output: Path) -> dict[str, bytes]:
    return {
        p.relative_to(output).as_posix(): p.read_bytes() for p in output.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "squares", lengths=[12] * 16)


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The output of a run that nobody kills, and how long its visible part takes."""
    output = tmp_path_factory.mktemp("out") / "whole"
    process = start(command(dataset, output))
    while not output.exists():
        time.sleep(0.01)
    began = time.monotonic()
    assert process.wait() == 0
    return output, time.monotonic() - began


def test_killed_at_random_moments_and_resumed_to_the_same_bytes(
    dataset: Path, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    whole, seconds = undisturbed
    output = tmp_path / "killed"
    rng = random.Random(0)
    kills = 0
    while kills < MOMENTS:
        shutil.rmtree(output / PROGRESS_DIR, ignore_errors=True)
        process = start(command(dataset, output, "--resume"))
        wait_for(output / PROGRESS_DIR if kills % 3 else output, process)
        time.sleep(rng.uniform(0, seconds / 4))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if (output / schema.MANIFEST_FILE).exists() and not (output / "_state").exists():
            assert files_of(output) == files_of(whole)
            for path in sorted(output.rglob("*"), reverse=True):  # start over for the next moment
                path.unlink() if path.is_file() else path.rmdir()
            output.rmdir()
    assert start(command(dataset, output, "--resume")).wait() == 0
    assert files_of(output) == files_of(whole)


def test_a_dead_worker_process_is_replaced_and_nothing_is_lost(
    dataset: Path, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    process = start(command(dataset, output, "--workers", "2"))
    victim = None
    while victim is None and process.poll() is None:
        time.sleep(0.01)
        started = list(output.glob("_state/records/*.json"))
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "sdk_worker_main" in " ".join(child.cmdline())
        ]
        victim = workers[0] if started and workers else None
    assert victim is not None
    victim.kill()
    assert process.wait(timeout=300) == 0
    assert files_of(output) == files_of(undisturbed[0])
