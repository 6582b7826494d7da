"""What a worker holds: one copy of the teachers however many threads, and decoders that may die without it."""

from __future__ import annotations

import json
import os
import signal
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from made_datasets import make_dataset

import molmoact_data.teachers.choice
import pipelines.shards.build
from molmoact_data import schema
from molmoact_data.sources.base import EpisodeSource
from molmoact_data.sources.isolation import IsolatedSource
from molmoact_data.sources.opening import open_source
from molmoact_data.teachers import registry
from molmoact_data.teachers.choice import Teachers, load_teachers
from pipelines.config import PRESETS, LabelConfig, nested
from pipelines.preprocess import preprocess

THREADS = 8

# Reads like the dataset, except that one episode kills whoever decodes it after its first batch.
DEADLY = """
    import os, signal
    from dataclasses import dataclass
    from typing import Any

    @dataclass
    class DeadlySource:
        inner: Any
        deadly: int
        pids: str

        def __post_init__(self):
            self.info, self.episodes = self.inner.info, self.inner.episodes

        def read_columns(self, ref, extra=()):
            return self.inner.read_columns(ref, extra)

        def iter_frames(self, ref, keys, batch_size):
            with open(self.pids, "a") as file:
                file.write(f"{ref.episode_index} {os.getpid()}\\n")
            for batch in self.inner.iter_frames(ref, keys, batch_size):
                yield batch
                if ref.episode_index == self.deadly:
                    os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a worker that has just started."""
    monkeypatch.setattr(molmoact_data.teachers.choice, "_loaded", {})


def test_many_threads_of_a_worker_share_one_copy_of_each_teacher(
    nothing_loaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    real = registry.resolve

    def counting(kind: str, name: str, table: Any) -> Any:
        loads.append(kind)
        time.sleep(0.05)  # long enough for every other thread to ask meanwhile
        return real(kind, name, table)

    monkeypatch.setattr(registry, "resolve", counting)
    config = LabelConfig(**PRESETS["embedded"]())
    together = threading.Barrier(THREADS)

    def setup(_: int) -> Teachers:
        together.wait(timeout=60)
        return load_teachers(config, "cpu")

    with ThreadPoolExecutor(THREADS) as pool:
        copies = list(pool.map(setup, range(THREADS)))

    assert sorted(loads) == ["depth teacher", "depth tokenizer", "gripper pointer"]
    assert all(copy is copies[0] for copy in copies)


def test_a_file_that_kills_the_decoder_rejects_its_episode_and_not_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text(textwrap.dedent(DEADLY))
    monkeypatch.syspath_prepend(tmp_path)
    from deadly import DeadlySource  # type: ignore[import-not-found]

    pids = tmp_path / "pids"

    def deadly(path: str, *, isolate: bool = False, **options: Any) -> EpisodeSource:
        source = DeadlySource(open_source(path, **options), 1, str(pids))
        return IsolatedSource(source) if isolate else source

    monkeypatch.setattr(pipelines.shards.build, "open_source", deadly)
    dataset = make_dataset(tmp_path / "squares", lengths=[12] * 4)
    output = tmp_path / "out"
    config = nested(
        {
            "dataset_path": str(dataset),
            "output_path": str(output),
            "depth": "none",
            "pointer": "column",
            "pointer_column": "gripper_xy",
            "pointer_units": "pixels",
            "frames_per_shard": 1,
            "batch_size": 4,
            "isolate_decoder": True,
            "max_reject_fraction": 0.5,
        }
    )

    summary = preprocess(config, resume=False, overwrite=False)

    assert (summary.episodes, summary.frames, summary.rejected_episodes) == (3, 36, 1)
    (reject,) = map(json.loads, (output / schema.REJECTS_FILE).read_text().splitlines())
    assert reject["episode_index"] == 1
    assert "decoder_crashed" in json.dumps(reject)
    assert signal.Signals.SIGSEGV.name in json.dumps(reject)
    rows = pq.read_table(output / schema.DATA_DIR)["episode_index"].to_pylist()
    assert sorted(set(rows)) == [0, 2, 3]

    decoders = dict(line.split() for line in pids.read_text().splitlines())
    assert str(os.getpid()) not in decoders.values()
    assert len(set(decoders.values())) == 2  # a new one for what came after the dead one
    assert decoders["0"] == decoders["1"] != decoders["2"] == decoders["3"]
    assert not psutil.pid_exists(int(decoders["1"]))
