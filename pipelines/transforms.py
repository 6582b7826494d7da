"""The Beam skin: every DoFn is setup, counter, one call, counter. The work is in `build` and `statistics`.

Portable subset only (Create, Map, ParDo, Combine, Reshuffle, one leaf; plain small elements), so that
the same graph runs on every runner.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from molmoact_data.episodes import EpisodeRef, EpisodeSource, open_source
from molmoact_data.shards import ShardSpec
from molmoact_data.storage import Storage
from molmoact_data.teachers import Teachers
from pipelines import state
from pipelines.build import build_shard
from pipelines.job import Job
from pipelines.progress import FrameCounter
from pipelines.statistics import (
    OBSERVED,
    Gripper,
    NumericEpisode,
    combine,
    observe_grippers,
    read_numeric,
)
from pipelines.teachers import load_teachers


class ReadNumeric(beam.DoFn):
    """Episode references -> their numbers, from the numeric columns alone."""

    def __init__(self, dataset_path: str, revision: str | None) -> None:
        self._dataset_path = dataset_path
        self._revision = revision
        self._source: EpisodeSource | None = None

    def setup(self) -> None:
        """Open the dataset once per worker."""
        self._source = open_source(self._dataset_path, revision=self._revision)

    def process(self, element: list[list[int]]) -> Iterator[NumericEpisode]:
        """A handful of [episode_index, num_frames]."""
        assert self._source is not None
        for episode_index, num_frames in element:
            numeric = read_numeric(self._source, EpisodeRef(episode_index, num_frames))
            Metrics.counter("statistics", "episodes").inc()
            yield numeric


class CombineStatistics(beam.CombineFn):
    """All numbers of the dataset -> exact statistics, whatever the order of arrival."""

    def __init__(self, key: str, gripper: Mapping[int, Gripper]) -> None:
        self._key = key
        self._gripper = gripper

    def create_accumulator(self) -> list[NumericEpisode]:
        """Nothing read yet."""
        return []

    def add_input(
        self, accumulator: list[NumericEpisode], element: NumericEpisode
    ) -> list[NumericEpisode]:
        """Keep the values: exact quantiles need them all."""
        accumulator.append(element)
        return accumulator

    def merge_accumulators(self, accumulators: list[list[NumericEpisode]]) -> list[NumericEpisode]:
        """Concatenate."""
        return [episode for part in accumulators for episode in part]

    def extract_output(self, accumulator: list[NumericEpisode]) -> dict[str, Any]:
        """The statistics file as plain JSON, with what the grippers really hold."""
        statistics = combine(accumulator, key=self._key, gripper=self._gripper)
        entry = statistics.to_json()[self._key]
        return {self._key: {**entry, OBSERVED: observe_grippers(accumulator, statistics)}}


class WriteStatistics(beam.DoFn):
    """Statistics -> their file, atomically."""

    def __init__(self, output: Storage, name: str) -> None:
        self._output = output
        self._name = name

    def process(self, element: dict[str, Any]) -> Iterator[str]:
        """One element: the statistics."""
        self._output.write_bytes(self._name, (json.dumps(element, indent=1) + "\n").encode())
        yield self._name


class BuildShard(beam.DoFn):
    """Shard specifications -> shards on disk; only the small record of each leaves the worker."""

    def __init__(self, job: Job, device: str, threads: int, progress_folder: str | None) -> None:
        self._job = job
        self._device = device
        self._threads = threads
        self._progress_folder = progress_folder
        self._source: EpisodeSource | None = None
        self._teachers: Teachers | None = None
        self._counter: FrameCounter | None = None

    def setup(self) -> None:
        """Open the dataset and load the teachers, once per process."""
        limit_threads(self._threads)
        self._source = open_source(
            self._job.dataset_path,
            revision=self._job.revision,
            isolate=self._job.isolate_decoder,
            threads=min(2, self._threads),
        )
        self._teachers = load_teachers(self._job.labels, self._device)
        folder = Path(self._progress_folder) if self._progress_folder else None
        self._counter = FrameCounter(folder)

    def process(self, element: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """One shard."""
        assert self._source is not None
        assert self._teachers is not None
        assert self._counter is not None
        spec = spec_from_json(element)
        Metrics.counter("shards", "started").inc()
        record = build_shard(self._job, spec, self._source, self._teachers, self._counter.add)
        state.write_record(self._job.output, record)
        Metrics.counter("shards", "rows").inc(record.rows)
        yield {"name": record.name, "rows": record.rows}


def spec_to_json(spec: ShardSpec) -> dict[str, Any]:
    """A shard specification as a plain element; the inverse of `spec_from_json`."""
    return asdict(spec)


def spec_from_json(element: dict[str, Any]) -> ShardSpec:
    """A plain element as a shard specification."""
    return ShardSpec(element["name"], tuple(EpisodeRef(**ref) for ref in element["episodes"]))


def limit_threads(threads: int) -> None:
    """Bound the intra-op threads of the numeric libraries in this worker process."""
    import cv2

    cv2.setNumThreads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by torch when a teacher imports it
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
