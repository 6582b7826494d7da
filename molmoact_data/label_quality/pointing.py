"""Every frame pointed at once, and the trackers for all K listening to the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.labels.flow import FlowConfig
from molmoact_data.labels.pointing import (
    ClipPointer,
    ColumnPointer,
    GripperPointer,
    GripperPoints,
    joined,
)
from molmoact_data.labels.tracking import PointTracker
from molmoact_data.sources.base import EpisodeColumns


class Pointing:
    """The pointer on every frame (K = 1), and one tracker per further K.

    Pictures are asked about once, and the trackers are served these answers. Which frames share a clip depends on K,
    so a pointer that looks at clips is asked by each tracker anew.
    """

    def __init__(
        self,
        pointer: GripperPointer | ColumnPointer,
        columns: EpisodeColumns,
        image_hw: tuple[int, int],
        *,
        prompt: str,
        tracked_k: Sequence[int],
        flow: FlowConfig,
        by_motion: bool = False,
    ) -> None:
        """`by_motion`: the further K are the longest gaps between frames chosen by the arm's motion."""
        if pointer.num_arms != 1:
            raise UserError("evaluate-labels measures one arm; the pointer tells more.")
        self._pointer = pointer
        self._prompt = prompt
        self._answers = _Answers()
        if isinstance(pointer, ColumnPointer):
            self._answers.batches.append(pointer.point_columns(columns.extra, image_hw))
        asked: GripperPointer | _Answers = self._answers
        self._every: PointTracker | None = None
        if isinstance(pointer, ClipPointer) and isinstance(pointer, GripperPointer):
            asked = pointer
            self._every = PointTracker(pointer, prompt, flow=flow)
        self._trackers = [
            PointTracker(asked, prompt, k, flow=flow, by_motion=by_motion) for k in tracked_k
        ]

    def push(self, rgb_NHWC: NDArray[np.uint8]) -> None:
        """The next N frames of the labelled camera."""
        if self._every is not None:
            self._every.push(rgb_NHWC)
        elif isinstance(self._pointer, GripperPointer):
            self._answers.batches.append(self._pointer.point(rgb_NHWC, self._prompt))
        for tracker in self._trackers:
            tracker.push(rgb_NHWC)

    def finish(self) -> tuple[list[GripperPoints], NDArray[np.bool_]]:
        """Points for every K, 1 first, and which frames were asked about [K,T]."""
        every = self._every.finish().points if self._every is not None else self._answers.joined()
        tracked = [tracker.finish() for tracker in self._trackers]
        asked = [np.ones(len(every.xy_NA2), bool), *(t.from_pointer_T for t in tracked)]
        return [every, *(t.points for t in tracked)], np.stack(asked)


@dataclass
class _Answers:
    """A `FramePointer` that repeats what the pointer said about these frames."""

    batches: list[GripperPoints] = field(default_factory=list)
    num_arms: int = 1

    def joined(self) -> GripperPoints:
        return joined(self.batches)

    def point_frames(
        self, rgb_NHWC: NDArray[np.uint8], prompt: str, frame_index_N: Sequence[int]
    ) -> GripperPoints:
        every, rows = self.joined(), list(frame_index_N)
        return GripperPoints(every.xy_NA2[rows], every.confidence_NA[rows])
