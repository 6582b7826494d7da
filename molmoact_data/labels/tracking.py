"""Points for every frame from a pointer that is asked about few: keyframes and optical flow between them.

The pointer sees every K-th frame and the last one, a picture at a time or many of them as one clip. Between two
keyframes flow carries the point (`flow`). Where flow is not to be trusted (an occlusion, a blurred or sudden motion, a
wrong keyframe), the pointer is asked about the picture in the middle and both halves are tried again, down to single
frames. With K = 1 the pointer answers every frame.

Letters: T frames of an episode, N of a batch, A arms, W keyframes of a clip. Memory is N + K frames, with clips
N + W K.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.labels.clips import ClipWindow, in_the_same_order
from molmoact_data.labels.flow import FlowConfig, between
from molmoact_data.labels.keyframes import EveryKth, KeyframeRule, WhereItMoved
from molmoact_data.labels.pointing import (
    ClipPointer,
    ColumnPointer,
    GripperPointer,
    GripperPoints,
    Spent,
    TrackedPoints,
)

DEFAULT_FLOW = FlowConfig()


@runtime_checkable
class FramePointer(Protocol):
    """A pointer bound to one episode, that wants to know which frames it is asked about (a cache)."""

    num_arms: int

    def point_frames(
        self, rgb_NHWC: NDArray[np.uint8], prompt: str, frame_index_N: Sequence[int]
    ) -> GripperPoints:
        """RGB uint8 [N,H,W,3] and their 0-based frame numbers -> points of the N frames."""
        ...


@dataclass
class _Segment:
    """The frames from one answered frame to the next, both included; S = len(rgb) of them."""

    start: int
    rgb: list[NDArray[np.uint8]]
    gray: list[NDArray[np.uint8]]

    def split(self) -> tuple[_Segment, _Segment]:
        """Two segments that share the middle frame."""
        middle = len(self.rgb) // 2
        left = _Segment(self.start, self.rgb[: middle + 1], self.gray[: middle + 1])
        return left, _Segment(self.start + middle, self.rgb[middle:], self.gray[middle:])

    @property
    def end(self) -> int:
        return self.start + len(self.rgb) - 1


class PointTracker:
    """Feed it the consecutive batches of one episode, then `finish`. One instance per episode."""

    def __init__(
        self,
        pointer: GripperPointer | FramePointer,
        prompt: str,
        point_every: int = 1,
        *,
        flow: FlowConfig = DEFAULT_FLOW,
        by_motion: bool = False,
    ) -> None:
        """`point_every` = K: the pointer sees frames 0, K, 2K, ... and the last; 1 = every frame, no flow.

        `by_motion`: it sees a frame when the arm has moved far enough, K at most after the one before.
        """
        if point_every < 1:
            raise UserError(f"--point-every must be at least 1, got {point_every}.")
        self.pointer = pointer
        self.prompt = prompt
        self.flow = flow
        self._rule: KeyframeRule = (WhereItMoved if by_motion else EveryKth)(point_every)
        self._window = ClipWindow(pointer.clips) if isinstance(pointer, ClipPointer) else None
        self._pending: list[NDArray[np.uint8]] = []  # from the last settled keyframe on
        self._num_frames = 0
        self._answers: dict[int, _Answer] = {}
        self._from_pointer: set[int] = set()
        self._spent = Spent()

    def push(self, rgb_NHWC: NDArray[np.uint8]) -> None:
        """The next N frames, RGB uint8 [N,H,W,3]; all batches share H and W."""
        numbered = list(enumerate(rgb_NHWC, start=self._num_frames))
        self._num_frames += len(rgb_NHWC)
        self._pending.extend(rgb_NHWC)
        keyframes = {i: rgb for i, rgb in numbered if self._rule.is_keyframe(i, rgb)}
        self._fill(self._settle(keyframes))

    def finish(self) -> TrackedPoints:
        """Points of all frames so far; the last frame becomes a keyframe."""
        if not self._num_frames:
            raise ValueError("no frame was pushed")
        last = self._num_frames - 1
        known = last in self._answers or (self._window and last in self._window.frames)
        self._fill(self._settle({} if known else {last: self._pending[-1]}, at_end=True))
        return self._result()

    def _settle(
        self, rgb_by_frame: dict[int, NDArray[np.uint8]], *, at_end: bool = False
    ) -> list[int]:
        """Ask about the next keyframes as far as it is time; the keyframes whose answers will not change any more."""
        if self._window is None:
            self._ask(rgb_by_frame)
            return list(rgb_by_frame)
        settled: list[int] = []
        for frame, rgb_HWC in rgb_by_frame.items():
            self._window.add(frame, rgb_HWC)
            if self._window.is_full:
                settled += self._window.frames[: -self._window.config.overlap]
                self._ask_clip(self._window)
        if at_end and self._window.has_news:
            settled += self._window.frames
            self._ask_clip(self._window)
        elif at_end:
            settled += self._window.frames
        return settled

    def _ask_clip(self, window: ClipWindow) -> None:
        """One question about the whole window."""
        assert isinstance(self.pointer, ClipPointer)
        points = self.pointer.point_clip(np.stack(window.rgb), window.config.prompt)
        self._spent += Spent.of(points, calls=1)
        known = {f: self._answers[f].xy_A2 for f in window.frames if f in self._answers}
        self._take(window.frames, in_the_same_order(points, known, window.frames))
        window.slide()

    def _ask(self, rgb_by_frame: dict[int, NDArray[np.uint8]]) -> None:
        """One question per picture, in one call of the pointer."""
        if not rgb_by_frame:
            return
        rgb_NHWC = np.stack(list(rgb_by_frame.values()))
        if isinstance(self.pointer, FramePointer):
            points = self.pointer.point_frames(rgb_NHWC, self.prompt, list(rgb_by_frame))
        else:
            points = self.pointer.point(rgb_NHWC, self.prompt)
        self._spent += Spent.of(points, calls=len(rgb_NHWC))
        self._take(list(rgb_by_frame), points)

    def _take(self, frames: Sequence[int], points: GripperPoints) -> None:
        """Remember answers; a point that an earlier clip found stands."""
        for row, frame in enumerate(frames):
            answer = _Answer.asked(points.xy_NA2[row], points.confidence_NA[row])
            known = self._answers.get(frame)
            self._answers[frame] = answer if known is None else known.completed_by(answer)
        self._from_pointer |= set(frames)

    def _fill(self, keyframes: list[int]) -> None:
        """Answer all frames between settled keyframes; what comes after the last one waits."""
        frames, first = self._pending, self._num_frames - len(self._pending)
        borders = sorted({first, *keyframes})
        cuts = [(a - first, b - first) for a, b in itertools.pairwise(borders)]
        segments = [self._segment(first + a, frames[a : b + 1]) for a, b in cuts if b - a > 1]
        while segments:
            failed = [segment for segment in segments if not self._track(segment)]
            halves = [segment.split() for segment in failed]
            self._ask({right.start: right.rgb[0] for _, right in halves})
            if self._window is not None:
                for left, right in halves:
                    self._recognise(right.start, left.start, right.end)
            segments = [half for pair in halves for half in pair if len(half.rgb) > 2]
        # Copies, so that the caller's batch can be freed.
        self._pending = [
            frame.copy() if frame.base is not None else frame
            for frame in frames[borders[-1] - first :]
        ]

    def _recognise(self, frame: int, before: int, after: int) -> None:
        """A picture tells its arms from left to right; put them in the order of the clips around it."""
        known = self._answers[before].completed_by(self._answers[after]).xy_A2
        answer = self._answers[frame]
        points = GripperPoints(answer.xy_A2[None], answer.confidence_A[None])
        ordered = in_the_same_order(points, {frame: known}, [frame])
        self._answers[frame] = _Answer.asked(ordered.xy_NA2[0], ordered.confidence_NA[0])

    def _segment(self, start: int, rgb: list[NDArray[np.uint8]]) -> _Segment:
        return _Segment(start, rgb, [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in rgb])

    def _track(self, segment: _Segment) -> bool:
        """Answer the inner frames of the segment, or say that the pointer must look again."""
        start, end = self._answers[segment.start], self._answers[segment.end]
        arms = [
            between(segment.gray, start.xy_A2[arm], end.xy_A2[arm], self.flow)
            for arm in range(len(start.xy_A2))
        ]
        if any(arm is None for arm in arms):
            return False
        paths = [arm for arm in arms if arm is not None]
        steps = len(segment.rgb) - 1
        for i in range(1, steps):
            xy_A2 = np.stack([path.xy_S2[i] for path in paths])
            apart_A = np.array([path.apart_S[i] for path in paths], np.float32)
            between_A = ((steps - i) * start.confidence_A + i * end.confidence_A) / steps
            trust_A = 1 - np.nan_to_num(apart_A) / (2 * self.flow.tolerance)
            confidence_A = np.where(np.isnan(xy_A2[:, 0]), 0, between_A * trust_A)
            answer = _Answer(xy_A2, confidence_A.astype(np.float32), apart_A)
            self._answers[segment.start + i] = answer
        return True

    def _result(self) -> TrackedPoints:
        answers = [self._answers[i] for i in range(self._num_frames)]
        points = GripperPoints(
            np.stack([a.xy_A2 for a in answers]), np.stack([a.confidence_A for a in answers])
        )
        asked = np.array([i in self._from_pointer for i in range(self._num_frames)])
        return TrackedPoints(points, asked, np.stack([a.apart_A for a in answers]), self._spent)


class RecordedPath:
    """What `PointTracker` is to a pointer, for points that the dataset's own columns hold.

    The frames only say how large the image is.
    """

    def __init__(self, pointer: ColumnPointer, columns: Mapping[str, NDArray[np.generic]]) -> None:
        """`columns`: numeric columns of one episode, each [T, ...]."""
        self._pointer = pointer
        self._columns = columns
        self._image_hw = (0, 0)

    def push(self, rgb_NHWC: NDArray[np.uint8]) -> None:
        """The next N frames, RGB uint8 [N,H,W,3]."""
        self._image_hw = (rgb_NHWC.shape[1], rgb_NHWC.shape[2])

    def finish(self) -> TrackedPoints:
        """Points of the whole episode, of which none was tracked."""
        points = self._pointer.point_columns(self._columns, self._image_hw)
        return TrackedPoints(points, np.ones(len(points.xy_NA2), bool), None)


@dataclass(frozen=True)
class _Answer:
    """One frame: unit coordinates [A,2], confidence [A], distance of the two paths [A]."""

    xy_A2: NDArray[np.float32]
    confidence_A: NDArray[np.float32]
    apart_A: NDArray[np.float32]

    @classmethod
    def asked(cls, xy_A2: NDArray[np.float32], confidence_A: NDArray[np.float32]) -> _Answer:
        """The pointer's own answer."""
        return cls(xy_A2, confidence_A, np.full(len(xy_A2), np.nan, np.float32))

    def completed_by(self, other: _Answer) -> _Answer:
        """This one, with the other's points of the arms that it lacks."""
        missing_A = np.isnan(self.xy_A2[:, 0])
        return _Answer.asked(
            np.where(missing_A[:, None], other.xy_A2, self.xy_A2),
            np.where(missing_A, other.confidence_A, self.confidence_A),
        )
