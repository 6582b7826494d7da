"""Gripper points of an episode -> one short trace per frame and arm: filter, sub-sample, grid.

Coordinates: unit (0..1 over the frame, x right, y down) while filtering, grid (0..255) in the record.
Letters: T frames, A arms, P trace points of all frames together. The trace of a frame is what the gripper
does from now to the episode's end; its first point is now.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from molmoact_data.labels.outliers import OutlierConfig, Verdict, judge_points
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.schema import TRACE_MAX_POINTS

GRID_MAX = 255
MIN_USABLE_POINTS = 2
"""A path of one point cannot be drawn or followed, so nothing is said or asked about it."""
Point = TypeVar("Point")


class TraceRejectReason(enum.StrEnum):
    """Why a frame has no trace. The value is what `trace_reject_reason` and reports spell."""

    NO_POINT_NOW = "no_point_now"
    OUT_OF_FRAME = "out_of_frame"
    JUMP = "jump"
    OTHER_TRACK = "other_track"
    NO_CONSISTENT_PATH = "no_consistent_path"
    TOO_FEW_POINTS_LEFT = "too_few_points_left"
    NO_POINT_LEFT = "no_point_left"


# Reasons travel as small integers; 0 = kept.
_REASONS = tuple(TraceRejectReason)
_CODE = {reason: index + 1 for index, reason in enumerate(_REASONS)}
_CODE_OF_VERDICT = {
    Verdict.JUMP: _CODE[TraceRejectReason.JUMP],
    Verdict.OTHER_TRACK: _CODE[TraceRejectReason.OTHER_TRACK],
    Verdict.NO_CONSISTENT_PATH: _CODE[TraceRejectReason.NO_CONSISTENT_PATH],
}


@dataclass(frozen=True)
class TraceConfig:
    """How points become traces."""

    max_points: int = TRACE_MAX_POINTS
    """Points per trace, 1..5; the reference's `--line-length`."""
    filter: bool = True
    """Remove outliers; False = trust every point, as the reference does."""
    min_future_coverage: float = 0.25
    """With the filter: the least share of frames from now on that must hold a kept point."""
    outliers: OutlierConfig = field(default_factory=OutlierConfig)
    """What counts as an outlier."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_points <= TRACE_MAX_POINTS:
            raise ValueError(f"max_points must be 1..{TRACE_MAX_POINTS}, got {self.max_points}")
        if not 0 <= self.min_future_coverage <= 1:
            raise ValueError(f"min_future_coverage must be 0..1, got {self.min_future_coverage}")


@dataclass(frozen=True)
class EpisodeTraces:
    """The traces of T frames with A arms, flat: the points of (frame t, arm a) are
    `points_P2[offsets[t * A + a] : offsets[t * A + a + 1]]`.
    """

    points_P2: NDArray[np.uint8]
    frame_P: NDArray[np.int32]
    """The frame that each point was seen in."""
    offsets: NDArray[np.int32]
    """[T * A + 1]"""
    quality_TA: NDArray[np.float32]
    """0..1: pointer confidence now x share of the nearest points that agree with it x share of the
    frames from now on that hold a kept point. 0 where there is no trace."""
    reason_code_TA: NDArray[np.int8]
    """0 = has a trace; otherwise 1 + the index in `TraceRejectReason`."""
    kept_TA: NDArray[np.bool_]
    """Which points are used in traces."""

    @property
    def num_arms(self) -> int:
        """Arms per frame, A."""
        return self.kept_TA.shape[1]

    @property
    def trace(self) -> list[list[list[list[int]]]]:
        """Nested lists: frame, arm, point, (x, y)."""
        runs = [p.tolist() for p in np.split(self.points_P2, self.offsets[1:-1])]
        arms = self.num_arms
        return [runs[t * arms : (t + 1) * arms] for t in range(len(self.kept_TA))]

    @property
    def quality_T(self) -> NDArray[np.float32]:
        """Quality of the worst arm."""
        return self.quality_TA.min(axis=1)

    @property
    def frame_reason_code_T(self) -> NDArray[np.int8]:
        """The reason code of the first arm without a trace; 0 where all arms have one."""
        first = np.argmax(self.reason_code_TA != 0, axis=1)
        return self.reason_code_TA[np.arange(len(first)), first]

    @property
    def reject_reason_T(self) -> list[str | None]:
        """Per frame, why an arm has no trace; None = usable."""
        return [None if c == 0 else _REASONS[c - 1].value for c in self.frame_reason_code_T]


def is_usable(arms: Sequence[Sequence[Any]] | None, reject_reason: str | None) -> bool:
    """Whether a frame's trace may be drawn, exported, trained on: not rejected, and every arm has a path.

    `arms` is the record's `trace`: per arm the [x, y] points. The one rule for everybody;
    `outputs.columns.usable_traces` is the same for whole columns.
    """
    return reject_reason is None and bool(arms) and min(map(len, arms or [])) >= MIN_USABLE_POINTS


def reason_names() -> list[str]:
    """The spelling of reason code 1, 2, ..."""
    return [reason.value for reason in _REASONS]


def subsample(points: Sequence[Point | None], k: int = TRACE_MAX_POINTS) -> list[Point]:
    """At most k of the found points, evenly spaced by count, first and last included.

    The one-frame form of what `episode_traces` does for a whole episode; equal to the reference.
    """
    found = [p for p in points if p is not None]
    if len(found) <= k:
        return found
    return [found[int(i)] for i in np.linspace(0, len(found) - 1, k)]


def to_grid(xy_unit: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Unit coordinates [..., 2] in 0..1 -> grid 0..255 (nearest). Raises ValueError outside."""
    xy = np.asarray(xy_unit)
    if xy.size and not (xy.min() >= 0 and xy.max() <= 1):  # NaN fails too
        raise ValueError("unit coordinates must be finite and within 0..1")
    return np.rint(xy * GRID_MAX).astype(np.uint8)


def from_grid(xy_grid: NDArray[np.integer]) -> NDArray[np.float64]:
    """Grid 0..255 -> unit coordinates; the inverse of `to_grid` to half a grid step."""
    return np.asarray(xy_grid, dtype=np.float64) / GRID_MAX


def episode_traces(points: GripperPoints, config: TraceConfig) -> EpisodeTraces:
    """All traces of one episode's points, in frame order.

    With the filter, a frame whose own point is missing or an outlier has no trace (its first point would
    not be now). Without it, the trace starts at the next found point, as the reference does.
    """
    arms = [
        _arm_traces(points.xy_NA2[:, a], points.confidence_NA[:, a], config)
        for a in range(points.xy_NA2.shape[1])
    ]
    counts_TA = np.stack([arm.counts_T for arm in arms], axis=1)
    offsets = np.concatenate([[0], np.cumsum(counts_TA)]).astype(np.int32)
    points_P2 = np.empty((int(offsets[-1]), 2), dtype=np.uint8)
    frame_P = np.empty(int(offsets[-1]), dtype=np.int32)
    starts_TA = offsets[:-1].reshape(counts_TA.shape)
    for a, arm in enumerate(arms):
        first_of_run = np.repeat(starts_TA[:, a] - _starts(arm.counts_T), arm.counts_T)
        place_P = first_of_run + np.arange(len(arm.points_P2))
        points_P2[place_P], frame_P[place_P] = arm.points_P2, arm.frame_P
    return EpisodeTraces(
        points_P2=points_P2,
        frame_P=frame_P,
        offsets=offsets,
        quality_TA=np.stack([arm.quality_T for arm in arms], axis=1),
        reason_code_TA=np.stack([arm.reason_code_T for arm in arms], axis=1),
        kept_TA=np.stack([arm.kept_T for arm in arms], axis=1),
    )


@dataclass(frozen=True)
class _ArmTraces:
    points_P2: NDArray[np.uint8]
    frame_P: NDArray[np.int64]
    counts_T: NDArray[np.int64]
    quality_T: NDArray[np.float32]
    reason_code_T: NDArray[np.int8]
    kept_T: NDArray[np.bool_]


def _arm_traces(
    xy_T2: NDArray[np.float32], confidence_T: NDArray[np.float32], config: TraceConfig
) -> _ArmTraces:
    num_frames = len(xy_T2)
    found_T = np.all(~np.isnan(xy_T2), axis=1)
    inside_T = found_T & np.all((xy_T2 >= 0) & (xy_T2 <= 1), axis=1)
    found = np.flatnonzero(inside_T)
    judged = judge_points(xy_T2[found], found, config.outliers)
    kept_T = np.zeros(num_frames, dtype=bool)
    kept_T[found[judged.kept_N] if config.filter else found] = True
    coverage_T = np.cumsum(kept_T[::-1])[::-1] / np.arange(num_frames, 0, -1)
    if config.filter:
        verdict_T = np.full(num_frames, Verdict.KEPT)
        verdict_T[found] = judged.verdict_N
        reason_T = _reasons(found_T, inside_T, verdict_T, coverage_T, config.min_future_coverage)
    else:
        reason_T = np.where(coverage_T == 0, _CODE[TraceRejectReason.NO_POINT_LEFT], 0)

    quality_T = np.zeros(num_frames)
    quality_T[found] = judged.agreement_N
    quality_T *= coverage_T * np.clip(confidence_T, 0, 1)
    quality_T[reason_T != 0] = 0
    pick = _evenly_in_time if config.filter else _evenly_by_count
    index_UK, taken_UK = pick(kept_T, reason_T == 0, config.max_points)
    counts_T = np.zeros(num_frames, dtype=np.int64)
    counts_T[reason_T == 0] = taken_UK.sum(axis=1)
    grid_M2 = to_grid(xy_T2[kept_T])
    index_P = index_UK[taken_UK]
    return _ArmTraces(
        points_P2=grid_M2[index_P],
        frame_P=np.flatnonzero(kept_T)[index_P],
        counts_T=counts_T,
        quality_T=quality_T.astype(np.float32),
        reason_code_T=reason_T.astype(np.int8),
        kept_T=kept_T,
    )


def _reasons(
    found_T: NDArray[np.bool_],
    inside_T: NDArray[np.bool_],
    verdict_T: NDArray[np.integer],
    coverage_T: NDArray[np.floating],
    min_future_coverage: float,
) -> NDArray[np.int64]:
    """Why a frame has no trace, 0 = it has one; what is wrong with the point of *now* comes first."""
    reason_T = np.zeros(len(found_T), dtype=np.int64)
    reason_T[coverage_T < min_future_coverage] = _CODE[TraceRejectReason.TOO_FEW_POINTS_LEFT]
    for verdict, code in _CODE_OF_VERDICT.items():
        reason_T[verdict_T == verdict] = code
    reason_T[found_T & ~inside_T] = _CODE[TraceRejectReason.OUT_OF_FRAME]
    reason_T[~found_T] = _CODE[TraceRejectReason.NO_POINT_NOW]
    return reason_T


def _evenly_by_count(
    kept_T: NDArray[np.bool_], usable_T: NDArray[np.bool_], k: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """`subsample` from every usable frame on: indices [U, k] into the kept points, and which are taken."""
    left_U: NDArray[np.int64] = np.cumsum(kept_T[::-1], dtype=np.int64)[::-1][usable_T]
    index_UK = np.count_nonzero(kept_T) - left_U[:, None] + _spread(left_U, k)
    return index_UK, np.arange(k) < left_U[:, None]


def _evenly_in_time(
    kept_T: NDArray[np.bool_], usable_T: NDArray[np.bool_], k: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """As `_evenly_by_count`, but the kept points nearest to evenly spaced instants until the episode's end.

    Equal to it where every point is kept; where a stretch was rejected, the others keep their pace.
    """
    frames_U = np.flatnonzero(usable_T)
    left_U = len(kept_T) - frames_U
    wanted_UK = frames_U[:, None] + _spread(left_U, k)
    index_UK = _nearest_kept(kept_T)[np.minimum(wanted_UK, len(kept_T) - 1)]
    taken_UK = np.arange(k) < left_U[:, None]
    taken_UK[:, 1:] &= index_UK[:, 1:] != index_UK[:, :-1]
    return index_UK, taken_UK


def _spread(left_U: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """[U, k] evenly spaced steps 0..left-1, truncated; 0, 1, 2, ... where there are at most k."""
    spread_UK = np.linspace(0, np.maximum(left_U - 1, 0), k, axis=1).astype(np.int64)
    spread_UK[left_U <= k] = np.arange(k)
    return spread_UK


def _nearest_kept(kept_T: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[T] for every frame, the position among the kept points of the one nearest in time."""
    kept = np.flatnonzero(kept_T)
    if len(kept) == 0:
        return np.zeros(len(kept_T), dtype=np.int64)
    frames_T = np.arange(len(kept_T))
    after_T = np.minimum(np.searchsorted(kept, frames_T), len(kept) - 1)
    before_T = np.maximum(after_T - 1, 0)
    nearer_before = np.abs(frames_T - kept[before_T]) < np.abs(kept[after_T] - frames_T)
    return np.where(nearer_before, before_T, after_T)


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each run begins when runs of these lengths are laid end to end."""
    return np.cumsum(counts) - counts
