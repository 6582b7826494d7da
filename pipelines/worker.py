"""One process at work: the dataset open, the teachers loaded, shards built one after the other.

What a Beam worker holds in its DoFn, and what a single local worker is without Beam.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from molmoact_data.outputs.shards import ShardRecord, ShardSpec
from molmoact_data.sources.base import EpisodeSource
from molmoact_data.sources.opening import open_source
from molmoact_data.teachers.teachers import Teachers
from pipelines import state
from pipelines.build import build_shard
from pipelines.job import Job
from pipelines.progress import FrameCounter
from pipelines.teachers import load_teachers


@dataclass(frozen=True)
class ShardWorker:
    """Small enough to pickle until it is first used."""

    job: Job
    device: str
    """Where the teachers run."""
    threads: int
    """Of the numeric libraries; decoding takes two of them at most."""
    progress_folder: str | None
    """Where frames are counted; None = not counted."""

    def __getstate__(self) -> dict[str, object]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def open(self) -> ShardWorker:
        """Open the dataset and load the teachers now, not in the middle of the first shard."""
        limit_threads(self.threads)
        _ = self._source, self._teachers, self._counter
        return self

    def build(self, spec: ShardSpec) -> ShardRecord:
        """One shard; its record is written when it is complete."""
        record = build_shard(self.job, spec, self._source, self._teachers, self._counter.add)
        state.write_record(self.job.output, record)
        return record

    @cached_property
    def _source(self) -> EpisodeSource:
        return open_source(
            self.job.dataset_path,
            revision=self.job.revision,
            isolate=self.job.isolate_decoder,
            threads=min(2, self.threads),
        )

    @cached_property
    def _teachers(self) -> Teachers:
        return load_teachers(self.job.labels, self.device)

    @cached_property
    def _counter(self) -> FrameCounter:
        return FrameCounter(Path(self.progress_folder) if self.progress_folder else None)


def limit_threads(threads: int) -> None:
    """Bound the intra-op threads of the numeric libraries in this worker process."""
    import cv2

    cv2.setNumThreads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by torch when a teacher imports it
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
