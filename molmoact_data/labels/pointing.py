"""Gripper pointers: protocols only. Coordinates are unit coordinates, x right, y down, 0..1 over the frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

DEFAULT_PROMPT = "point to the robot gripper"
CLIP_PROMPT = "Track the robot gripper."
LONGEST_CLIP = 384
"""Frames of the longest clips that Molmo2 was trained on."""


@dataclass(frozen=True)
class GripperPoints:
    """Where the gripper is in N frames, one row of points per arm.

    `xy_NA2`: float32 [N, arms, 2] unit coordinates (pixel centre column i of width w is i/(w-1));
    NaN = not found. `confidence_NA`: float32 [N, arms] 0..1; 0 where not found.
    """

    xy_NA2: NDArray[np.float32]
    confidence_NA: NDArray[np.float32]
    tokens_C2: NDArray[np.int64] | None = None
    """Tokens read and written for each of the C questions (a frame each, or one clip); None = not told."""

    def __post_init__(self) -> None:
        if self.xy_NA2.ndim != 3 or self.xy_NA2.shape[2] != 2:
            raise ValueError(f"xy_NA2 must be [N, arms, 2], got {self.xy_NA2.shape}")
        if self.confidence_NA.shape != self.xy_NA2.shape[:2]:
            raise ValueError(
                f"confidence {self.confidence_NA.shape} does not match points {self.xy_NA2.shape}"
            )

    def rows(self, rows: Sequence[int]) -> GripperPoints:
        """Of some frames, each its own question."""
        tokens = None if self.tokens_C2 is None else self.tokens_C2[rows]
        return GripperPoints(self.xy_NA2[rows], self.confidence_NA[rows], tokens)


def joined(parts: Sequence[GripperPoints]) -> GripperPoints:
    """One after the other; tokens are told where every part tells them."""
    tokens = [part.tokens_C2 for part in parts if part.tokens_C2 is not None]
    return GripperPoints(
        np.concatenate([part.xy_NA2 for part in parts]),
        np.concatenate([part.confidence_NA for part in parts]),
        np.concatenate(tokens) if len(tokens) == len(parts) else None,
    )


Keyframes = Literal["regular", "motion"]
"""How the frames that a pointer is asked about are chosen: every K-th, or as the arm moves."""


@dataclass(frozen=True)
class ClipConfig:
    """How many frames are asked about at once. A clip's frames are those a run asks about, however far apart."""

    frames: int
    """Of one question, at most."""
    overlap: int = 4
    """Of which the question before had the first ones too: they tell which arm is which."""
    fps: float = 2.0
    """What a clip's frames are told to be apart, in frames per second."""
    prompt: str = CLIP_PROMPT

    def __post_init__(self) -> None:
        if not 2 <= self.frames <= LONGEST_CLIP:
            raise ValueError(f"a clip has 2 to {LONGEST_CLIP} frames, got {self.frames}")
        if not 1 <= self.overlap < self.frames:
            raise ValueError(
                f"clips of {self.frames} frames share 1 to {self.frames - 1} of them, got {self.overlap}"
            )
        if not 0 < self.fps <= 10:
            raise ValueError(
                f"times are told in tenths of a second, so a clip has at most 10 frames a second, got {self.fps:g}"
            )

    @classmethod
    def of(cls, frames: int, overlap: int, fps: float, prompt: str) -> ClipConfig | None:
        """As a run asks for it: None for 1 frame, a picture at a time. Raises `ValueError` for what cannot be."""
        return None if frames == 1 else cls(frames, overlap, fps, prompt)


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
class ClipPointer(Protocol):
    """A pointer that looks at many frames of an episode at once."""

    num_arms: int
    clips: ClipConfig

    def point_clip(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
        """RGB uint8 [N,H,W,3] in order, at most `clips.frames` -> their points; an arm keeps its place through them."""
        ...


@dataclass(frozen=True)
class Spent:
    """What the answers about an episode cost, those out of a cache included; sums add up."""

    calls: int = 0
    """Questions, of one picture or one clip each."""
    pictures: int = 0
    """Seen in them; a frame of two clips counts twice."""
    counted_calls: int = 0
    """Of the questions, those whose tokens are known."""
    read_tokens: int = 0
    written_tokens: int = 0

    @classmethod
    def of(cls, points: GripperPoints, calls: int) -> Spent:
        """The price of these points."""
        if points.tokens_C2 is None:
            return cls(calls, len(points.xy_NA2))
        read, written = points.tokens_C2.sum(axis=0).tolist()
        return cls(calls, len(points.xy_NA2), len(points.tokens_C2), read, written)

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.calls + other.calls,
            self.pictures + other.pictures,
            self.counted_calls + other.counted_calls,
            self.read_tokens + other.read_tokens,
            self.written_tokens + other.written_tokens,
        )


@dataclass(frozen=True)
class TrackedPoints:
    """The points of T frames and where they came from."""

    points: GripperPoints
    from_pointer_T: NDArray[np.bool_]
    """True where the pointer was asked; `sum()` is the number of calls."""
    disagreement_TA: NDArray[np.float32] | None
    """Distance between the two (bent) paths as a share of the diagonal; NaN where there are none (keyframes, lost).
    None for recorded points, of which none is tracked."""
    spent: Spent = field(default_factory=Spent)
    """What the pointer's answers cost; nothing for recorded points."""


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
