"""Many frames in one question: windows over the frames that an episode is asked about, and arms that keep their place.

Neighbouring windows share frames. What the earlier one found stands; what it did not find the later one may. In the
shared frames the arms of the later answer are recognised, since a clip numbers its arms anew.

Letters: N frames of a window, A arms.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from molmoact_data.labels.pointing import ClipConfig, GripperPoints

Rgb = NDArray[np.uint8]
LOST = float(np.sqrt(2))
"""Distance of an arm that only one answer found: the diagonal of the frame in unit coordinates."""


@dataclass
class ClipWindow:
    """The frames of the next question, in order."""

    config: ClipConfig
    frames: list[int] = field(default_factory=list)
    rgb: list[Rgb] = field(default_factory=list)
    _shared: int = 0

    def add(self, frame_index: int, rgb_HWC: Rgb) -> None:
        """A copy of the next frame that is asked about."""
        self.frames.append(frame_index)
        self.rgb.append(rgb_HWC.copy())

    @property
    def is_full(self) -> bool:
        """The question is due."""
        return len(self.frames) == self.config.frames

    @property
    def has_news(self) -> bool:
        """Some frame was in no question yet."""
        return len(self.frames) > self._shared

    def slide(self) -> None:
        """Keep what the next question shares with this one."""
        kept = min(self.config.overlap, len(self.frames))
        self.frames, self.rgb, self._shared = self.frames[-kept:], self.rgb[-kept:], kept


def in_the_same_order(
    points: GripperPoints, known_xy_A2: Mapping[int, NDArray[np.float32]], frames: Sequence[int]
) -> GripperPoints:
    """`points` of `frames` with the arms put in the order of `known_xy_A2`, by the frames that both tell.

    The order with the least distance; where nothing can be compared, that of the answer.
    """
    rows = [row for row, frame in enumerate(frames) if frame in known_xy_A2]
    num_arms = points.xy_NA2.shape[1]
    if num_arms == 1 or not rows:
        return points
    known_NA2 = np.stack([known_xy_A2[frames[row]] for row in rows])
    orders = [list(order) for order in itertools.permutations(range(num_arms))]
    best = min(orders, key=lambda order: _apart(points.xy_NA2[rows][:, order], known_NA2))
    return GripperPoints(points.xy_NA2[:, best], points.confidence_NA[:, best], points.tokens_C2)


def _apart(xy_NA2: NDArray[np.float32], known_NA2: NDArray[np.float32]) -> float:
    """Sum of distances; an arm that one of the two has not found is `LOST`, that neither has costs nothing."""
    apart_NA = np.linalg.norm(xy_NA2 - known_NA2, axis=2)
    missing_NA, unknown_NA = np.isnan(xy_NA2[..., 0]), np.isnan(known_NA2[..., 0])
    apart_NA[missing_NA | unknown_NA] = LOST
    apart_NA[missing_NA & unknown_NA] = 0
    return float(apart_NA.sum(dtype=np.float64))
