"""Draws on pictures: the trace that trajectory-conditioned samples see, and richer marks for people.

Pictures are RGB uint8 [H,W,3]; nothing is drawn in place. Trace points are on the 0..255 grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from molmoact_data.labels.traces import GRID_MAX

TRACE_RGB = (0, 255, 255)
"""Cyan, as in all published training data (whose code calls it yellow)."""
TRACE_THICKNESS = 2
ARM_COLOURS_RGB = (TRACE_RGB, (255, 92, 168), (120, 220, 80), (90, 160, 255))
"""Of each arm's trace wherever one is drawn; the first is the colour that models read."""
TAKEN_RGB = (255, 176, 0)
"""Amber: the path that was really taken, beside a predicted one."""
POINT_RGB = (255, 64, 64)
READABLE_HEIGHT = 240
"""Pixels: a smaller picture is enlarged before people's marks are drawn on it, or they would cover it."""

Trace = Sequence[Sequence[float]] | NDArray[np.number]


def grid_to_pixels(trace_grid: Trace, height: int, width: int) -> NDArray[np.int32]:
    """Grid points [K, 2] -> pixel columns and rows [K, 2], inside the picture."""
    xy = np.asarray(trace_grid, dtype=np.float64).reshape(-1, 2)
    pixels = np.rint(xy * (width - 1, height - 1) / GRID_MAX).astype(np.int32)
    return np.clip(pixels, 0, (width - 1, height - 1))


def draw_trace(rgb_HWC: NDArray[np.uint8], trace_grid: Trace) -> NDArray[np.uint8]:
    """A copy with the trace as the published models were trained to read it.

    Cyan anti-aliased segments, thickness 2. Fewer than two points draw nothing, so a sample that says
    that a trajectory is annotated must not be made from them.
    """
    return draw_path(rgb_HWC, trace_grid, TRACE_RGB, TRACE_THICKNESS)


def draw_path(
    rgb_HWC: NDArray[np.uint8],
    trace_grid: Trace,
    colour_rgb: tuple[int, int, int],
    thickness: int,
) -> NDArray[np.uint8]:
    """A copy with anti-aliased segments between consecutive points."""
    import cv2

    drawn = rgb_HWC.copy()
    pixels = [tuple(map(int, p)) for p in grid_to_pixels(trace_grid, *rgb_HWC.shape[:2])]
    for start, end in pairwise(pixels):
        cv2.line(drawn, start, end, colour_rgb, thickness, cv2.LINE_AA)
    return drawn


def draw_dot(
    rgb_HWC: NDArray[np.uint8],
    point_grid: Sequence[float],
    colour_rgb: tuple[int, int, int],
    radius: int,
) -> NDArray[np.uint8]:
    """A copy with a filled dot in a dark ring."""
    import cv2

    drawn = rgb_HWC.copy()
    ((x, y),) = grid_to_pixels([point_grid], *rgb_HWC.shape[:2]).tolist()
    cv2.circle(drawn, (x, y), radius + 1, (16, 16, 16), -1, cv2.LINE_AA)
    cv2.circle(drawn, (x, y), radius, colour_rgb, -1, cv2.LINE_AA)
    return drawn


def readable(rgb_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same picture, at least `READABLE_HEIGHT` tall."""
    import cv2

    height, width = rgb_HWC.shape[:2]
    if height >= READABLE_HEIGHT:
        return rgb_HWC
    size = (max(1, round(width * READABLE_HEIGHT / height)), READABLE_HEIGHT)
    return cv2.resize(rgb_HWC, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)


def draw_labels(
    rgb_HWC: NDArray[np.uint8],
    *,
    traces: Sequence[Sequence[Sequence[int]]],
    points: Sequence[Sequence[float] | None],
) -> NDArray[np.uint8]:
    """A copy, large enough to be read, with each arm's trace, its points as dots, and where the gripper is seen now."""
    drawn = readable(rgb_HWC)
    radius = max(2, round(drawn.shape[1] / 110))
    for arm, trace in enumerate(traces):
        colour = ARM_COLOURS_RGB[arm % len(ARM_COLOURS_RGB)]
        drawn = draw_path(drawn, trace, colour, TRACE_THICKNESS)
        for later in trace[1:]:
            drawn = draw_dot(drawn, later, (235, 255, 255), max(1, radius - 1))
    for point in points:
        if point is not None and 0 <= point[0] <= 1 and 0 <= point[1] <= 1:
            drawn = draw_dot(drawn, [point[0] * 255, point[1] * 255], POINT_RGB, radius)
    return drawn
