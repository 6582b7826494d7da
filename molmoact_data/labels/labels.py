"""What all label functions together know of one episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact_data.labels.depth_memory import BufferedCodes
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.labels.traces import EpisodeTraces


@dataclass(frozen=True, kw_only=True)
class EpisodeLabels:
    """What was computed for the T frames of one episode; None = not asked for (no column)."""

    depth_codes: NDArray[np.integer] | None = None
    """[T, G]"""
    depth_range: NDArray[np.float32] | None = None
    """[T, 2] raw minimum and maximum"""
    depth_buffer: BufferedCodes | None = None
    points: GripperPoints | None = None
    traces: EpisodeTraces | None = None
    action_bins: NDArray[np.int16] | None = None
    """[T, H, D]"""
    num_valid_actions: NDArray[np.int8] | None = None
    """[T]"""
