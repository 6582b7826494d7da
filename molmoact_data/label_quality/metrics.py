"""How far labels are from the truth: pure numpy, one definition per number.

Pixels are those of a picture whose longer side is 256, so that numbers of different cameras compare.
Letters: T frames, H/W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REFERENCE_SIDE = 256
PCK_PX = (2, 4, 8, 16)
EDGE_RATIO = 1.05
EDGE_TOLERANCE_PX = 2

Array = NDArray[np.floating]


@dataclass(frozen=True)
class DepthScores:
    """One frame's estimated inverse depth against the true depth in metres."""

    rank_correlation: float
    """Spearman, of the estimate with 1 / true depth."""
    abs_rel: float
    """Mean |z' - z| / z after the best scale and shift of the inverse depth."""
    delta1: float
    """Share of pixels within a factor of 1.25 after the same alignment."""
    edge_f1: float | None
    """True depth edges that are found: as many strongest steps of the estimate as there are true edges (a step
    of 5 % to a neighbour), matched within 2 px. None where the picture has no edge."""


def depth_scores(estimate_HW: Array, true_m_HW: Array) -> DepthScores:
    """Over the pixels whose true depth is known (finite and > 0). Raises ValueError where there is none."""
    known_HW = np.isfinite(true_m_HW) & (true_m_HW > 0)
    if not known_HW.any():
        raise ValueError("the true depth of the frame is unknown everywhere")
    true_m = true_m_HW[known_HW].astype(np.float64)
    aligned_HW = align_inverse_depth(estimate_HW, true_m_HW, known_HW)
    # A depth beyond what the picture holds would dominate the mean for one wrong pixel.
    depth_m = 1 / np.clip(aligned_HW[known_HW], 1 / true_m.max(), 1 / true_m.min())
    ratio = np.maximum(depth_m / true_m, true_m / depth_m)
    return DepthScores(
        rank_correlation=rank_correlation(estimate_HW[known_HW], 1 / true_m),
        abs_rel=float(np.mean(np.abs(depth_m - true_m) / true_m)),
        delta1=float(np.mean(ratio < 1.25)),
        edge_f1=edge_f1(aligned_HW, np.where(known_HW, true_m_HW, np.nan)),
    )


def align_inverse_depth(
    estimate_HW: Array, true_m_HW: Array, known_HW: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The estimate, scaled and shifted to the true inverse depth (1/m) by least squares."""
    estimate = estimate_HW.astype(np.float64)
    design = np.stack([estimate[known_HW], np.ones(known_HW.sum())], axis=1)
    (scale, shift), *_ = np.linalg.lstsq(design, 1 / true_m_HW[known_HW], rcond=None)
    return scale * estimate + shift


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's correlation with average ranks for ties; 0 where one side is constant."""
    ranks = [_average_ranks(values) for values in (a, b)]
    spread = [np.std(r) for r in ranks]
    if not all(spread):
        return 0.0
    centred = [r - r.mean() for r in ranks]
    return float(np.mean(centred[0] * centred[1]) / (spread[0] * spread[1]))


def _average_ranks(values: Array) -> NDArray[np.float64]:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group.ravel()]


def edge_f1(inverse_depth_HW: Array, true_m_HW: Array) -> float | None:
    """See `DepthScores.edge_f1`; unknown true pixels (NaN) make no edges."""
    true_step = _largest_step(np.log(true_m_HW))
    true_edge = true_step > np.log(EDGE_RATIO)
    if not true_edge.any():
        return None
    step = np.where(np.isnan(true_step), -np.inf, _largest_step(inverse_depth_HW))
    threshold = np.partition(step.ravel(), -true_edge.sum())[-true_edge.sum()]
    edge = step >= max(threshold, np.finfo(np.float64).tiny)
    if not edge.any():
        return 0.0
    precision = (edge & _dilate(true_edge)).sum() / edge.sum()
    recall = (true_edge & _dilate(edge)).sum() / true_edge.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _largest_step(values_HW: Array) -> NDArray[np.float64]:
    """The larger of the absolute steps to the right and the lower neighbour; NaN where one is unknown."""
    steps = np.zeros((2, *values_HW.shape))
    steps[0, :, :-1] = np.abs(np.diff(values_HW, axis=1))
    steps[1, :-1] = np.abs(np.diff(values_HW, axis=0))
    return steps.max(axis=0)


def _dilate(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels within a square of `EDGE_TOLERANCE_PX` around the mask."""
    reach = EDGE_TOLERANCE_PX
    padded = np.pad(mask_HW, reach)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1))
    return np.asarray(windows.any(axis=(2, 3)))


@dataclass(frozen=True)
class PointScores:
    """Points of T frames against the truth. Not found is wrong."""

    frames: int
    found: float
    """Share of the frames with a point."""
    median_px: float | None
    """Of the found points; None where there is none."""
    p95_px: float | None
    """95th percentile of the found points."""
    pck: dict[str, float]
    """Share of all frames within 2, 4, 8 and 16 px."""


def point_scores(error_px_T: Array) -> PointScores:
    """From distances to the truth in reference pixels, NaN = not found. At least one frame."""
    found_px = error_px_T[~np.isnan(error_px_T)]
    return PointScores(
        frames=len(error_px_T),
        found=len(found_px) / len(error_px_T),
        median_px=float(np.median(found_px)) if len(found_px) else None,
        p95_px=float(np.percentile(found_px, 95)) if len(found_px) else None,
        pck={str(px): float(np.sum(found_px <= px) / len(error_px_T)) for px in PCK_PX},
    )


def point_error_px(xy_T2: Array, true_xy_T2: Array, image_hw: tuple[int, int]) -> Array:
    """Distance [T] of unit coordinates in reference pixels; NaN where not found."""
    height, width = image_hw
    to_px = np.array([width - 1, height - 1]) * (REFERENCE_SIDE - 1) / max(width - 1, height - 1, 1)
    return np.linalg.norm((xy_T2 - true_xy_T2) * to_px, axis=1)


@dataclass(frozen=True)
class TraceScores:
    """Traces of T frames against where the gripper was at the same moments."""

    frames: int
    kept: float
    """Share of the frames with a trace."""
    precision: float | None
    """Share of the traces whose mean distance is below 5 % of the diagonal; None without traces."""
    mean_distance: float | None
    """Mean over the traces of the mean distance of their points, share of the diagonal."""


CORRECT_DISTANCE = 0.05


def trace_scores(distance_T: Array) -> TraceScores:
    """From the mean distance of every frame's trace (share of the diagonal), NaN = no trace."""
    traced = distance_T[~np.isnan(distance_T)]
    return TraceScores(
        frames=len(distance_T),
        kept=len(traced) / len(distance_T),
        precision=float(np.mean(traced < CORRECT_DISTANCE)) if len(traced) else None,
        mean_distance=float(np.mean(traced)) if len(traced) else None,
    )


def trace_distance(
    points_P2: Array,
    frame_P: NDArray[np.integer],
    counts_T: NDArray[np.integer],
    true_xy_T2: Array,
    image_hw: tuple[int, int],
) -> NDArray[np.float64]:
    """Mean distance [T] of every trace's points to the truth at the same frames, share of the diagonal.

    The traces of T frames end to end: `counts_T` points each, in unit coordinates [P,2], each seen in frame
    `frame_P`. NaN where a frame has no trace.
    """
    height, width = image_hw
    to_px = np.array([width - 1, height - 1], np.float64)
    apart_P = np.linalg.norm((points_P2 - true_xy_T2[frame_P]) * to_px, axis=1)
    owner_P = np.repeat(np.arange(len(counts_T)), counts_T)
    sum_T = np.bincount(owner_P, apart_P, minlength=len(counts_T))
    empty_is_nan_T = np.where(counts_T > 0, counts_T, np.nan)
    return sum_T / empty_is_nan_T / np.linalg.norm(to_px)
