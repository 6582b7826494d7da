"""Keyframes + optical flow on synthetic episodes whose true points are known by construction."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.labels.flow import FlowConfig, blend_paths
from molmoact_data.labels.pointing import GripperPoints, TrackedPoints
from molmoact_data.labels.tracking import PointTracker

SIDE = 128


@dataclass
class TruthPointer:
    """Answers with the true point of the frame, whose index is written in its corner pixel."""

    xy_T2: NDArray[np.float32]
    calls: list[int] = field(default_factory=list)
    batches: int = 0
    num_arms: int = 1

    def describe(self) -> dict[str, str]:
        return {"name": "truth", "revision": "1", "licence": "none"}

    def point(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
        assert prompt == "point"
        frames = rgb_NHWC[:, 0, 0, 0].astype(int)
        self.calls += frames.tolist()
        self.batches += 1
        xy_NA2 = self.xy_T2[frames][:, None]
        return GripperPoints(xy_NA2, (~np.isnan(xy_NA2[..., 0])).astype(np.float32))


def texture(seed: int, side: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 0)


def episode(num_frames: int, occluded: range = range(0)) -> tuple[NDArray, NDArray]:
    """A textured disc on a textured table along a curve; a grey board hides it while `occluded`."""
    table, disc = texture(1, SIDE), texture(2, 33)
    mask = np.hypot(*(np.indices((33, 33)) - 16)) <= 16
    t = np.arange(num_frames)
    centre_T2 = np.rint(np.stack([25 + 1.3 * t, 60 + 22 * np.sin(t / 8)], axis=1)).astype(int)
    frames = []
    for i, (x, y) in enumerate(centre_T2):
        frame = table.copy()
        frame[y - 16 : y + 17, x - 16 : x + 17][mask] = disc[mask]
        if i in occluded:
            frame[20:110, x - 25 : x + 26] = 128
        frame[0, 0] = i
        frames.append(frame)
    return np.stack(frames), (centre_T2 / (SIDE - 1)).astype(np.float32)


def track(
    rgb: NDArray, pointer: TruthPointer, batch_size: int = 16, *, point_every: int
) -> TrackedPoints:
    tracker = PointTracker(pointer, "point", point_every)
    for start in range(0, len(rgb), batch_size):
        tracker.push(rgb[start : start + batch_size])
    return tracker.finish()


def error_px(tracked: TrackedPoints, xy_T2: NDArray) -> NDArray:
    return np.linalg.norm(tracked.points.xy_NA2[:, 0] - xy_T2, axis=1) * (SIDE - 1)


def test_every_frame_is_the_pointer_itself() -> None:
    rgb, xy_T2 = episode(50)
    xy_T2[7] = np.nan
    pointer = TruthPointer(xy_T2)
    tracked = track(rgb, pointer, point_every=1)
    expected = TruthPointer(xy_T2).point(rgb, "point")
    np.testing.assert_array_equal(tracked.points.xy_NA2, expected.xy_NA2)
    np.testing.assert_array_equal(tracked.points.confidence_NA, expected.confidence_NA)
    assert pointer.calls == list(range(50))
    assert tracked.from_pointer_T.all()


@pytest.mark.parametrize("every", [4, 10, 16])
def test_flow_follows_the_disc_between_keyframes(every: int) -> None:
    rgb, xy_T2 = episode(61)
    pointer = TruthPointer(xy_T2)
    tracked = track(rgb, pointer, point_every=every)
    assert sorted(pointer.calls) == sorted({*range(0, 61, every), 60})
    assert error_px(tracked, xy_T2).max() <= 1.0
    between = ~tracked.from_pointer_T
    assert np.isfinite(tracked.disagreement_TA[between]).all()
    assert np.isnan(tracked.disagreement_TA[~between]).all()
    assert (tracked.points.confidence_NA[between] > 0.5).all()


def test_standing_still_is_not_followed_by_luck() -> None:
    """Interpolating between the keyframes instead of following is 4 px off on this curve."""
    rgb, xy_T2 = episode(61)
    every = np.arange(0, 61, 20)
    straight = np.stack([np.interp(np.arange(61), every, xy_T2[every, a]) for a in (0, 1)], axis=1)
    assert (np.linalg.norm(straight - xy_T2, axis=1) * (SIDE - 1)).max() > 4
    tracked = track(rgb, TruthPointer(xy_T2), point_every=20)
    assert error_px(tracked, xy_T2).max() <= 1.0


def test_paths_that_lag_evenly_are_bent_to_the_truth() -> None:
    """Flow that sees a third of background covers two thirds of the way; bending restores all of it."""
    truth = np.stack([np.linspace(10, 70, 13), 5 * np.sin(np.arange(13.0))], axis=1)
    truth[:, 1] -= np.linspace(truth[0, 1], truth[-1, 1], 13)
    forward = truth[0] + (truth - truth[0]) * [2 / 3, 1]
    backward = truth[-1] + (truth - truth[-1]) * [2 / 3, 1]
    assert np.linalg.norm(forward[-1] - truth[-1]) > 15
    blended, apart = blend_paths(forward, backward)
    np.testing.assert_allclose(blended, truth, atol=1e-5)
    np.testing.assert_allclose(apart, 0, atol=1e-5)


def test_the_nearer_keyframe_counts_more() -> None:
    """Hand-computed: the paths bulge apart by 0, 6, 8, 6, 0 pixels; blended by 1/4, 1/2, 3/4."""
    forward, backward = np.zeros((5, 2)), np.zeros((5, 2))
    backward[:, 0] = [0, 6, 8, 6, 0]
    blended, apart = blend_paths(forward, backward)
    np.testing.assert_allclose(blended[:, 0], [0, 1.5, 4, 4.5, 0])
    np.testing.assert_allclose(apart, [0, 6, 8, 6, 0])


@pytest.mark.parametrize(("bulge", "asked"), [(0.015, 2), (0.025, 5)])
def test_paths_that_part_on_the_way_are_not_blended(
    monkeypatch: pytest.MonkeyPatch, bulge: float, asked: int
) -> None:
    """Both paths end where they should, but bulge apart by a share of the diagonal; 2 % is believed."""
    rgb, xy_T2 = episode(5)
    xy_T2[:] = xy_T2[0]
    ways = iter([1.0, 0.0] * 9)  # forwards, then backwards, of every gap that is tried

    def bulging(gray: list, start_px: NDArray, diagonal: float, config: FlowConfig) -> NDArray:
        away = np.sin(np.linspace(0, np.pi, len(gray)))[:, None] * [
            next(ways) * bulge * diagonal,
            0,
        ]
        return (start_px + away).astype(np.float32)

    monkeypatch.setattr("molmoact_data.labels.flow.carry", bulging)
    pointer = TruthPointer(xy_T2)
    tracked = track(rgb, pointer, point_every=4)
    assert len(pointer.calls) == asked
    expected = [bulge] if asked == 2 else [np.nan]
    np.testing.assert_allclose(tracked.disagreement_TA[2], expected, rtol=1e-4)


def test_a_wrong_keyframe_is_asked_around() -> None:
    """A keyframe 40 px off is not blended into its neighbours: the pointer is asked beside it."""
    rgb, xy_T2 = episode(61)
    wrong = xy_T2.copy()
    wrong[30] += 40 / (SIDE - 1)
    pointer = TruthPointer(wrong)
    tracked = track(rgb, pointer, point_every=10)
    assert {29, 31} <= set(pointer.calls)
    error = error_px(tracked, xy_T2)
    assert error[30] > 30
    assert np.delete(error, 30).max() <= 1.0


def test_occlusion_falls_back_to_the_pointer() -> None:
    """While the disc is hidden the pointer is asked again; elsewhere one call in twenty is enough."""
    hidden = range(27, 34)
    rgb, xy_T2 = episode(61, occluded=hidden)
    pointer = TruthPointer(xy_T2)
    tracked = track(rgb, pointer, point_every=20)
    assert set(hidden) <= set(pointer.calls)
    assert len(pointer.calls) == len(set(pointer.calls)) <= 20
    assert error_px(tracked, xy_T2).max() <= 1.5


def test_not_found_is_searched_by_halves_and_never_invented() -> None:
    rgb, xy_T2 = episode(65)
    xy_T2[23:] = np.nan  # the gripper leaves the picture in frame 23
    pointer = TruthPointer(xy_T2)
    tracked = track(rgb, pointer, point_every=32)
    np.testing.assert_array_equal(np.isnan(tracked.points.xy_NA2[:, 0]), np.isnan(xy_T2))
    assert (tracked.points.confidence_NA[23:] == 0).all()
    assert len(pointer.calls) <= 3 + 5  # keyframes 0, 32, 64 and a bisection of 32 frames
    assert np.nanmax(error_px(tracked, xy_T2)) <= 1.0


def test_answers_do_not_depend_on_the_batches() -> None:
    rgb, xy_T2 = episode(61, occluded=range(27, 34))
    results = [track(rgb, TruthPointer(xy_T2), size, point_every=10) for size in (1, 7, 61)]
    for other in results[1:]:
        np.testing.assert_array_equal(other.points.xy_NA2, results[0].points.xy_NA2)
        np.testing.assert_array_equal(other.from_pointer_T, results[0].from_pointer_T)


def test_keyframes_of_a_batch_are_one_call_and_memory_is_one_gap() -> None:
    rgb, xy_T2 = episode(61)
    pointer = TruthPointer(xy_T2)
    tracker = PointTracker(pointer, "point", point_every=10)
    tracker.push(rgb[:45])
    assert pointer.batches == 1
    assert len(tracker._pending) == 5  # frames 40..44
    tracker.push(rgb[45:])
    tracker.finish()
    assert pointer.batches == 2  # frame 60 is a keyframe already


def test_two_arms_are_followed_separately() -> None:
    rgb, xy_T2 = episode(31)

    class TwoArms(TruthPointer):
        num_arms = 2

        def point(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
            one = super().point(rgb_NHWC, prompt).xy_NA2
            corner = np.full_like(one, 100 / (SIDE - 1))
            return GripperPoints(
                np.concatenate([one, corner], axis=1), np.ones((len(one), 2), np.float32)
            )

    tracked = track(rgb, TwoArms(xy_T2), point_every=10)
    assert error_px(tracked, xy_T2).max() <= 1.0
    still = tracked.points.xy_NA2[:, 1] * (SIDE - 1)
    assert np.abs(still - 100).max() <= 0.2


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match="--point-every must be at least 1"):
        PointTracker(TruthPointer(np.zeros((1, 2), np.float32)), "point", point_every=0)
    with pytest.raises(ValueError, match="tolerance"):
        FlowConfig(tolerance=0)
    with pytest.raises(ValueError, match="no frame"):
        PointTracker(TruthPointer(np.zeros((1, 2), np.float32)), "point").finish()
