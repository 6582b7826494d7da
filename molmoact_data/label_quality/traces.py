"""What the trace filter is worth: traces against the truth, as pointed and with outliers put in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from molmoact_data.label_quality.metrics import TraceScores, trace_distance, trace_scores
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.labels.traces import TraceConfig, episode_traces, from_grid

KINDS = ("jump", "second_robot", "background", "missing")
"""Outliers of the kinds seen in the field, put into a track on purpose."""


@dataclass(frozen=True)
class FilterConfig:
    """How the trace filter is tried."""

    outlier_share: float = 0.2
    """Share of the points that are replaced, a quarter each by jumps, a second robot, background, nothing."""
    seed: int = 0
    """Of the replacement."""
    repeats: int = 5
    """Each episode is corrupted this many times with different outliers: one stretch per episode says little."""
    qualities: tuple[float, ...] = tuple(i / 20 for i in range(20))
    """Thresholds of the trade-off curve."""
    traces: TraceConfig = field(default_factory=TraceConfig)
    """The filter itself."""

    def __post_init__(self) -> None:
        if not 0 <= self.outlier_share < 1:
            raise ValueError(f"--outlier-share must lie in [0, 1), got {self.outlier_share}")


@dataclass(frozen=True)
class TracedEpisode:
    """The points of one arm in T frames, and the truth."""

    points: GripperPoints
    true_xy_T2: NDArray[np.float64]
    image_hw: tuple[int, int]
    episode_index: int


@dataclass(frozen=True)
class TradeOff:
    """Traces of at least this quality."""

    min_quality: float
    kept: float
    """Share of all frames."""
    precision: float | None


@dataclass(frozen=True)
class FilterScores:
    """Before and after the filter, with the points as they are and with outliers put in."""

    as_pointed_before: TraceScores
    as_pointed_after: TraceScores
    outlier_share: float
    with_outliers_before: TraceScores
    with_outliers_after: TraceScores
    trade_off: tuple[TradeOff, ...]
    """Of the filtered traces with outliers put in, by ascending quality."""


def filter_scores(episodes: Sequence[TracedEpisode], config: FilterConfig) -> FilterScores:
    """Over all frames of all episodes."""
    dirty = [put_outliers(e, config, repeat) for repeat in range(config.repeats) for e in episodes]
    off = replace(config.traces, filter=False)
    distance_T, quality_T = _distances(dirty, config.traces)
    return FilterScores(
        as_pointed_before=trace_scores(_distances(episodes, off)[0]),
        as_pointed_after=trace_scores(_distances(episodes, config.traces)[0]),
        outlier_share=config.outlier_share,
        with_outliers_before=trace_scores(_distances(dirty, off)[0]),
        with_outliers_after=trace_scores(distance_T),
        trade_off=tuple(trade_off(distance_T, quality_T, q) for q in config.qualities),
    )


def put_outliers(episode: TracedEpisode, config: FilterConfig, repeat: int) -> TracedEpisode:
    """The episode with outliers; their confidence is that of an ordinary point, as in the field."""
    rng = np.random.default_rng([config.seed, repeat, episode.episode_index])
    xy_T2, _ = inject_outliers(episode.points.xy_NA2[:, 0], config.outlier_share, rng)
    found_T1 = ~np.isnan(xy_T2[:, :1])
    confidence_T1 = np.where(found_T1, np.maximum(episode.points.confidence_NA, 0.5), 0)
    points = GripperPoints(xy_T2[:, None], confidence_T1.astype(np.float32))
    return replace(episode, points=points)


def trade_off(
    distance_T: NDArray[np.float64], quality_T: NDArray[np.float32], min_quality: float
) -> TradeOff:
    """What a threshold on `trace_quality` keeps, and how much of it is right."""
    scores = trace_scores(np.where(quality_T >= min_quality, distance_T, np.nan))
    return TradeOff(min_quality, scores.kept, scores.precision)


def _distances(
    episodes: Sequence[TracedEpisode], config: TraceConfig
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Distance of every frame's trace to the truth (NaN = none), and its quality, over all episodes."""
    distances, qualities = [], []
    for episode in episodes:
        traces = episode_traces(episode.points, config)
        distances.append(
            trace_distance(
                from_grid(traces.points_P2),
                traces.frame_P,
                np.diff(traces.offsets),
                episode.true_xy_T2,
                episode.image_hw,
            )
        )
        qualities.append(traces.quality_T)
    return np.concatenate(distances), np.concatenate(qualities)


def inject_outliers(
    xy_T2: NDArray[np.float32], share: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Replace `share` of the T points, a quarter by each kind; returns the points and the kind [T], -1 = untouched.

    `jump`: single frames land anywhere in the picture. `second_robot`: one stretch of frames follows another
    arm, the same track mirrored left to right. `background`: scattered frames land on one fixed object, with
    1 % of noise. `missing`: scattered frames have no point.
    """
    points = xy_T2.copy()
    kind_T = np.full(len(points), -1, np.int8)
    each = round(share * len(points) / len(KINDS))
    if each == 0:
        return points, kind_T
    start = rng.integers(0, len(points) - each + 1)
    stretch = np.arange(start, start + each)
    points[stretch] = points[stretch] * [-1, 1] + [1, 0]
    kind_T[stretch] = KINDS.index("second_robot")
    jumps, background, missing = _scattered(kind_T, each, rng)
    points[jumps] = rng.uniform(0, 1, (each, 2))
    spot = rng.uniform(0.05, 0.95, 2)
    points[background] = np.clip(spot + rng.normal(0, 0.01, (each, 2)), 0, 1)
    points[missing] = np.nan
    for frames, kind in ((jumps, "jump"), (background, "background"), (missing, "missing")):
        kind_T[frames] = KINDS.index(kind)
    return points, kind_T


def _scattered(
    kind_T: NDArray[np.int8], each: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Three disjoint random sets of `each` untouched frames."""
    chosen = rng.permutation(np.flatnonzero(kind_T == -1))[: 3 * each]
    first, second, third = np.split(chosen, [each, 2 * each])
    return first, second, third
