"""Gripper pointers: protocols only. Coordinates are unit coordinates, x right, y down, 0..1 over the frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

DEFAULT_PROMPT = "point to the robot gripper"


@dataclass(frozen=True)
class GripperPoints:
    """Where the gripper is in N frames, one row of points per arm.

    `xy_NA2`: float32 [N, arms, 2] unit coordinates (pixel centre column i of width w is i/(w-1));
    NaN = not found. `confidence_NA`: float32 [N, arms] 0..1; 0 where not found.
    """

    xy_NA2: NDArray[np.float32]
    confidence_NA: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.xy_NA2.ndim != 3 or self.xy_NA2.shape[2] != 2:
            raise ValueError(f"xy_NA2 must be [N, arms, 2], got {self.xy_NA2.shape}")
        if self.confidence_NA.shape != self.xy_NA2.shape[:2]:
            raise ValueError(
                f"confidence {self.confidence_NA.shape} does not match points {self.xy_NA2.shape}"
            )


@runtime_checkable
class GripperPointer(Protocol):
    """Points from images (a vision-language model, a small network, a server)."""

    num_arms: int

    def describe(self) -> dict[str, str]:
        """`name`, `revision` and `licence` of the teacher, for the manifest; part of the config hash."""
        ...

    def point(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
        """RGB uint8 [N,H,W,3] -> points of the N frames."""
        ...


@runtime_checkable
class ColumnPointer(Protocol):
    """Points from numeric columns of the dataset (recorded points, forward kinematics + calibration)."""

    num_arms: int
    columns: tuple[str, ...]

    def describe(self) -> dict[str, str]:
        """As `GripperPointer.describe`."""
        ...

    def point_columns(
        self, columns: Mapping[str, NDArray[np.generic]], image_hw: tuple[int, int]
    ) -> GripperPoints:
        """Numeric columns of one episode, each [T, ...] -> points of its T frames."""
        ...
