"""Outliers of the kinds seen in the field, put into a track on purpose. Pure; for measuring the trace filter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KINDS = ("jump", "second_robot", "background", "missing")


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
