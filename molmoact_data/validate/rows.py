"""The record held to its table, column by column. Pure: a table of rows in, problems out.

T rows, G codes, A arms, H chunk steps, D action dimensions. Rows of an episode are consecutive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.labels.actions import bin_actions, chunk, normalize
from molmoact_data.labels.traces import to_grid
from molmoact_data.outputs.columns import fixed_array
from molmoact_data.statistics import DatasetStatistics
from molmoact_data.validate.findings import Finding, Problem

MAY_BE_NULL = frozenset({schema.TRACE_REJECT_REASON})


@dataclass(frozen=True)
class Expectation:
    """What the rows of an output are measured against."""

    sources: frozenset[tuple[str, str]]
    """(dataset, revision) pairs of the manifest."""
    codebook_size: int
    max_trace_points: int
    filtered_traces: bool
    """With the filter, a trace starts at this frame's own point."""
    num_bins: int
    statistics: DatasetStatistics | None


class RowChecker:
    """Checks of one shard's rows without images; `where` is the shard's name."""

    def __init__(self, table: pa.Table, where: str, expected: Expectation) -> None:
        self._table = table
        self._where = where
        self._expected = expected
        self._episode_T = table[schema.EPISODE_INDEX].to_numpy()
        self._frame_T = table[schema.FRAME_INDEX].to_numpy()

    def problems(self) -> Iterator[Problem]:
        """Everything that is wrong, in column order. Stops early at nulls, which nothing else expects."""
        nulls = list(self._nulls())
        yield from nulls
        if nulls:
            return
        yield from self._keys()
        yield from self._texts()
        yield from self._depth()
        yield from self._traces()
        yield from self._actions()

    def _has(self, name: str) -> bool:
        return name in self._table.column_names

    def _at(self, finding: Finding, wrong_T: NDArray[np.bool_], detail: str) -> Iterator[Problem]:
        """One problem for all rows where `wrong_T` holds, naming the first."""
        rows = np.flatnonzero(wrong_T)
        if len(rows):
            row = rows[0]
            place = f"{self._where}: episode {self._episode_T[row]}, frame {self._frame_T[row]}"
            more = f" (and {len(rows) - 1} more rows)" if len(rows) > 1 else ""
            yield Problem(finding, place, detail + more)

    def _nulls(self) -> Iterator[Problem]:
        for name in self._table.column_names:
            if name not in MAY_BE_NULL and self._table[name].null_count:
                wrong_T = pc.is_null(self._table[name]).to_numpy()
                yield from self._at(Finding.VALUE_MISSING, wrong_T, f"{name} is null")

    def _keys(self) -> Iterator[Problem]:
        new_T = np.diff(self._episode_T, prepend=-1) != 0
        new_T |= _changes(self._table[schema.DATASET]) | _changes(self._table[schema.REVISION])
        expected_T = _count_since(new_T)
        yield from self._at(
            Finding.FRAME_MISSING,
            self._frame_T != expected_T,
            "frame_index is not 0, 1, 2, ... within its episode",
        )
        timestamp_T = self._table[schema.TIMESTAMP_S].to_numpy()
        wrong_T = ~new_T & ~(np.diff(timestamp_T, prepend=0) > 0)
        wrong_T |= ~np.isfinite(timestamp_T) | (timestamp_T < 0)
        yield from self._at(Finding.TIMESTAMP_NOT_INCREASING, wrong_T, "timestamp_s does not grow")

    def _texts(self) -> Iterator[Problem]:
        length_T = pc.utf8_length(pc.utf8_trim_whitespace(self._table[schema.INSTRUCTION]))
        yield from self._at(
            Finding.INSTRUCTION_EMPTY, length_T.to_numpy() == 0, "the instruction is empty"
        )
        datasets = self._table[schema.DATASET].to_pylist()
        revisions = self._table[schema.REVISION].to_pylist()
        known = self._expected.sources
        wrong_T = np.array([p not in known for p in zip(datasets, revisions, strict=True)])
        yield from self._at(
            Finding.DATASET_DIFFERS, wrong_T, "dataset and revision are not those of the manifest"
        )

    def _depth(self) -> Iterator[Problem]:
        if not self._has(schema.DEPTH_CODES):
            return
        codes_TG = fixed_array(self._table[schema.DEPTH_CODES])
        size = self._expected.codebook_size
        wrong_T = np.any((codes_TG < 0) | (codes_TG >= size), axis=1)
        yield from self._at(
            Finding.DEPTH_CODE_OUT_OF_RANGE, wrong_T, f"a depth code is outside 0..{size - 1}"
        )
        range_T2 = fixed_array(self._table[schema.DEPTH_RANGE])
        wrong_T = ~np.isfinite(range_T2).all(axis=1) | (range_T2[:, 0] > range_T2[:, 1])
        yield from self._at(
            Finding.DEPTH_RANGE_INVALID, wrong_T, "depth_range is not a finite (min, max)"
        )
        yield from self._depth_buffer(codes_TG)

    def _depth_buffer(self, codes_TG: NDArray[np.integer]) -> Iterator[Problem]:
        if not self._has(schema.BUFFER_CODES):
            return
        names = (schema.BUFFER_CODES, schema.DEPTH_UPDATED_MASK)
        buffer_TG, updated_TG = (fixed_array(self._table[name]) for name in names)
        first_T = self._frame_T == 0
        yield from self._at(
            Finding.DEPTH_BUFFER_DIFFERS,
            first_T & ~updated_TG.all(axis=1),
            "an episode's first frame keeps codes of a frame before it",
        )
        kept_TG = np.concatenate([buffer_TG[:1], buffer_TG[:-1]])
        wrong_T = (buffer_TG != np.where(updated_TG, codes_TG, kept_TG)).any(axis=1)
        detail = "buffer_codes are not the updated cells' codes and the frame before's buffer"
        yield from self._at(Finding.DEPTH_BUFFER_DIFFERS, wrong_T, detail)

    def _traces(self) -> Iterator[Problem]:
        if not self._has(schema.TRACE):
            return
        names = (schema.GRIPPER_POINTS, schema.GRIPPER_CONFIDENCE, schema.TRACE)
        points, confidence, traces = (self._table[name].to_pylist() for name in names)
        arms_T = np.array(
            [
                len({len(p), len(c), len(t)}) != 1
                for p, c, t in zip(points, confidence, traces, strict=True)
            ]
        )
        if arms_T.any():
            detail = "points, confidences and traces are of different numbers of arms"
            yield from self._at(Finding.ARMS_DIFFER, arms_T, detail)
            return
        yield from self._points(points, confidence)
        yield from self._trace_shapes(traces)
        yield from self._trace_verdicts(points, traces)

    def _points(
        self, points: list[list[list[float] | None]], confidence: list[list[float]]
    ) -> Iterator[Problem]:
        outside_T = np.array([any(not _is_point(p) for p in arms) for arms in points])
        yield from self._at(
            Finding.POINT_INVALID, outside_T, "a gripper point is not (x, y) of finite numbers"
        )
        wrong_T = np.array(
            [
                any(not 0 <= c <= 1 or (p is None and c != 0) for p, c in zip(ps, cs, strict=True))
                for ps, cs in zip(points, confidence, strict=True)
            ]
        )
        detail = "a confidence is outside 0..1, or not 0 where no point was found"
        yield from self._at(Finding.CONFIDENCE_INVALID, wrong_T, detail)

    def _trace_shapes(self, traces: list[list[list[list[int]]]]) -> Iterator[Problem]:
        longest = self._expected.max_trace_points
        long_T = np.array([any(len(trace) > longest for trace in arms) for arms in traces])
        yield from self._at(
            Finding.TRACE_TOO_LONG, long_T, f"a trace has more than {longest} points"
        )
        outside_T = np.array(
            [any(not 0 <= v <= 255 for t in arms for xy in t for v in xy) for arms in traces]
        )
        yield from self._at(Finding.TRACE_OUT_OF_GRID, outside_T, "a trace leaves 0..255")

    def _trace_verdicts(
        self, points: list[list[list[float] | None]], traces: list[list[list[list[int]]]]
    ) -> Iterator[Problem]:
        quality_T = self._table[schema.TRACE_QUALITY].to_numpy()
        wrong_T = ~((quality_T >= 0) & (quality_T <= 1))
        yield from self._at(Finding.TRACE_QUALITY_INVALID, wrong_T, "trace_quality is outside 0..1")
        usable_T = pc.is_null(self._table[schema.TRACE_REJECT_REASON]).to_numpy()
        whole_T = np.array([all(arms) and bool(arms) for arms in traces])
        detail = "a usable row without a trace, or a rejected one with all its traces"
        yield from self._at(Finding.TRACE_REASON_INCONSISTENT, usable_T != whole_T, detail)
        if self._expected.filtered_traces:
            detached_T = np.array(
                [
                    any(not _starts_at(trace, point) for trace, point in zip(ts, ps, strict=True))
                    for ts, ps in zip(traces, points, strict=True)
                ]
            )
            detail = "the trace's first point is not this frame's gripper point"
            yield from self._at(Finding.TRACE_NOT_FROM_NOW, detached_T, detail)

    def _actions(self) -> Iterator[Problem]:
        if self._has(schema.STATE):
            wrong_T = ~np.isfinite(fixed_array(self._table[schema.STATE])).all(axis=1)
            yield from self._at(Finding.STATE_NON_FINITE, wrong_T, "the state has NaN or infinity")
        if not self._has(schema.ACTION):
            return
        action_TD = fixed_array(self._table[schema.ACTION])
        wrong_T = ~np.isfinite(action_TD).all(axis=1)
        yield from self._at(Finding.ACTION_NON_FINITE, wrong_T, "the action has NaN or infinity")
        bins_THD = fixed_array(self._table[schema.ACTION_BINS])
        num_bins = self._expected.num_bins
        outside_T = np.any((bins_THD < 1) | (bins_THD > num_bins), axis=(1, 2))
        detail = f"an action bin is outside 1..{num_bins}"
        yield from self._at(Finding.ACTION_BIN_OUT_OF_RANGE, outside_T, detail)
        if self._expected.statistics is not None and not wrong_T.any():
            yield from self._tokens(action_TD, bins_THD, self._expected.statistics)

    def _tokens(
        self,
        action_TD: NDArray[np.float32],
        bins_THD: NDArray[np.int16],
        statistics: DatasetStatistics,
    ) -> Iterator[Problem]:
        """Bins computed again from the raw actions and the statistics file."""
        bins_TD = bin_actions(normalize(action_TD, statistics), self._expected.num_bins)
        again = [chunk(bins_TD[rows], bins_THD.shape[1]) for rows in _runs(self._episode_T)]
        expected_THD = np.concatenate([bins for bins, _ in again])
        disagree_T = (bins_THD != expected_THD).any(axis=(1, 2))
        detail = "action_bins are not those of the raw actions under these statistics"
        yield from self._at(Finding.ACTION_BINS_DISAGREE, disagree_T, detail)
        valid_T = self._table[schema.NUM_VALID_ACTIONS].to_numpy()
        wrong_T = valid_T != np.concatenate([valid for _, valid in again])
        detail = "num_valid_actions is not the number of steps left in the episode"
        yield from self._at(Finding.NUM_VALID_ACTIONS_WRONG, wrong_T, detail)


def _is_point(point: list[float] | None) -> bool:
    return point is None or (len(point) == 2 and all(np.isfinite(v) for v in point))


def _starts_at(trace: list[list[int]], point: list[float] | None) -> bool:
    if not trace:
        return True
    if point is None or not all(0 <= value <= 1 for value in point):
        return False
    return to_grid(np.asarray(point, dtype=np.float32)).tolist() == list(trace[0])


def _changes(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    values = column.to_numpy()
    return np.concatenate([[True], values[1:] != values[:-1]])


def _count_since(start_T: NDArray[np.bool_]) -> NDArray[np.int64]:
    """0, 1, 2, ... restarting where `start_T` is true; the first row starts."""
    place_T = np.arange(len(start_T))
    return place_T - np.maximum.accumulate(np.where(start_T, place_T, 0))


def _runs(values_T: NDArray[np.generic]) -> list[slice]:
    """Slices of equal neighbours."""
    edges = np.flatnonzero(np.diff(values_T)) + 1
    stops = [*edges.tolist(), len(values_T)]
    return [slice(a, b) for a, b in zip([0, *stops[:-1]], stops, strict=True)]
