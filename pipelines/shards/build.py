"""Episodes in, one shard out. Knows neither Beam nor which machine it runs on.

Frames are decoded once, in order, `batch_size` at a time; depth, points and the stored JPEG all come
from that one pass. Images wait on disk until the episode is complete, numbers (some 300 bytes a frame)
in memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.errors import EpisodeRejected, RejectReason
from molmoact_data.labels import quality
from molmoact_data.labels.actions import bin_actions, chunk, normalize
from molmoact_data.labels.depth_memory import CHANGE_RULES, BufferedCodes, DepthMemory, buffered
from molmoact_data.labels.depth_scaling import DepthScaler, depth_scaler
from molmoact_data.labels.labels import EpisodeLabels
from molmoact_data.labels.pointing import ColumnPointer, GripperPointer, TrackedPoints
from molmoact_data.labels.traces import TraceConfig, episode_traces
from molmoact_data.labels.tracking import FramePointer, PointTracker, RecordedPath
from molmoact_data.outputs.columns import label_columns
from molmoact_data.outputs.shards import (
    EpisodeSpool,
    Reject,
    ShardRecord,
    ShardSpec,
    ShardWriter,
    file_sha256,
)
from molmoact_data.sources.base import EpisodeColumns, EpisodeRef, EpisodeSource
from molmoact_data.sources.opening import open_source
from molmoact_data.teachers.cached import EpisodeKey, cached
from molmoact_data.teachers.choice import Teachers, load_teachers
from molmoact_data.teachers.pieces import in_pieces
from pipelines import state
from pipelines.job import Job
from pipelines.shards.progress import FrameCounter
from pipelines.shards.reading import Event, image_schema, read_ahead, read_events

CountFrames = Callable[[int], None]
READ_AHEAD = 2
"""The columns of the next episode, and its first batch."""


def build_shard(
    job: Job, spec: ShardSpec, source: EpisodeSource, teachers: Teachers, count: CountFrames
) -> ShardRecord:
    """Write one shard and say what is in it; a bad episode is a named reject, never a row."""
    written: list[tuple[int, int]] = []
    rejects: list[Reject] = []
    measured: list[quality.QualitySums] = []
    wanted = teachers.pointer.columns if isinstance(teachers.pointer, ColumnPointer) else ()
    reading = read_events(job, source, spec.episodes, wanted)
    with (
        job.output.local_file(spec.name) as path,
        closing(read_ahead(reading, READ_AHEAD)) as events,
    ):
        with ShardWriter(path, job.layout.arrow_schema(_shard_metadata(job))) as writer:
            for ref, of_episode in groupby(events, key=lambda event: event.ref):
                try:
                    sums = _label_episode(job, ref, of_episode, teachers, writer, count)
                except EpisodeRejected as verdict:
                    rejects.append(Reject(ref.episode_index, verdict.reason.value, verdict.detail))
                else:
                    written.append((ref.episode_index, sums.frames))
                    measured.append(sums)
        size, digest = (path.stat().st_size, file_sha256(path)) if written else (0, None)
    return ShardRecord(
        name=spec.name,
        rows=writer.rows,
        num_bytes=size,
        sha256=digest,
        episodes=tuple(written),
        rejects=tuple(rejects),
        quality=quality.merge(measured).to_json(),
    )


def _shard_metadata(job: Job) -> dict[bytes, bytes]:
    return {
        schema.META_CONFIG_HASH: job.config_hash.encode(),
        schema.META_STATISTICS_HASH: job.statistics_hash.encode(),
    }


def _label_episode(
    job: Job,
    ref: EpisodeRef,
    events: Iterator[Event],
    teachers: Teachers,
    writer: ShardWriter,
    count: CountFrames,
) -> quality.QualitySums:
    """All rows of one episode, written only once the whole episode has proved good."""
    columns = next(events).columns()
    points = follow_points(teachers.pointer, job, columns)
    depth = depth_labels(job)
    with EpisodeSpool(image_schema(job.layout)) as spool:
        for batch in map(Event.frames, events):
            spool.append(batch.images)
            depth.add(ref, batch.rgb_NHWC, teachers)
            if points:
                points.push(batch.rgb_NHWC)
            count(len(batch.rgb_NHWC))
        collected = points.finish() if points else None
        labels = episode_labels(job, columns, depth, collected)
        _write_rows(job, columns, labels, spool, writer)
    return quality.episode_sums(
        labels,
        num_frames=len(columns.frame_index),
        codebook_size=job.layout.codebook_size,
        tracked=collected,
    )


def follow_points(
    pointer: GripperPointer | ColumnPointer | None, job: Job, columns: EpisodeColumns
) -> PointTracker | RecordedPath | None:
    """What is fed with every batch of the labelled camera and tells the episode's points at its end."""
    if pointer is None:
        return None
    if isinstance(pointer, ColumnPointer):
        return RecordedPath(pointer, columns.extra)
    asked: GripperPointer | FramePointer = pointer
    if job.point_cache is not None:
        source = job.source
        key = EpisodeKey(source.name, source.revision, job.labelled_camera, columns.episode_index)
        asked = cached(pointer, Path(job.point_cache), key)
    labels = job.labels
    by_motion = labels.keyframes == "motion"
    return PointTracker(asked, labels.pointer_prompt, labels.point_every, by_motion=by_motion)


def depth_labels(job: Job) -> DepthLabels:
    """Of one episode, which is still to come."""
    return DepthLabels(depth_scaler(job.labels.depth_scaling), depth_memory(job))


def depth_memory(job: Job) -> DepthMemory | None:
    """An empty memory for one episode; None where no buffer of codes is asked for."""
    if not job.layout.depth_buffer or job.layout.depth_codes is None:
        return None
    rule = CHANGE_RULES[job.labels.depth_buffer]
    return DepthMemory(rule.labels_resize, rule.black_forgets, job.layout.depth_codes)


@dataclass
class DepthLabels:
    """Codes and raw ranges of one episode, batch by batch; stays empty without a depth teacher."""

    scaler: DepthScaler
    memory: DepthMemory | None
    codes: list[NDArray[np.int64]] = field(default_factory=list)
    ranges: list[NDArray[np.float32]] = field(default_factory=list)
    buffers: list[BufferedCodes] = field(default_factory=list)

    def add(self, ref: EpisodeRef, rgb_NHWC: NDArray[np.uint8], teachers: Teachers) -> None:
        """Estimate, scale and tokenise the next frames."""
        if teachers.depth is None or teachers.tokenizer is None:
            return
        depth_NHW = teachers.depth.estimate(rgb_NHWC)
        if not np.isfinite(depth_NHW).all():
            raise EpisodeRejected(
                RejectReason.DEPTH_NON_FINITE,
                f"episode {ref.episode_index}: the depth map has NaN or infinite values",
            )
        depth_u8_NHW, range_N2 = self.scaler.scale(depth_NHW)
        self.codes.append(teachers.tokenizer.encode(depth_u8_NHW))
        self.ranges.append(range_N2)
        if self.memory is not None:
            self.buffers.append(buffered(self.memory, rgb_NHWC, self.codes[-1]))

    def buffer(self) -> BufferedCodes | None:
        """Of the whole episode."""
        if not self.buffers:
            return None
        return BufferedCodes(
            np.concatenate([part.buffer_TG for part in self.buffers]),
            np.concatenate([part.updated_TG for part in self.buffers]),
        )


def episode_labels(
    job: Job, columns: EpisodeColumns, depth: DepthLabels, collected: TrackedPoints | None
) -> EpisodeLabels:
    """Everything that needs the whole episode: traces look ahead, chunks reach over its end."""
    traces = None
    if collected is not None:
        config = TraceConfig(max_points=job.labels.line_length, filter=job.labels.filter_traces)
        traces = episode_traces(collected.points, config)
    bins_THD, num_valid_T = None, None
    if job.statistics is not None:
        bins_TD = bin_actions(normalize(columns.action, job.statistics), job.labels.action_bins)
        bins_THD, num_valid_T = chunk(bins_TD, job.labels.action_chunk_size)
    return EpisodeLabels(
        depth_codes=np.concatenate(depth.codes) if depth.codes else None,
        depth_range=np.concatenate(depth.ranges) if depth.ranges else None,
        depth_buffer=depth.buffer(),
        points=collected.points if collected else None,
        traces=traces,
        action_bins=bins_THD,
        num_valid_actions=num_valid_T,
    )


def _write_rows(
    job: Job,
    columns: EpisodeColumns,
    labels: EpisodeLabels,
    spool: EpisodeSpool,
    writer: ShardWriter,
) -> None:
    """Join the images that waited on disk with the labels, in bounded pieces."""
    arrays = label_columns(
        job.layout,
        dataset=job.source.name,
        revision=job.source.revision,
        columns=columns,
        labels=labels,
    )
    start = 0
    for images in spool.batches():
        rows = images.num_rows
        table = [
            arrays[name].slice(start, rows) if name in arrays else images.column(name)
            for name in writer.schema.names
        ]
        writer.write(pa.Table.from_arrays(table, schema=writer.schema))
        start += rows


# One process at work


@dataclass(frozen=True)
class ShardWorker:
    """What a Beam worker holds in its DoFn, and what a single local worker is without Beam.

    Pickles as its four settings; the dataset and the teachers are opened on first use.
    """

    job: Job
    device: str
    """Where the teachers run."""
    threads: int
    """On which teachers work at once; decoding takes two of them at most. The content depends on none of it."""
    progress_folder: str | None
    """Where frames are counted; None = not counted."""

    def __getstate__(self) -> dict[str, object]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    def open(self) -> ShardWorker:
        """Open the dataset and load the teachers now, not in the middle of the first shard."""
        one_thread_a_call()
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
        from molmoact_data.processes import pick_device

        teachers = load_teachers(self.job.labels, self.device)
        on_cpu = pick_device(self.device).type == "cpu"
        return in_pieces(teachers, self.threads) if on_cpu else teachers

    @cached_property
    def _counter(self) -> FrameCounter:
        return FrameCounter(Path(self.progress_folder) if self.progress_folder else None)


def one_thread_a_call() -> None:
    """One thread for a call of a numeric library in this process: more would change the last bits of a sum."""
    import cv2

    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when a teacher imports it
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
