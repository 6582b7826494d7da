"""Teachers on a CPU: frames go to them a few at a time, on as many threads as there are, one thread a call.

Libraries share one call's sums out to their threads, so that the last bits of a result depend on how many there
are: a run with two workers (half the threads each) wrote other points than a run with one. Here every call has one
thread, and every frame is in the same company whatever the number of threads: the bits are those of one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data.labels.depth import DepthEstimator, DepthTokenizer
from molmoact_data.labels.pointing import (
    ClipPointer,
    ColumnPointer,
    GripperPointer,
    GripperPoints,
    joined,
)
from molmoact_data.teachers.choice import Teachers

PIECE = 8
"""Frames of a call. Part of what decides a result's last bits, so it depends on nothing."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Pieces:
    """A pool of threads, and how a batch is put through it."""

    pool: ThreadPoolExecutor

    def of(self, call: Callable[[Array], Any], batch: Array) -> list[Any]:
        """`call` on the pieces of a batch, in order; an empty batch is one empty piece."""
        starts = range(0, max(1, len(batch)), PIECE)
        return list(self.pool.map(call, (batch[start : start + PIECE] for start in starts)))


@dataclass(frozen=True)
class DepthInPieces:
    """A `DepthEstimator` in front of another."""

    teacher: DepthEstimator
    pieces: Pieces

    def describe(self) -> dict[str, str]:
        """The teacher's own."""
        return self.teacher.describe()

    def estimate(self, rgb_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `DepthEstimator.estimate`."""
        return np.concatenate(self.pieces.of(self.teacher.estimate, rgb_NHWC))


class TokenizerInPieces:
    """A `DepthTokenizer` in front of another."""

    def __init__(self, teacher: DepthTokenizer, pieces: Pieces) -> None:
        self.teacher = teacher
        self.pieces = pieces
        self.codebook_size = teacher.codebook_size
        self.grid_hw = teacher.grid_hw

    def describe(self) -> dict[str, str]:
        """The teacher's own."""
        return self.teacher.describe()

    def encode(self, depth_u8_NHW: NDArray[np.uint8]) -> NDArray[np.int64]:
        """See `DepthTokenizer.encode`."""
        return np.concatenate(self.pieces.of(self.teacher.encode, depth_u8_NHW))

    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """See `DepthTokenizer.decode`."""
        return np.concatenate(self.pieces.of(self.teacher.decode, codes))


class PointerInPieces:
    """A `GripperPointer` in front of another."""

    def __init__(self, teacher: GripperPointer, pieces: Pieces) -> None:
        self.teacher = teacher
        self.pieces = pieces
        self.num_arms = teacher.num_arms

    def describe(self) -> dict[str, str]:
        """The teacher's own."""
        return self.teacher.describe()

    def point(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
        """See `GripperPointer.point`."""
        return joined(self.pieces.of(lambda rgb: self.teacher.point(rgb, prompt), rgb_NHWC))


class ClipPointerInPieces(PointerInPieces):
    """One that looks at clips too; a clip is one call."""

    def __init__(self, teacher: ClipPointer, pieces: Pieces) -> None:
        assert isinstance(teacher, GripperPointer)
        super().__init__(teacher, pieces)
        self.clips = teacher.clips
        self._of_clips: ClipPointer = teacher

    def point_clip(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
        """See `ClipPointer.point_clip`; on a thread of the pool, where one thread does a call."""
        return self.pieces.pool.submit(self._of_clips.point_clip, rgb_NHWC, prompt).result()


def in_pieces(teachers: Teachers, threads: int) -> Teachers:
    """The same teachers, `threads` calls at once; torch and OpenCV must have been told to use one thread a call.

    Pointers that work elsewhere (a server) and points that are columns stay as they are.
    """
    pieces = Pieces(ThreadPoolExecutor(threads, thread_name_prefix="teacher"))
    pointer = teachers.pointer
    if pointer is not None and not isinstance(pointer, ColumnPointer):
        elsewhere = getattr(pointer, "works_elsewhere", False)
        if isinstance(pointer, ClipPointer):
            pointer = ClipPointerInPieces(pointer, pieces)
        elif not elsewhere:
            pointer = PointerInPieces(pointer, pieces)
    return replace(
        teachers,
        depth=teachers.depth and DepthInPieces(teachers.depth, pieces),
        tokenizer=teachers.tokenizer and TokenizerInPieces(teachers.tokenizer, pieces),
        pointer=pointer,
    )
