"""Points for every frame from a pointer that is asked about few: keyframes and optical flow between them.

The pointer sees every K-th frame and the last one. Between two keyframes the point is carried forwards
from the first and backwards from the second by pyramidal Lucas-Kanade flow; each path is bent to end where
the other begins, and the two are blended by distance in time. Where they come apart further than `tolerance`,
needed bending by more than `max_drift`, or one of them is lost, flow is not to be trusted (an occlusion, a
blurred or sudden motion, a wrong keyframe): the pointer is asked about the middle frame and both halves are
tried again, down to single frames. With K = 1 the pointer answers every frame.

Letters: T frames of an episode, N of a batch, A arms, P points of a cluster. Memory is N + K frames.
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
from molmoact_data.labels.keyframes import EveryKth, KeyframeRule, WhereItMoved
from molmoact_data.labels.pointing import ColumnPointer, GripperPointer, GripperPoints


@dataclass(frozen=True)
class FlowConfig:
    """When flow is believed. Lengths are shares of the image diagonal."""

    tolerance: float = 0.02
    """Largest distance between the (bent) forward and backward path that is blended."""
    max_drift: float = 0.1
    """Farthest that the forward path may end from the keyframe it leads to."""
    cluster_radius: float = 0.025
    """Half side of the square of points that moves together with the gripper."""
    step_error_px: float = 1.0
    """A point of the cluster counts if one step there and back returns this close."""
    min_inliers: float = 0.1
    """Share of the cluster that must count; below it the path is lost."""

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"the tracking tolerance must lie in (0, 1), got {self.tolerance}")


@dataclass(frozen=True)
class TrackedPoints:
    """The points of T frames and where they came from."""

    points: GripperPoints
    from_pointer_T: NDArray[np.bool_]
    """True where the pointer was asked; `sum()` is the number of calls."""
    disagreement_TA: NDArray[np.float32] | None
    """Distance between the two (bent) paths as a share of the diagonal; NaN where there are none (keyframes, lost).
    None for recorded points, of which none is tracked."""


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
        flow: FlowConfig = FlowConfig(),
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
        self._pending: list[NDArray[np.uint8]] = []  # from the last keyframe on
        self._num_frames = 0
        self._answers: dict[int, _Answer] = {}
        self._from_pointer: set[int] = set()

    def push(self, rgb_NHWC: NDArray[np.uint8]) -> None:
        """The next N frames, RGB uint8 [N,H,W,3]; all batches share H and W."""
        first = self._num_frames
        self._num_frames += len(rgb_NHWC)
        numbered = enumerate(rgb_NHWC, start=first)
        keyframes = [i for i, rgb_HWC in numbered if self._rule.is_keyframe(i, rgb_HWC)]
        self._ask({i: rgb_NHWC[i - first] for i in keyframes})
        frames = [*self._pending, *rgb_NHWC]
        self._fill(frames, first - len(self._pending), keyframes)

    def finish(self) -> TrackedPoints:
        """Points of all frames so far; the last frame becomes a keyframe."""
        if not self._num_frames:
            raise ValueError("no frame was pushed")
        last = self._num_frames - 1
        if last not in self._answers:
            self._ask({last: self._pending[-1]})
            self._fill(self._pending, last + 1 - len(self._pending), [last])
        return self._result()

    def _ask(self, rgb_by_frame: dict[int, NDArray[np.uint8]]) -> None:
        """One batched call of the pointer."""
        if not rgb_by_frame:
            return
        rgb_NHWC = np.stack(list(rgb_by_frame.values()))
        if isinstance(self.pointer, FramePointer):
            points = self.pointer.point_frames(rgb_NHWC, self.prompt, list(rgb_by_frame))
        else:
            points = self.pointer.point(rgb_NHWC, self.prompt)
        nothing = np.full(points.xy_NA2.shape[1], np.nan, np.float32)
        for row, frame in enumerate(rgb_by_frame):
            xy_A2, confidence_A = points.xy_NA2[row], points.confidence_NA[row]
            self._answers[frame] = _Answer(xy_A2, confidence_A, nothing)
        self._from_pointer |= rgb_by_frame.keys()

    def _fill(self, frames: list[NDArray[np.uint8]], first: int, keyframes: list[int]) -> None:
        """Answer all frames between keyframes; what comes after the last one waits."""
        borders = sorted({first, *keyframes})
        cuts = [(a - first, b - first) for a, b in itertools.pairwise(borders)]
        segments = [self._segment(first + a, frames[a : b + 1]) for a, b in cuts if b - a > 1]
        while segments:
            failed = [segment for segment in segments if not self._track(segment)]
            halves = [segment.split() for segment in failed]
            self._ask({right.start: right.rgb[0] for _, right in halves})
            segments = [half for pair in halves for half in pair if len(half.rgb) > 2]
        # Copies, so that the caller's batch can be freed.
        self._pending = [frame.copy() for frame in frames[borders[-1] - first :]]

    def _segment(self, start: int, rgb: list[NDArray[np.uint8]]) -> _Segment:
        return _Segment(start, rgb, [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in rgb])

    def _track(self, segment: _Segment) -> bool:
        """Answer the inner frames of the segment, or say that the pointer must look again."""
        start, end = self._answers[segment.start], self._answers[segment.end]
        arms = [
            _track_arm(segment, start.xy_A2[arm], end.xy_A2[arm], self.flow)
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
        return TrackedPoints(points, asked, np.stack([a.apart_A for a in answers]))


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


@dataclass(frozen=True)
class _Path:
    """One arm through a segment: unit coordinates [S,2] and path distances [S] (share of the diagonal)."""

    xy_S2: NDArray[np.float32]
    apart_S: NDArray[np.float32]


def _track_arm(
    segment: _Segment,
    start_xy: NDArray[np.float32],
    end_xy: NDArray[np.float32],
    config: FlowConfig,
) -> _Path | None:
    """Blend of the two paths of one arm; None where they come apart or only one end was found."""
    frames = len(segment.rgb)
    found = [not np.isnan(xy).any() for xy in (start_xy, end_xy)]
    if not any(found):
        # Out of sight at both ends: taken to be out of sight between them.
        return _Path(np.full((frames, 2), np.nan, np.float32), np.full(frames, np.nan, np.float32))
    if not all(found):
        return None
    height, width = segment.rgb[0].shape[:2]
    to_px = np.array([width - 1, height - 1], np.float32)
    diagonal = float(np.hypot(width, height))
    forward_S2 = carry(segment.gray, start_xy * to_px, diagonal, config)
    backward_S2 = carry(segment.gray[::-1], end_xy * to_px, diagonal, config)[::-1]
    drift = np.linalg.norm(forward_S2[-1] - backward_S2[-1]) / diagonal
    blended_S2, apart_px_S = blend_paths(forward_S2, backward_S2)
    apart_S = apart_px_S / diagonal
    # Comparisons with NaN, a lost path, are false.
    if not (drift <= config.max_drift and (apart_S <= config.tolerance).all()):
        return None
    xy_S2 = np.clip(blended_S2 / to_px, 0, 1)
    return _Path(xy_S2.astype(np.float32), apart_S.astype(np.float32))


def blend_paths(
    forward_S2: NDArray[np.float32], backward_S2: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two paths in pixels, the one exact at its first and the other at its last frame -> one, and their distance.

    A cluster with background in it lags behind the gripper, evenly along the way: each path is first bent so
    that it ends where the other begins. Then they are blended by distance in time. The distance [S] is that
    of the bent paths, 0 at both ends.
    """
    weight_S1 = np.linspace(0, 1, len(forward_S2), dtype=np.float32)[:, None]
    forward_S2 = forward_S2 + weight_S1 * (backward_S2[-1] - forward_S2[-1])
    backward_S2 = backward_S2 + (1 - weight_S1) * (forward_S2[0] - backward_S2[0])
    blended_S2 = (1 - weight_S1) * forward_S2 + weight_S1 * backward_S2
    return blended_S2, np.linalg.norm(forward_S2 - backward_S2, axis=1)


def carry(
    gray: Sequence[NDArray[np.uint8]],
    start_px: NDArray[np.float32],
    diagonal: float,
    config: FlowConfig,
) -> NDArray[np.float32]:
    """Pixel positions [S,2] of the point that starts at `start_px` in the first frame; NaN once lost."""
    path_S2 = np.full((len(gray), 2), np.nan, np.float32)
    path_S2[0] = start_px
    offsets_P2 = _cluster_offsets(config.cluster_radius * diagonal)
    for step, (before, after) in enumerate(itertools.pairwise(gray), start=1):
        motion = cluster_motion(before, after, path_S2[step - 1] + offsets_P2, config)
        if motion is None:
            break
        path_S2[step] = path_S2[step - 1] + motion
    return path_S2


def cluster_motion(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    points_P2: NDArray[np.float32],
    config: FlowConfig,
) -> NDArray[np.float32] | None:
    """Median motion [2] in pixels of the points that return to where they came from; None = lost."""
    height, width = before.shape
    limit = np.array([width - 1, height - 1], np.float32)
    inside_P = ((points_P2 >= 0) & (points_P2 <= limit)).all(axis=1)
    points_P2 = np.ascontiguousarray(points_P2[inside_P], np.float32)
    if not len(points_P2):
        return None
    there_P2, found_P = _flow(before, after, points_P2)
    back_P2, returned_P = _flow(after, before, there_P2)
    error_P = np.linalg.norm(back_P2 - points_P2, axis=1)
    counts_P = found_P & returned_P & (error_P <= config.step_error_px)
    if counts_P.mean() < config.min_inliers:
        return None
    return np.median(there_P2[counts_P] - points_P2[counts_P], axis=0)


WINDOW = (21, 21)
LEVELS = 3


def _flow(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    points_P2: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where the points went [P,2], and whether they were found [P]."""
    there, status, _ = cv2.calcOpticalFlowPyrLK(
        before, after, points_P2[:, None], None, winSize=WINDOW, maxLevel=LEVELS
    )
    return there[:, 0], status[:, 0].astype(bool)


def _cluster_offsets(radius_px: float, per_side: int = 5) -> NDArray[np.float32]:
    steps = np.linspace(-radius_px, radius_px, per_side, dtype=np.float32)
    return np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
