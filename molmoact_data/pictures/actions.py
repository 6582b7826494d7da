"""The actions of an episode below its pictures: a curve per dimension, and where the film is now."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact_data.pictures.overlay import TAKEN_RGB, TRACE_RGB

Rgb = NDArray[np.uint8]

STRIP_HEIGHT = 72
PAPER_RGB = (22, 30, 37)
INK_RGB = (230, 237, 243)
COMING_RGB = (78, 92, 104)
"""What of a curve is still to come."""
MOST_PANELS = 16
"""More dimensions than these would be too narrow to be read; the first and the last are shown."""
_ABOVE, _BESIDE = 26, 6
"""Pixels of a panel around its curve."""


def action_strip(
    actions_TD: NDArray[np.floating], step: int, names: Sequence[str], width: int
) -> Rgb:
    """RGB uint8 [STRIP_HEIGHT, width, 3]: panels side by side, the last dimension in amber.

    `step` 0..T is the action that comes next, T = none; its value stands beside the name of its dimension. Each
    curve spans its own panel. `names`: one per dimension, or none, then their numbers stand there.
    """
    dims = actions_TD.shape[1]
    shown = [*range(min(dims, MOST_PANELS) - 1), dims - 1]
    edges = np.linspace(0, width, len(shown) + 1).round().astype(int)
    strip = np.full((STRIP_HEIGHT, width, 3), PAPER_RGB, dtype=np.uint8)
    for panel, d in enumerate(shown):
        name = names[d] if d < len(names) else str(d)
        colour = TAKEN_RGB if d == dims - 1 else TRACE_RGB
        part = strip[:, edges[panel] : edges[panel + 1]]
        part[:] = _panel(part.copy(), actions_TD[:, d], step, name, colour)
    return strip


def _panel(
    part: Rgb, values_T: NDArray[np.floating], step: int, name: str, colour: tuple[int, int, int]
) -> Rgb:
    import cv2

    now = min(step, len(values_T) - 1)
    _write(part, name, (_BESIDE, 11))
    _write(part, f"{values_T[now]:.2f}", (_BESIDE, 23))
    points = _curve(values_T, part.shape[1])
    thin = {"isClosed": False, "thickness": 1, "lineType": cv2.LINE_AA}
    cv2.polylines(part, [points], color=COMING_RGB, **thin)
    cv2.polylines(part, [points[: now + 1]], color=colour, **thin)
    x, y = map(int, points[now])
    cv2.circle(part, (x, y), 3, colour, -1, cv2.LINE_AA)
    return part


def _curve(values_T: NDArray[np.floating], width: int) -> NDArray[np.int32]:
    """Pixels [T, 2] of one curve; a constant one runs through the middle."""
    low, high = float(values_T.min()), float(values_T.max())
    share = (values_T - low) / (high - low) if high > low else np.full(len(values_T), 0.5)
    x = np.linspace(_BESIDE, width - _BESIDE - 1, len(values_T))
    y = STRIP_HEIGHT - _BESIDE - share * (STRIP_HEIGHT - _BESIDE - _ABOVE)
    return np.rint(np.stack([x, y], axis=1)).astype(np.int32)


def _write(part: Rgb, text: str, at: tuple[int, int]) -> None:
    import cv2

    plain = text.encode("ascii", "replace").decode()  # OpenCV's fonts know ASCII only
    cv2.putText(part, plain, at, cv2.FONT_HERSHEY_SIMPLEX, 0.34, INK_RGB, 1, cv2.LINE_AA)
