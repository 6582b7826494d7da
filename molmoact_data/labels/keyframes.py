"""Which frames the pointer is asked about: every K-th, or as often as something in the picture has moved far enough.

Both rules look back only and at one frame after the other, so that neither the batch size nor a restart changes them,
and neither needs the pointer's answers: the keyframes of a batch are asked about in one call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray


class KeyframeRule(Protocol):
    """Told every frame of an episode in order."""

    def is_keyframe(self, frame_index: int, rgb_HWC: NDArray[np.uint8]) -> bool:
        """Whether the pointer sees this frame; the first is always one."""
        ...


@dataclass(frozen=True)
class EveryKth:
    """Frames 0, K, 2K, ..."""

    every: int

    def is_keyframe(self, frame_index: int, rgb_HWC: NDArray[np.uint8]) -> bool:
        """By number alone."""
        return frame_index % self.every == 0


@dataclass(frozen=True)
class MotionConfig:
    """How motion is measured and how much of it is a question. Lengths are shares of the image diagonal."""

    travel: float = 0.2
    """A keyframe follows when what moves fastest has come this far since the last one."""
    rest: float = 0.0005
    """Motion per frame below this is noise of the camera."""
    fastest: float = 0.05
    """Share of the picture that the arm must cover at least: the motion of a frame is that of its fastest points."""
    points_per_side: int = 16
    """The picture is watched at this many points squared."""
    side_px: int = 160
    """The picture is watched at this size of its longer side."""
    return_px: float = 0.5
    """A point counts if one step there and back returns this close."""


@dataclass
class WhereItMoved:
    """A keyframe whenever the arm has travelled far enough, at the latest after `longest_gap` frames.

    An arm at rest is asked about once per `longest_gap`.
    """

    longest_gap: int
    config: MotionConfig = field(default_factory=MotionConfig)
    _before: NDArray[np.uint8] | None = None
    _travelled: float = 0.0
    _last: int = 0

    def is_keyframe(self, frame_index: int, rgb_HWC: NDArray[np.uint8]) -> bool:
        """From what moved since the last keyframe."""
        gray = watched(rgb_HWC, self.config.side_px)
        if self._before is not None:
            self._travelled += motion(self._before, gray, self.config)
        first, self._before = self._before is None, gray
        due = self._travelled >= self.config.travel or frame_index - self._last >= self.longest_gap
        if not (first or due):
            return False
        self._travelled, self._last = 0.0, frame_index
        return True


def watched(rgb_HWC: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """Gray, no larger than `side_px`: motion of the arm needs no fine detail."""
    gray = cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2GRAY)
    height, width = gray.shape
    scale = min(1.0, side_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), np.uint8)


def motion(
    before: NDArray[np.uint8], after: NDArray[np.uint8], config: MotionConfig = MotionConfig()
) -> float:
    """How far the fastest points of the picture [H,W] went in one step, as a share of the diagonal; 0 at rest.

    Points that cannot be followed there and back do not count (a cut, a flat picture: there flow is lost between the
    keyframes too, and the pointer is asked for that reason).
    """
    height, width = before.shape
    across, down = (
        (np.arange(config.points_per_side) + 0.5) * n / config.points_per_side
        for n in (width, height)
    )
    points_P2 = np.stack(np.meshgrid(across, down), -1).reshape(-1, 2).astype(np.float32)
    moved_P = _displacements_px(before, after, points_P2, config.return_px)
    if not len(moved_P):
        return 0.0
    share = float(np.quantile(moved_P, 1 - config.fastest)) / float(np.hypot(width, height))
    return share if share > config.rest else 0.0


def _displacements_px(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    points_P2: NDArray[np.float32],
    return_px: float,
) -> NDArray[np.float32]:
    """Length of the step of every point that returns to where it came from."""
    way = {"winSize": (15, 15), "maxLevel": 2}
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, points_P2[:, None], None, **way)
    back, returned, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, **way)
    error_P = np.linalg.norm(back[:, 0] - points_P2, axis=1)
    counts_P = (found[:, 0] & returned[:, 0]).astype(bool) & (error_P <= return_px)
    return np.linalg.norm(there[counts_P, 0] - points_P2[counts_P], axis=1)
