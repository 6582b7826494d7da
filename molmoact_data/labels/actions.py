"""Actions to bins and back: normalise, bin, chunk, and each inverse next to it.

Letters: T frames, D action dimensions, H chunk steps. Bins are 1..num_bins over [-1, 1]; bin d has the
centre -1 + (2 * min(d - 1, num_bins - 2) + 1) / (num_bins - 1), so the last two bins share a centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.statistics import DEFAULT_NUM_BINS, MAX_NUM_BINS, DatasetStatistics

MIN_NUM_BINS = 2


def normalize(
    action_TD: NDArray[np.floating], statistics: DatasetStatistics
) -> NDArray[np.float32]:
    """Raw actions -> float32 in [-1, 1], as the spec says; 0 where q01 and q99 coincide."""
    raw = np.asarray(action_TD, dtype=np.float32)
    q01, q99 = statistics.action.q01, statistics.action.q99
    scaled = 2 * (raw - q01) / (q99 - q01 + np.float32(1e-8)) - 1
    scaled[:, np.isclose(q99, q01)] = 0
    invert = statistics.spec.invert_D
    scaled = np.where(invert, -scaled, scaled)
    kept = np.where(invert, 1 - raw, raw)
    x = np.where(statistics.spec.normalize_D, scaled, kept)
    return np.clip(x, -1, 1).astype(np.float32)


def unnormalize(x: NDArray[np.floating], statistics: DatasetStatistics) -> NDArray[np.float64]:
    """The inverse of `normalize` for [..., D], to the dataset's own convention (inversion undone)."""
    q01 = statistics.action.q01.astype(np.float64)
    q99 = statistics.action.q99.astype(np.float64)
    invert = statistics.spec.invert_D
    raw = np.where(invert, 1 - x, x)
    scaled = 0.5 * (np.where(invert, -np.asarray(x), x) + 1) * (q99 - q01) + q01
    return np.where(statistics.spec.normalize_D, scaled, raw)


def unnormalize_reference(
    x: NDArray[np.floating],
    q01: NDArray[np.floating],
    q99: NDArray[np.floating],
    mask: Sequence[bool] | None = None,
) -> NDArray[np.float64]:
    """What the released models' own parser returns for [..., D].

    The last dimension is never un-normalised, whatever the mask says, and the gripper inversion of the
    encoder is not undone.
    """
    # float32 like the released statistics, the range included; only the last step is float64.
    low, high = np.asarray(q01, dtype=np.float32), np.asarray(q99, dtype=np.float32)
    scaled_D = np.ones(low.size, dtype=bool) if mask is None else np.array(mask, dtype=bool)
    scaled_D[-1] = False
    x64 = np.asarray(x, dtype=np.float64)
    unscaled: NDArray[np.float64] = 0.5 * (x64 + 1) * (high - low) + low
    return np.where(scaled_D, unscaled, x64)


def bin_edges(num_bins: int = DEFAULT_NUM_BINS) -> NDArray[np.float64]:
    """The num_bins edges -1 + 2j/(num_bins - 1)."""
    if not MIN_NUM_BINS <= num_bins <= MAX_NUM_BINS:
        raise UserError(f"action bins must be {MIN_NUM_BINS}..{MAX_NUM_BINS}, got {num_bins}")
    return np.linspace(-1.0, 1.0, num_bins, dtype=np.float64)


def bin_actions(x: NDArray[np.floating], num_bins: int = DEFAULT_NUM_BINS) -> NDArray[np.int16]:
    """Values in [-1, 1] (clipped) -> bins 1..num_bins of the same shape."""
    clipped = np.clip(np.asarray(x, dtype=np.float64), -1.0, 1.0)
    return np.searchsorted(bin_edges(num_bins), clipped, side="right").astype(np.int16)


def bin_centers(bins: NDArray[np.integer], num_bins: int = DEFAULT_NUM_BINS) -> NDArray[np.float64]:
    """Bins -> the centre of each, float64; the inverse of `bin_actions` to half a bin width."""
    index = np.minimum(np.asarray(bins, dtype=np.int64) - 1, num_bins - 2)
    return -1.0 + (2.0 * index + 1.0) / (num_bins - 1)


def chunk(
    bins_TD: NDArray[np.int16], chunk_size: int
) -> tuple[NDArray[np.int16], NDArray[np.int8]]:
    """Windows [T, H, D] starting at each frame, and how many of the H steps lie in the episode [T].

    Steps behind the end repeat the last action.
    """
    last = len(bins_TD) - 1
    frames_T = np.arange(last + 1)
    steps_TH = np.minimum(frames_T[:, None] + np.arange(chunk_size), last)
    num_valid_T = np.minimum(chunk_size, last + 1 - frames_T).astype(np.int8)
    return bins_TD[steps_TH], num_valid_T


@dataclass(frozen=True)
class GripperObservation:
    """What a candidate gripper dimension really holds, in words and numbers."""

    dimension: int
    low: float
    high: float
    words: str


def observe_gripper(action_ND: NDArray[np.floating], dimension: int = -1) -> GripperObservation:
    """Describe one dimension, because datasets disagree on 0/1, -1/+1, width, and on which is open."""
    values = np.asarray(action_ND)[:, dimension].astype(np.float64) + 0.0
    distinct, counts = np.unique(values, return_counts=True)
    low, high = float(distinct[0]), float(distinct[-1])
    if len(distinct) == 1:
        words = f"constant {low:g}"
    elif len(distinct) == 2:
        words = f"{{{low:g}, {high:g}}}: {100 * counts[1] / counts.sum():.0f} % at {high:g}"
    else:
        at_ends = float(np.mean((values == low) | (values == high)))
        words = f"continuous {low:.4g}..{high:.4g}, {100 * at_ends:.0f} % at the two ends"
    return GripperObservation(
        dimension=int(np.arange(action_ND.shape[1])[dimension]),
        low=low,
        high=high,
        words=words,
    )


def spec_warnings(statistics: DatasetStatistics) -> list[str]:
    """Where the spec loses information on this data, in words; empty = nothing is lost."""
    warnings = []
    action = statistics.action
    for d, spec in enumerate(statistics.spec.dimensions):
        low, high = float(action.min[d]), float(action.max[d])
        kind = "gripper dimension" if spec.gripper else "dimension"
        if spec.normalize and low != high and np.isclose(action.q01[d], action.q99[d]):
            warnings.append(
                f"{kind} {d} changes in fewer than 1 % of the frames ({low:g}..{high:g}, but q01 = q99): "
                "normalising maps all of it to 0"
            )
        allowed = (0.0, 2.0) if spec.invert else (-1.0, 1.0)
        if not spec.normalize and not (allowed[0] <= low and high <= allowed[1]):
            warnings.append(
                f"{kind} {d} is not normalised but reaches {low:g}..{high:g}: values outside "
                f"{allowed[0]:g}..{allowed[1]:g} are clipped"
            )
    return warnings
