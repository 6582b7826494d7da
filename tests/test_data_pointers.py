"""Recorded columns, against hand-computed points, and the cache in front of a slow pointer.

The cache: what reaches the pointer behind it, after a clean end and after a torn write.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from molmoact_data.errors import UserError
from molmoact_data.labels.pointing import ColumnPointer, GripperPoints
from molmoact_data.labels.tracking import PointTracker
from molmoact_data.teachers.cached import CachedPointer, EpisodeKey
from molmoact_data.teachers.column import RecordedPoints, Units

IMAGE_HW = (241, 321)


@pytest.mark.parametrize(
    ("units", "recorded"),
    [
        ("pixels", [80, 180]),
        ("unit", [0.25, 0.75]),
        ("percent", [100 * 80 / 321, 100 * 180 / 241]),
        ("grid", [63.75, 191.25]),
    ],
)
def test_every_unit_gives_the_same_point(units: Units, recorded: list[float]) -> None:
    """Pixel (80, 180) of 321 x 241 is a quarter of 320 to the right and three quarters of 240 down."""
    pointer = RecordedPoints("observation.gripper", units)
    assert isinstance(pointer, ColumnPointer)
    points = pointer.point_columns(
        {"observation.gripper": np.array([recorded], np.float32)}, IMAGE_HW
    )
    np.testing.assert_allclose(points.xy_NA2, [[[0.25, 0.75]]], rtol=1e-6)
    assert points.confidence_NA.tolist() == [[1.0]]


def test_missing_and_outside_are_not_found() -> None:
    recorded = np.array(
        [[0, 0], [320, 240], [np.nan, 3], [321, 5], [5, -1], [np.inf, 5]], np.float64
    )
    points = RecordedPoints("p", "pixels").point_columns({"p": recorded}, IMAGE_HW)
    np.testing.assert_array_equal(points.confidence_NA[:, 0], [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(points.xy_NA2[:2, 0], [[0, 0], [1, 1]])
    assert np.isnan(points.xy_NA2[2:]).all()


def test_two_arms() -> None:
    recorded = np.array([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [np.nan, np.nan]]])
    points = RecordedPoints("p", "unit", num_arms=2).point_columns({"p": recorded}, IMAGE_HW)
    np.testing.assert_allclose(points.xy_NA2, recorded.astype(np.float32))
    np.testing.assert_array_equal(points.confidence_NA, [[1, 1], [1, 0]])


def test_column_errors_name_what_to_change() -> None:
    with pytest.raises(UserError, match="Did you mean 'pixels'"):
        RecordedPoints("p", "pixel")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="needs the name of the column"):
        RecordedPoints("", "unit")
    with pytest.raises(UserError, match=r"shape \[T, 3\]; points of 1 arm"):
        RecordedPoints("p", "unit").point_columns({"p": np.zeros((4, 3))}, IMAGE_HW)


# --- cache ------------------------------------------------------------------------------------------


@dataclass
class CountingPointer:
    """Points at x = red/255 of the first pixel; black = not found. Remembers what it was asked."""

    asked: list[int] = field(default_factory=list)
    name: str = "counting"
    num_arms: int = 1

    def describe(self) -> dict[str, str]:
        return {"name": self.name, "revision": "1", "licence": "none"}

    def point(self, rgb_NHWC: np.ndarray, prompt: str) -> GripperPoints:
        red = rgb_NHWC[:, 0, 0, 0]
        self.asked += red.tolist()
        x = np.where(red == 0, np.nan, red / 255).astype(np.float32)
        return GripperPoints(
            np.stack([x, x], axis=1)[:, None], (red / 300).astype(np.float32)[:, None]
        )


EPISODE = EpisodeKey("ds", "rev1", "observation.images.front", 3)


def reds(*values: int) -> np.ndarray:
    return np.stack([np.full((4, 4, 3), v, np.uint8) for v in values])


def test_cached_frames_are_not_asked_again(tmp_path: Path) -> None:
    first, second = CountingPointer(), CountingPointer()
    a = CachedPointer(first, tmp_path, EPISODE).point_frames(reds(7, 0, 9), "p", [0, 1, 2])
    b = CachedPointer(second, tmp_path, EPISODE).point_frames(reds(9, 11, 0), "p", [2, 3, 1])
    assert (first.asked, second.asked) == ([7, 0, 9], [11])
    np.testing.assert_array_equal(b.xy_NA2[[0, 2]], a.xy_NA2[[2, 1]])
    np.testing.assert_array_equal(b.confidence_NA[[0, 2]], a.confidence_NA[[2, 1]])


@pytest.mark.parametrize(
    "change",
    [{"dataset": "x"}, {"revision": "rev2"}, {"camera": "wrist"}, {"episode_index": 4},
     {"prompt": "other"}, {"model": "other"}, {"frame": 1}, {"pixels": 8}],
)  # fmt: skip
def test_everything_that_changes_the_answer_is_in_the_key(tmp_path: Path, change: dict) -> None:
    CachedPointer(CountingPointer(), tmp_path, EPISODE).point_frames(reds(7), "p", [0])
    episode = {k: change.get(k, v) for k, v in vars(EPISODE).items()}
    pointer = CountingPointer(name=change.get("model", "counting"))
    cached = CachedPointer(pointer, tmp_path, EpisodeKey(**episode))
    pixels = reds(change.get("pixels", 7))
    cached.point_frames(pixels, change.get("prompt", "p"), [change.get("frame", 0)])
    assert len(pointer.asked) == 1


@pytest.mark.parametrize("cut", [1, 20, 70])
def test_a_torn_write_loses_one_answer(tmp_path: Path, cut: int) -> None:
    CachedPointer(CountingPointer(), tmp_path, EPISODE).point_frames(reds(7, 8, 9), "p", [0, 1, 2])
    (path,) = tmp_path.glob("*/episode_000003.jsonl")
    path.write_bytes(path.read_bytes()[:-cut])
    pointer = CountingPointer()
    cached = CachedPointer(pointer, tmp_path, EPISODE)
    cached.point_frames(reds(7, 8, 9), "p", [0, 1, 2])
    assert pointer.asked == ([] if cut == 1 else [9])
    again = CountingPointer()
    points = CachedPointer(again, tmp_path, EPISODE).point_frames(reds(7, 8, 9), "p", [0, 1, 2])
    assert again.asked == []
    np.testing.assert_allclose(points.xy_NA2[:, 0, 0], np.array([7, 8, 9], np.float32) / 255)


@pytest.mark.parametrize(
    "line", [b"{}", b"[]", b'{"frame": 0, "crc": "x", "xy": [], "confidence": []}', b"\xff", b"[" * 90_000]
)  # fmt: skip
def test_a_line_that_is_no_answer_is_asked_for_again(tmp_path: Path, line: bytes) -> None:
    CachedPointer(CountingPointer(), tmp_path, EPISODE).point_frames(reds(7), "p", [0])
    (path,) = tmp_path.glob("*/episode_000003.jsonl")
    path.write_bytes(line + b"\n")
    pointer = CountingPointer()
    CachedPointer(pointer, tmp_path, EPISODE).point_frames(reds(7), "p", [0])
    assert pointer.asked == [7]


def test_the_cache_reads_its_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CachedPointer(CountingPointer(), tmp_path, EPISODE).point_frames(reds(1), "p", [0])
    read: list[str] = []
    read_bytes = Path.read_bytes

    def counted(self: Path) -> bytes:
        read.append(self.name)
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", counted)
    cached = CachedPointer(CountingPointer(), tmp_path, EPISODE)
    for frame in range(1, 20):
        cached.point_frames(reds(frame), "p", [frame])
    assert read == ["episode_000003.jsonl"]


def test_a_tracker_asks_the_cache_for_its_keyframes(tmp_path: Path) -> None:
    still = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    still[0, 0, 0] = 128
    frames = np.repeat(still, 11, axis=0)
    for asked in (3, 0):
        pointer = CountingPointer()
        tracker = PointTracker(CachedPointer(pointer, tmp_path, EPISODE), "p", point_every=5)
        tracker.push(frames)
        tracked = tracker.finish()
        assert len(pointer.asked) == asked
        assert tracked.from_pointer_T.nonzero()[0].tolist() == [0, 5, 10]
