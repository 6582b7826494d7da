"""How the depth maps of an episode become 8 bits: one formula, and the rules that choose its range for a frame.

`image`: each map's own minimum and maximum, as the released codebook was fed. One near thing that enters the frame
changes the value of every pixel, and so does an estimator whose scale wanders from frame to frame.
`steady`: a range that outlives the frame. Causal: a frame's range depends on it and the frames before it alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import unknown_name

DepthScaling = Literal["image", "steady"]

WINDOW = 64
"""Frames whose extremes make the steady range."""
_SIDE = 64
"""Two maps are compared on at least so many rows and columns, where they have as many."""
_ITERATIONS = 10
_NOTHING = 1e-6
"""Share of a map's extent that is no difference."""
_WORST_FIT = 0.5
"""Two maps do not belong together where they differ by more than this share of how much one of them varies."""


class DepthScaler(Protocol):
    """Scales the maps of one episode, in order. Batches may be cut anywhere."""

    @property
    def looks_back(self) -> bool:
        """Whether frames that nobody asks about must be shown too, for the sake of later ones."""
        ...

    def scale(
        self, depth_NHW: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """The next maps, larger = nearer -> 0..255 [N,H,W], and the raw (low, high) [N,2] that became 0 and 255."""
        ...


def depth_scaler(name: str) -> DepthScaler:
    """For a new episode. Raises `UserError` for an unknown name."""
    if name not in get_args(DepthScaling):
        raise unknown_name("depth scaling", name, get_args(DepthScaling))
    return SteadyScaler() if name == "steady" else ImageScaler()


def scale_between(
    depth_NHW: NDArray[np.float32], range_N2: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """(d - low) / (high - low + 1e-8) * 255, truncated, with what lies outside of the range at its ends.

    The formula of Depth-Anything-V2 and MolmoAct's preprocessing, there with the map's own minimum and maximum.
    """
    low, high = range_N2[:, 0, None, None], range_N2[:, 1, None, None]
    return np.clip((depth_NHW - low) / (high - low + 1e-8) * 255.0, 0, 255).astype(np.uint8)


def image_ranges(depth_NHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Minimum and maximum of each map [N,2]."""
    ends = [depth_NHW.min(axis=(1, 2)), depth_NHW.max(axis=(1, 2))]
    return np.stack(ends, axis=1).astype(np.float32)


def scale_to_u8(depth_NHW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Maps that have nothing to do with one another, each over its own range."""
    return scale_between(depth_NHW, image_ranges(depth_NHW))


class ImageScaler:
    """`image`; remembers nothing."""

    looks_back = False

    def scale(
        self, depth_NHW: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """See `DepthScaler`."""
        range_N2 = image_ranges(depth_NHW)
        return scale_between(depth_NHW, range_N2), range_N2


@dataclass
class SteadyScaler:
    """`steady`: maps in the units of the episode's first one, over the extremes of the last `window` frames.

    1. A map is brought to the one before by the gain and offset that most of its pixels agree on (`align`), which
       takes back the wandering of the estimator's scale and does not see a thing that moves.
    2. Its minimum and maximum, each the median of the last three, join the window: one bad frame moves nothing.
    3. The window's least and greatest are the range. A map that fits the one before in no way, after a cut or a
       picture that was lost, starts a new window.
    """

    window: int = WINDOW
    looks_back: bool = field(default=True, init=False)
    _before: NDArray[np.float64] | None = field(default=None, init=False)
    _ends: deque[NDArray[np.float64]] = field(default_factory=lambda: deque(maxlen=3), init=False)
    _window: deque[NDArray[np.float64]] = field(init=False)

    def __post_init__(self) -> None:
        self._window = deque(maxlen=self.window)

    def scale(
        self, depth_NHW: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """See `DepthScaler`."""
        ranges = [self._next_range(depth_HW) for depth_HW in depth_NHW]
        range_N2 = np.array(ranges, np.float32).reshape(-1, 2)
        return scale_between(depth_NHW, range_N2), range_N2

    def _next_range(self, depth_HW: NDArray[np.float32]) -> NDArray[np.float64]:
        """In the units of this map."""
        step = max(1, min(depth_HW.shape) // _SIDE)
        sampled = depth_HW[::step, ::step].astype(np.float64)
        fit = None if self._before is None else align(sampled, self._before)
        if fit is None:
            self._ends.clear()
            self._window.clear()
        gain, offset = fit or (1.0, 0.0)
        self._before = gain * sampled + offset
        ends = np.array([depth_HW.min(), depth_HW.max()], np.float64) * gain + offset
        self._ends.append(ends)
        self._window.append(np.median(self._ends, axis=0) if len(self._ends) == 3 else ends)
        low, high = np.min(self._window, axis=0)[0], np.max(self._window, axis=0)[1]
        return (np.array([low, high]) - offset) / gain


def align(
    depth_HW: NDArray[np.float64], before_HW: NDArray[np.float64]
) -> tuple[float, float] | None:
    """(gain, offset) with which most pixels of `depth` equal `before`; None where there is no such pair.

    Weighted means and standard deviations are made equal; a pixel's weight falls with the square of what is left
    (Cauchy). Standard deviations instead of a regression: the gain is positive and noise does not shrink it.
    """
    now, before = depth_HW.ravel(), before_HW.ravel()
    extent = np.ptp(before)
    if not (extent > 0 and np.ptp(now) > 0):
        return None
    limit = _WORST_FIT * np.median(np.abs(before - np.median(before)))
    left = np.abs(now - before)
    if np.median(left) <= _NOTHING * extent:
        return 1.0, 0.0
    weights = _cauchy(left) if np.median(left) <= limit else np.ones_like(now)
    for _ in range(_ITERATIONS):
        (mean_now, std_now), (mean_before, std_before) = (
            _moments(now, weights),
            _moments(before, weights),
        )
        if not min(std_now / np.ptp(now), std_before / extent) > _NOTHING:
            return None  # What agrees is flat, and tells no gain.
        gain = std_before / std_now
        offset = mean_before - gain * mean_now
        left = np.abs(gain * now + offset - before)
        weights = _cauchy(left)
    return (gain, offset) if np.median(left) <= limit else None


def _cauchy(left: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where nothing is left, a half at 1.5 times the median."""
    return np.asarray(1 / (1 + (left / (1.5 * np.median(left) + 1e-12)) ** 2))


def _moments(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float]:
    """Weighted mean and standard deviation."""
    mean = np.average(values, weights=weights)
    return float(mean), float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
