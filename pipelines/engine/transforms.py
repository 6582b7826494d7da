"""The Beam skin: every DoFn is setup, counter, one call, counter. The work is in `build` and `statistics`.

Portable subset only (Create, Map, ParDo, Combine, Reshuffle, one leaf; plain small elements), so that
the same graph runs on every runner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from molmoact_data.files.storage import Storage
from molmoact_data.outputs.shards import ShardSpec
from molmoact_data.sources.base import EpisodeRef, EpisodeSource
from molmoact_data.sources.opening import open_source
from molmoact_data.statistics import ActionSpec
from pipelines.shards.build import ShardWorker
from pipelines.statistics import Numbers, NumericEpisode, read_numeric


class ReadNumeric(beam.DoFn):
    """Handfuls of episode references -> their numbers, from the numeric columns alone."""

    def __init__(self, dataset_path: str, revision: str | None) -> None:
        self._dataset_path = dataset_path
        self._revision = revision
        self._source: EpisodeSource | None = None

    def setup(self) -> None:
        """Open the dataset once per worker."""
        self._source = open_source(self._dataset_path, revision=self._revision)

    def process(self, element: list[list[int]]) -> Iterator[list[NumericEpisode]]:
        """A handful of [episode_index, num_frames]."""
        assert self._source is not None
        yield [read_numeric(self._source, EpisodeRef(*pair)) for pair in element]
        Metrics.counter("statistics", "episodes").inc(len(element))


class CombineStatistics(beam.CombineFn):
    """All numbers of the dataset -> the statistics file, whatever the order of arrival."""

    def __init__(self, key: str, spec: ActionSpec) -> None:
        self._key = key
        self._spec = spec

    def create_accumulator(self) -> Numbers:
        """Nothing read yet."""
        return Numbers()

    def add_input(self, accumulator: Numbers, element: list[NumericEpisode]) -> Numbers:
        """A handful of episodes more."""
        accumulator.add(element)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Numbers]) -> Numbers:
        """Those of several workers."""
        whole = self.create_accumulator()
        for part in accumulators:
            whole.merge(part)
        return whole

    def extract_output(self, accumulator: Numbers) -> bytes:
        """The content of the statistics file."""
        return accumulator.statistics_file(key=self._key, spec=self._spec)


class WriteStatistics(beam.DoFn):
    """Statistics -> their file, atomically."""

    def __init__(self, output: Storage, name: str) -> None:
        self._output = output
        self._name = name

    def process(self, element: bytes) -> Iterator[str]:
        """One element: the content."""
        self._output.write_bytes(self._name, element)
        yield self._name


class BuildShard(beam.DoFn):
    """Shard specifications -> shards on disk; only the small record of each leaves the worker."""

    def __init__(self, worker: ShardWorker) -> None:
        self._worker = worker

    def setup(self) -> None:
        """Open the dataset and load the teachers, once per process."""
        self._worker.open()

    def process(self, element: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """One shard."""
        Metrics.counter("shards", "started").inc()
        record = self._worker.build(spec_from_json(element))
        Metrics.counter("shards", "rows").inc(record.rows)
        yield {"name": record.name, "rows": record.rows}


def spec_to_json(spec: ShardSpec) -> dict[str, Any]:
    """A shard specification as a plain element; the inverse of `spec_from_json`."""
    return asdict(spec)


def spec_from_json(element: dict[str, Any]) -> ShardSpec:
    """A plain element as a shard specification."""
    return ShardSpec(element["name"], tuple(EpisodeRef(**ref) for ref in element["episodes"]))
