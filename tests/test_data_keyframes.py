"""Which frames are asked about: the arm at rest is not, and neither batches nor the pointer's answers change that."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from molmoact_data.config import build
from molmoact_data.errors import UserError
from molmoact_data.labels.keyframes import MotionConfig, WhereItMoved, motion, watched
from molmoact_data.labels.pointing import GripperPoints, TrackedPoints
from molmoact_data.labels.tracking import PointTracker
from pipelines.config import LabelConfig

SIDE, DISC = 128, 41
DIAGONAL = float(np.hypot(SIDE, SIDE))


def texture(seed: int, side: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 0)


def pictures(x_T: list[int], *, noise: float = 0.0) -> NDArray[np.uint8]:
    """A textured disc on a textured table, its centre at column x, and the noise of a camera."""
    table, disc, rng = texture(1, SIDE), texture(2, DISC), np.random.default_rng(3)
    half = DISC // 2
    mask = np.hypot(*(np.indices((DISC, DISC)) - half)) <= half
    frames = []
    for x in x_T:
        frame = table.copy()
        frame[64 - half : 65 + half, x - half : x + half + 1][mask] = disc[mask]
        frames.append(np.clip(frame + rng.normal(0, noise, frame.shape), 0, 255).astype(np.uint8))
    return np.stack(frames)


class TruthPointer:
    """The centre of the disc; counts whom it is asked about."""

    num_arms = 1

    def __init__(self, x_T: list[int]) -> None:
        self.xy_T2 = np.stack([x_T, np.full(len(x_T), 64)], 1).astype(np.float32) / (SIDE - 1)
        self.asked: list[int] = []

    def point_frames(
        self, rgb_NHWC: NDArray[np.uint8], prompt: str, frame_index_N: list[int]
    ) -> GripperPoints:
        self.asked += frame_index_N
        xy_NA2 = self.xy_T2[frame_index_N][:, None]
        return GripperPoints(xy_NA2, np.ones(xy_NA2.shape[:2], np.float32))


def track(x_T: list[int], pointer: TruthPointer, batch_size: int, gap: int) -> TrackedPoints:
    tracker = PointTracker(pointer, "point", gap, by_motion=True)
    frames = pictures(x_T)
    for first in range(0, len(frames), batch_size):
        tracker.push(frames[first : first + batch_size])
    return tracker.finish()


def keyframes(frames: NDArray[np.uint8], gap: int) -> list[int]:
    rule = WhereItMoved(gap)
    return [i for i, rgb in enumerate(frames) if rule.is_keyframe(i, rgb)]


def test_motion_is_that_of_what_moves() -> None:
    """The disc covers 8 % of the picture; the table that stands still does not hide its 3 pixels."""
    before, after = (watched(rgb, 160) for rgb in pictures([60, 63]))
    assert motion(before, after) == pytest.approx(3 / DIAGONAL, rel=0.1)


def test_the_noise_of_a_camera_is_rest() -> None:
    assert keyframes(pictures([60] * 40, noise=4.0), gap=1000) == [0]


def test_an_arm_at_rest_is_asked_about_once_per_longest_gap() -> None:
    assert keyframes(pictures([60] * 25), gap=10) == [0, 10, 20]


def test_a_keyframe_follows_every_fifth_of_the_picture() -> None:
    """3 pixels a frame of a diagonal of 181: 0.2 of it is passed by the 13th step; then the arm rests."""
    x_T = [21 + 3 * t for t in range(28)] + [102] * 30
    found = keyframes(pictures(x_T), gap=1000)
    steps = np.diff(found)
    assert found[0] == 0
    assert len(found) == 3
    assert (np.abs(steps - np.ceil(MotionConfig().travel * DIAGONAL / 3)) <= 1).all()


def test_a_flat_picture_does_not_move() -> None:
    black = np.zeros((12, SIDE, SIDE, 3), np.uint8)
    assert keyframes(black, gap=1000) == [0]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_points_and_questions_do_not_depend_on_the_batches(batch_size: int) -> None:
    x_T = [25] * 20 + [25 + 2 * t for t in range(35)] + [93] * 20
    expected_pointer, pointer = TruthPointer(x_T), TruthPointer(x_T)
    expected = track(x_T, expected_pointer, 16, gap=100)
    found = track(x_T, pointer, batch_size, gap=100)
    assert sorted(pointer.asked) == sorted(expected_pointer.asked)
    np.testing.assert_array_equal(found.points.xy_NA2, expected.points.xy_NA2)


def test_fewer_questions_than_every_tenth_frame_and_as_near() -> None:
    x_T = [25] * 60 + [25 + 2 * t for t in range(35)] + [93] * 60
    pointer = TruthPointer(x_T)
    tracked = track(x_T, pointer, 32, gap=100)
    error_px = np.linalg.norm(tracked.points.xy_NA2[:, 0] - pointer.xy_T2, axis=1) * (SIDE - 1)
    assert len(pointer.asked) <= 6 < len(x_T) / 10
    assert error_px.max() <= 2


def test_the_longest_gap_must_be_told() -> None:
    with pytest.raises(UserError, match="--point-every 100"):
        build(LabelConfig, {"keyframes": "motion"})
    assert build(LabelConfig, {"keyframes": "motion", "point_every": 100}).point_every == 100
