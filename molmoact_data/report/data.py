"""What a report shows, read from a finished output in one pass over the numbers, images untouched.

Memory does not grow with the dataset: histograms, a heat map, a sample of episodes, and the few frames
chosen as pictures. Every choice is a function of the content, so that equal outputs give equal reports.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.manifest import Manifest, read_manifest
from molmoact_data.outputs.output import open_parquet, statistics_entries
from molmoact_data.outputs.rejects import RejectLine, read_rejects
from molmoact_data.statistics import DatasetStatistics

HISTOGRAM_BINS = 48
HEAT_CELLS = 32
STRIP_COLUMNS = 120
MAX_STRIPS = 40
NUM_SUREST, NUM_WORST, NUM_PER_REASON = 10, 20, 5
NUM_DEPTH = 6
# Neighbouring frames look alike, so pictures of one kind keep this distance within an episode.
FRAME_DISTANCE = 10
CANDIDATES = 400

EpisodeKey = tuple[str, int]
"""Shard and episode: in a merged output, episode indices of different datasets may be equal."""


@dataclass(frozen=True, order=True)
class FrameRef:
    """Where one frame of the output lies; sorts by its key of choice."""

    key: float
    episode: int
    frame: int
    shard: str
    row_group: int = field(compare=False)
    row: int = field(compare=False)
    quality: float = field(compare=False)
    reason: str | None = field(compare=False)


@dataclass
class ReportData:
    """Everything the page is rendered from."""

    manifest: Manifest
    statistics: DatasetStatistics | None
    rejects: list[RejectLine]
    action_histogram_DB: NDArray[np.int64] | None = None
    """Counts over `HISTOGRAM_BINS` equal bins between each dimension's minimum and maximum."""
    clipped_D: NDArray[np.float64] | None = None
    """Share of values outside q01..q99."""
    heat_YX: NDArray[np.int64] | None = None
    """Points per cell of the frame."""
    strips: dict[EpisodeKey, NDArray[np.float32]] = field(default_factory=dict)
    """Episode -> mean trace quality over `STRIP_COLUMNS` equal parts of its time."""
    surest: list[FrameRef] = field(default_factory=list)
    worst: list[FrameRef] = field(default_factory=list)
    rejected: dict[str, list[FrameRef]] = field(default_factory=dict)
    plain: list[FrameRef] = field(default_factory=list)
    """Frames to show where there are no traces."""
    depth: list[FrameRef] = field(default_factory=list)
    """Frames whose depth is shown."""


def read_report_data(storage: Storage, manifest: Manifest | None = None) -> ReportData:
    """One pass over the numeric columns of all shards. Raises UserError for an unfinished output.

    `manifest` is given while the output is being finished, because its file is written last.
    """
    if manifest is None:
        manifest = read_manifest(storage)
    statistics = None
    if storage.exists(schema.STATISTICS_FILE):
        statistics = DatasetStatistics.from_json(statistics_entries(storage))
    data = ReportData(manifest, statistics, read_rejects(storage, manifest.shards))
    collector = _Collector(data, _strip_episodes(manifest))
    for shard in manifest.shards:
        if shard.rows:
            with open_parquet(storage, shard.name) as file:
                collector.add_file(shard.name, file)
    collector.finish()
    return data


def _strip_episodes(manifest: Manifest) -> set[EpisodeKey]:
    """At most `MAX_STRIPS` episodes, evenly spaced over the dataset."""
    episodes = [(shard.name, e) for shard in manifest.shards for e, _ in shard.episodes]
    picks = np.linspace(0, len(episodes) - 1, min(MAX_STRIPS, len(episodes))).astype(int)
    return {episodes[i] for i in picks}


class _Collector:
    """Folds row groups into a `ReportData`."""

    def __init__(self, data: ReportData, strip_episodes: set[EpisodeKey]) -> None:
        self._data = data
        self._strip_episodes = strip_episodes
        self._strip_rows: dict[EpisodeKey, list[NDArray[np.float32]]] = {}
        self._surest = _Smallest(CANDIDATES)
        self._worst = _Smallest(CANDIDATES)
        self._plain = _Smallest(CANDIDATES)
        self._depth = _Smallest(CANDIDATES)
        self._by_reason: dict[str, _Smallest] = {}
        self._outside = 0
        self._values = 0

    def add_file(self, name: str, file: pq.ParquetFile) -> None:
        """All row groups of one shard."""
        wanted = [
            schema.EPISODE_INDEX, schema.FRAME_INDEX, schema.TRACE_QUALITY,
            schema.TRACE_REJECT_REASON, schema.ACTION, schema.GRIPPER_POINTS,
        ]  # fmt: skip
        columns = [c for c in wanted if c in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns).combine_chunks()
            if schema.ACTION in columns and self._data.statistics is not None:
                self._add_actions(fixed_size_rows(table[schema.ACTION]), self._data.statistics)
            if schema.GRIPPER_POINTS in columns:
                self._add_points(table[schema.GRIPPER_POINTS])
            self._add_frames(name, group, table)

    def finish(self) -> None:
        """Choose the pictures and close the strips."""
        data = self._data
        if data.clipped_D is not None:
            data.clipped_D = data.clipped_D / max(self._values, 1)
        data.strips = {e: _strip(np.concatenate(q)) for e, q in self._strip_rows.items()}
        data.surest = spread_out(self._surest.sorted(), NUM_SUREST, per_episode=2)
        chosen = {(r.shard, r.episode, r.frame) for r in data.surest}
        worst = [r for r in self._worst.sorted() if (r.shard, r.episode, r.frame) not in chosen]
        data.worst = spread_out(worst, NUM_WORST, per_episode=NUM_WORST)
        data.rejected = {
            reason: spread_out(refs.sorted(), NUM_PER_REASON, per_episode=2)
            for reason, refs in sorted(self._by_reason.items())
        }
        data.plain = spread_out(self._plain.sorted(), NUM_SUREST, per_episode=2)
        data.depth = spread_out(self._depth.sorted(), NUM_DEPTH, per_episode=1)

    def _add_actions(self, action_ND: NDArray[np.float32], statistics: DatasetStatistics) -> None:
        limits = statistics.action
        span = np.where(limits.max > limits.min, limits.max - limits.min, 1)
        position = (action_ND - limits.min) / span * HISTOGRAM_BINS
        bins = np.clip(position.astype(np.int64), 0, HISTOGRAM_BINS - 1)
        counts = np.stack([np.bincount(b, minlength=HISTOGRAM_BINS) for b in bins.T])
        outside = ((action_ND < limits.q01) | (action_ND > limits.q99)).sum(axis=0)
        self._values += len(action_ND)
        data = self._data
        before = (data.action_histogram_DB, data.clipped_D)
        data.action_histogram_DB = counts if before[0] is None else before[0] + counts
        data.clipped_D = outside if before[1] is None else before[1] + outside

    def _add_points(self, column: pa.ChunkedArray) -> None:
        flat = pc.list_flatten(pc.list_flatten(column)).to_numpy()
        x, y = np.clip(flat.reshape(-1, 2).T * HEAT_CELLS, 0, HEAT_CELLS - 1).astype(np.int64)
        cells = np.bincount(y * HEAT_CELLS + x, minlength=HEAT_CELLS**2)
        heat = cells.reshape(HEAT_CELLS, HEAT_CELLS)
        data = self._data
        data.heat_YX = heat if data.heat_YX is None else data.heat_YX + heat

    def _add_frames(self, shard: str, group: int, table: pa.Table) -> None:
        episode = table[schema.EPISODE_INDEX].to_numpy()
        frame = table[schema.FRAME_INDEX].to_numpy()
        draw = _draw(episode, frame)
        if self._data.manifest.layout.depth_codes is not None:
            self._offer(self._depth, np.arange(len(episode)), draw, shard, group, table)
        if schema.TRACE_QUALITY not in table.column_names:
            self._offer(self._plain, np.arange(len(episode)), draw, shard, group, table)
            return
        quality = table[schema.TRACE_QUALITY].to_numpy()
        for e in np.unique(episode):
            if (shard, int(e)) in self._strip_episodes:
                self._strip_rows.setdefault((shard, int(e)), []).append(quality[episode == e])
        reasons = np.array(table[schema.TRACE_REJECT_REASON].to_pylist(), dtype=object)
        usable = np.array([r is None for r in reasons], dtype=bool)
        kept = np.flatnonzero(usable)
        # Equal qualities are broken by the draw, so that pictures come from the whole dataset.
        self._offer(self._worst, kept, quality + draw * 1e-6, shard, group, table)
        self._offer(self._surest, kept, draw * 1e-3 - quality.round(2), shard, group, table)
        for reason in sorted(set(reasons[~usable])):
            place = self._by_reason.setdefault(reason, _Smallest(CANDIDATES))
            self._offer(place, np.flatnonzero(reasons == reason), draw, shard, group, table)

    @staticmethod
    def _offer(
        place: _Smallest,
        rows: NDArray[np.int64],
        key: NDArray[np.floating],
        shard: str,
        group: int,
        table: pa.Table,
    ) -> None:
        names = table.column_names
        for row in rows[np.argsort(key[rows], kind="stable")][:CANDIDATES].tolist():
            quality, reason = 0.0, None
            if schema.TRACE_QUALITY in names:
                quality = float(table[schema.TRACE_QUALITY][row].as_py())
                reason = table[schema.TRACE_REJECT_REASON][row].as_py()
            ref = FrameRef(
                key=float(key[row]),
                episode=int(table[schema.EPISODE_INDEX][row].as_py()),
                frame=int(table[schema.FRAME_INDEX][row].as_py()),
                shard=shard,
                row_group=group,
                row=row,
                quality=quality,
                reason=reason,
            )
            if not place.offer(ref):
                break


class _Smallest:
    """The n smallest of all offered references."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, int, int, FrameRef]] = []

    def offer(self, ref: FrameRef) -> bool:
        """False where it was too large, and so will be everything larger."""
        entry = (-ref.key, -ref.episode, -ref.frame, ref)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
            return True
        return heapq.heappushpop(self._heap, entry)[3] is not ref

    def sorted(self) -> list[FrameRef]:
        """Smallest first."""
        return sorted(entry[3] for entry in self._heap)


def spread_out(refs: Sequence[FrameRef], count: int, *, per_episode: int) -> list[FrameRef]:
    """The first `count` that keep their distance; where an episode has its share, others come first."""
    chosen: list[FrameRef] = []
    for limit in (per_episode, count):
        for ref in refs:
            same = [c.frame for c in chosen if (c.shard, c.episode) == (ref.shard, ref.episode)]
            far = all(abs(ref.frame - frame) >= FRAME_DISTANCE for frame in same)
            if len(chosen) < count and len(same) < limit and far:
                chosen.append(ref)
    return sorted(chosen)


def fixed_size_rows(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A fixed-size-list column as [N, D]."""
    size = column.type.list_size
    return pc.list_flatten(column).to_numpy().reshape(-1, size)


def _draw(episode: NDArray[np.int32], frame: NDArray[np.int32]) -> NDArray[np.float64]:
    """A number in 0..1 per frame that looks random and depends on the frame alone."""
    mixed = (episode.astype(np.uint64) << np.uint64(32)) ^ frame.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def _strip(quality_T: NDArray[np.float32]) -> NDArray[np.float32]:
    """[T] -> mean quality in `STRIP_COLUMNS` equal parts; short episodes repeat frames."""
    edges = np.linspace(0, len(quality_T), STRIP_COLUMNS + 1)
    starts = np.minimum(edges[:-1].astype(int), len(quality_T) - 1)
    ends = np.maximum(np.ceil(edges[1:]).astype(int), starts + 1)
    total = np.concatenate([[0.0], np.cumsum(quality_T, dtype=np.float64)])
    return ((total[ends] - total[starts]) / (ends - starts)).astype(np.float32)


def iter_by_row_group(refs: Sequence[FrameRef]) -> Iterator[tuple[str, int, list[FrameRef]]]:
    """References grouped so that every row group is read once."""
    groups: dict[tuple[str, int], list[FrameRef]] = {}
    for ref in refs:
        groups.setdefault((ref.shard, ref.row_group), []).append(ref)
    for (shard, row_group), members in sorted(groups.items()):
        yield shard, row_group, members
