"""The promise that the content of an output depends on nothing but configuration and data: workers, threads, kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_datasets import make_dataset

from molmoact_data.teachers.choice import TeacherConfig, load_teachers
from molmoact_data.teachers.pieces import PIECE, in_pieces
from pipelines.config import nested
from pipelines.preprocess import preprocess
from pipelines.shards.build import one_thread_a_call

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = {"depth": "embedded", "vqvae": "embedded", "pointer": "embedded"}


def files_of(output: Path) -> dict[str, bytes]:
    return {
        p.relative_to(output).as_posix(): p.read_bytes() for p in output.rglob("*") if p.is_file()
    }


def run(dataset: Path, output: Path, **more: Any) -> dict[str, bytes]:
    values = {"dataset_path": str(dataset), "output_path": str(output), "frames_per_shard": 12}
    preprocess(nested({**values, **EMBEDDED, **more}), resume=False, overwrite=False)
    return files_of(output)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lengths = [int(n) for n in np.random.default_rng(0).integers(2, 6, 25)]
    return make_dataset(tmp_path_factory.mktemp("data") / "squares", lengths=lengths)


def test_one_two_and_three_workers_write_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    """25 episodes through the embedded networks; a worker of two has half the threads of a worker alone."""
    one = run(dataset, tmp_path / "one")
    assert sum(name.startswith("data/") for name in one) > 3
    assert run(dataset, tmp_path / "two", workers=2) == one
    assert run(dataset, tmp_path / "three", workers=3) == one


def test_results_of_teachers_do_not_depend_on_threads() -> None:
    """To the bit, in a process that allows as many threads as it has cores."""
    before = torch.get_num_threads()
    rgb_NHWC = np.random.default_rng(0).integers(0, 256, (3 * PIECE + 5, 96, 128, 3), np.uint8)
    rgb_NHWC[:, 30:60, 40:80] //= 4
    one_thread_a_call()
    try:
        found = []
        for threads in (1, 2, 3, 5):
            teachers = in_pieces(load_teachers(TeacherConfig(**EMBEDDED), "cpu"), threads)
            assert teachers.depth is not None
            assert teachers.tokenizer is not None
            depth = teachers.depth.estimate(rgb_NHWC)
            codes = teachers.tokenizer.encode((np.clip(depth, 0, 1) * 255).astype(np.uint8))
            points = teachers.pointer.point(rgb_NHWC, "x")  # type: ignore[union-attr]
            found.append((depth, codes, points.xy_NA2, points.confidence_NA))
        for other in found[1:]:
            for ours, theirs in zip(found[0], other, strict=True):
                np.testing.assert_array_equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


def test_teachers_in_pieces_take_no_frame_at_all() -> None:
    teachers = in_pieces(load_teachers(TeacherConfig(**EMBEDDED), "cpu"), 2)
    nothing = np.zeros((0, 32, 32, 3), np.uint8)
    assert teachers.depth is not None
    assert teachers.depth.estimate(nothing).shape == (0, 32, 32)
    assert teachers.pointer.point(nothing, "x").xy_NA2.shape == (0, 1, 2)  # type: ignore[union-attr]


KILLED = """
import json, os, signal, sys
from pipelines import state
from pipelines.config import nested
from pipelines.preprocess import preprocess
values, moment, after = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
write, done = state.write_record, []
def write_and_die(output, record):
    done.append(record.name)
    if len(done) == after and moment == "between shard and record":
        os.kill(os.getpid(), signal.SIGKILL)
    write(output, record)
    if len(done) == after:
        os.kill(os.getpid(), signal.SIGKILL)
state.write_record = write_and_die
preprocess(nested(values), resume=True, overwrite=False)
"""


@pytest.mark.parametrize("moment", ["between shard and record", "after the record"])
def test_killed_between_commits_and_resumed_to_the_same_bytes(moment: str, tmp_path: Path) -> None:
    """Killed after the first shard of each run, then after the second, until nothing is left to do."""
    import json

    dataset = make_dataset(tmp_path / "squares", lengths=[6] * 5)
    column = {
        "depth": "none", "pointer": "column", "pointer_column": "gripper_xy", "pointer_units": "pixels",
        "frames_per_shard": 1, "dataset_path": str(dataset),
    }  # fmt: skip
    preprocess(
        nested({**column, "output_path": str(tmp_path / "whole")}), resume=False, overwrite=False
    )
    output = tmp_path / "killed"
    values = json.dumps({**column, "output_path": str(output)})
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    committed = []
    for after in (1, 2, 1):
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, values, moment, str(after)], env=environment, check=False,
            capture_output=True,
        )  # fmt: skip
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        committed.append(len(list((output / "_state" / "records").glob("*.json"))))
    assert committed == ([1, 3, 4] if moment == "after the record" else [0, 1, 1])
    preprocess(nested({**column, "output_path": str(output)}), resume=True, overwrite=False)
    assert files_of(output) == files_of(tmp_path / "whole")
