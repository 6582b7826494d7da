"""Clips: windows that share frames, arms that keep their place, and what is not answered is not found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import GOLDEN
from made_molmo2 import write_molmo2
from numpy.typing import NDArray
from test_data_timed_answers import golden, needs_points

from molmoact_data.config import build
from molmoact_data.errors import UserError
from molmoact_data.labels.pointing import (
    ClipConfig,
    ClipPointer,
    GripperPointer,
    GripperPoints,
    TrackedPoints,
)
from molmoact_data.labels.tracking import PointTracker
from molmoact_data.teachers.answers import Answer
from molmoact_data.teachers.cached import CachedClipPointer, EpisodeKey, cached
from molmoact_data.teachers.molmo2 import Molmo2ClipPointer, longest_answer
from molmoact_data.teachers.timed_answers import TimedPoint, format_timed_points, points_of_clip
from pipelines.config import LabelConfig

FRAMES, SIDE = 101, 64


def frames_THWC() -> NDArray[np.uint8]:
    """Flat pictures, whose number is their colour: flow follows nothing and finds nothing wrong at rest."""
    return np.stack([np.full((SIDE, SIDE, 3), i, np.uint8) for i in range(FRAMES)])


@dataclass
class ClipTruth:
    """A pointer that knows where every arm is, and numbers them anew in every clip, as it likes."""

    xy_TA2: NDArray[np.float32]
    clips: ClipConfig
    orders: Sequence[Sequence[int]] = ((0,),)
    asked: list[list[int]] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)

    @property
    def num_arms(self) -> int:
        return self.xy_TA2.shape[1]

    def describe(self) -> dict[str, str]:
        return {"name": "truth", "revision": "1", "licence": "none"}

    def point(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
        numbers = rgb_NHWC[:, 0, 0, 0].tolist()
        self.pictures += numbers
        xy_NA2 = self.xy_TA2[numbers]
        left_to_right = np.argsort(xy_NA2[..., 0], axis=1)
        return told(np.take_along_axis(xy_NA2, left_to_right[..., None], axis=1))

    def point_clip(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
        assert prompt == self.clips.prompt
        numbers = rgb_NHWC[:, 0, 0, 0].tolist()
        order = self.orders[len(self.asked) % len(self.orders)]
        self.asked.append(numbers)
        return told(self.xy_TA2[numbers][:, list(order)], tokens=[[87 * len(numbers), 10]])


def told(xy_NA2: NDArray[np.float32], tokens: list[list[int]] | None = None) -> GripperPoints:
    return GripperPoints(
        xy_NA2, (~np.isnan(xy_NA2[..., 0])).astype(np.float32), np.array(tokens) if tokens else None
    )


def track(pointer: Any, every: int, batch_size: int = 16, frames: int = FRAMES) -> TrackedPoints:
    tracker = PointTracker(pointer, "point", every)
    for start in range(0, frames, batch_size):
        tracker.push(frames_THWC()[:frames][start : start + batch_size])
    return tracker.finish()


def one_arm() -> NDArray[np.float32]:
    return np.stack([np.linspace(0.1, 0.9, FRAMES), np.full(FRAMES, 0.5)], 1)[:, None].astype(
        np.float32
    )


def test_windows_cover_every_frame_and_share_what_they_should() -> None:
    pointer = ClipTruth(one_arm(), ClipConfig(frames=16, overlap=4))
    tracked = track(pointer, every=1)
    assert isinstance(pointer, ClipPointer)
    np.testing.assert_array_equal(tracked.points.xy_NA2, pointer.xy_TA2)
    assert pointer.asked[0] == list(range(16))
    assert all(a[-4:] == b[:4] for a, b in zip(pointer.asked, pointer.asked[1:], strict=False))
    assert sorted({frame for clip in pointer.asked for frame in clip}) == list(range(FRAMES))
    assert max(map(len, pointer.asked)) == 16
    assert pointer.pictures == []
    spent = tracked.spent
    assert (
        spent.calls == spent.counted_calls == len(pointer.asked) == 9
    )  # 16 frames, then 12 new ones each
    assert spent.pictures == sum(map(len, pointer.asked)) == FRAMES + 8 * 4
    assert (spent.read_tokens, spent.written_tokens) == (87 * spent.pictures, 90)


@pytest.mark.parametrize("frames", [1, 2, 15, 16, 17, 28, 29])
def test_an_episode_of_any_length(frames: int) -> None:
    """Full windows, one frame more, one less; the last frame is asked about once."""
    pointer = ClipTruth(one_arm(), ClipConfig(frames=16, overlap=4))
    tracked = track(pointer, every=1, frames=frames)
    np.testing.assert_array_equal(tracked.points.xy_NA2, pointer.xy_TA2[:frames])
    assert len(pointer.asked) == 1 + max(0, math.ceil((frames - 16) / 12))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("every", [1, 5])
def test_batches_change_nothing(batch_size: int, every: int) -> None:
    def run(size: int) -> tuple[TrackedPoints, list[list[int]], list[int]]:
        pointer = ClipTruth(one_arm(), ClipConfig(frames=6, overlap=2))
        return track(pointer, every, size), pointer.asked, pointer.pictures

    expected, found = run(16), run(batch_size)
    np.testing.assert_array_equal(found[0].points.xy_NA2, expected[0].points.xy_NA2)
    assert found[1] == expected[1]
    assert sorted(found[2]) == sorted(expected[2])


def test_flow_fills_between_the_frames_of_a_clip_and_doubt_asks_pictures() -> None:
    """The pictures stand still and the truth moves: flow disagrees in every gap, so pictures are asked about."""
    still = np.full((FRAMES, 1, 2), 0.5, np.float32)
    pointer = ClipTruth(still, ClipConfig(frames=6, overlap=2))
    same = np.repeat(frames_THWC()[:1], FRAMES, axis=0)
    tracker = PointTracker(pointer, "point", 10)
    texture = np.random.default_rng(0).integers(0, 200, (SIDE, SIDE, 3), dtype=np.uint8)
    texture[0, 0] = 0
    same[:] = texture
    tracker.push(same)
    tracked = tracker.finish()
    assert tracked.from_pointer_T.sum() == 11
    assert pointer.pictures == []
    np.testing.assert_allclose(tracked.points.xy_NA2, still, atol=1e-3)
    moving = ClipTruth(one_arm(), ClipConfig(frames=6, overlap=2))
    tracked = track(moving, every=10)
    assert moving.pictures
    np.testing.assert_allclose(
        tracked.points.xy_NA2[tracked.from_pointer_T], one_arm()[tracked.from_pointer_T]
    )
    assert tracked.spent.calls == len(moving.asked) + len(moving.pictures)


def crossing() -> NDArray[np.float32]:
    """Two arms that change sides in the middle of the episode."""
    x = np.linspace(0.2, 0.8, FRAMES)
    return np.stack([np.stack([x, x * 0 + 0.3], 1), np.stack([1 - x, x * 0 + 0.7], 1)], 1).astype(
        np.float32
    )


@pytest.mark.parametrize("every", [1, 3])
def test_arms_keep_their_place_over_clips_that_number_them_anew(every: int) -> None:
    """Every second clip calls the arms the other way round; pictures in between tell them from left to right."""
    pointer = ClipTruth(crossing(), ClipConfig(frames=12, overlap=4), orders=[(0, 1), (1, 0)])
    tracked = track(pointer, every)
    asked = tracked.from_pointer_T
    np.testing.assert_array_equal(tracked.points.xy_NA2[asked], crossing()[asked])
    assert len(pointer.asked) > 3


def test_what_one_clip_misses_the_next_may_find_and_the_rest_is_not_found() -> None:
    xy = one_arm()

    @dataclass
    class Forgets(ClipTruth):
        def point_clip(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
            points = super().point_clip(rgb_NHWC, prompt)
            points.xy_NA2[-3:] = np.nan  # never tells the last three of a clip
            points.confidence_NA[-3:] = 0
            return points

    pointer = Forgets(xy, ClipConfig(frames=16, overlap=4))
    tracked = track(pointer, every=1)
    missing = np.isnan(tracked.points.xy_NA2[:, 0, 0])
    assert np.flatnonzero(missing).tolist() == [98, 99, 100]
    np.testing.assert_array_equal(tracked.points.xy_NA2[~missing], xy[~missing])
    assert (tracked.points.confidence_NA[missing] == 0).all()


# Molmo2's words


def times(count: int, fps: float = 2.0) -> list[float]:
    return [i / fps for i in range(count)]


def tracking_cases() -> list[int]:
    return [
        i
        for i, told in enumerate(golden("read"))
        if "<tracks" in told["text"] and told["molmo2_tracks"]
    ]


@needs_points
@pytest.mark.parametrize("case", tracking_cases())
def test_tracking_answers_belong_to_the_frames_their_makers_say(case: int) -> None:
    """Every entry of a closed `<tracks>` is at the frame and under the number of the makers' reader."""
    told_by_them = golden("read")[case]
    fps, width, height = told_by_them["fps"], told_by_them["width"], told_by_them["height"]
    numbers = sorted({int(n) for at in told_by_them["molmo2_tracks"] for n in at["points"]})
    last = max(at["frame"] for at in told_by_them["molmo2_tracks"])
    points_NA = points_of_clip(told_by_them["text"], times(last + 1, fps), len(numbers))
    expected = {at["frame"]: at["points"] for at in told_by_them["molmo2_tracks"]}
    for frame, points_A in enumerate(points_NA):
        for number, point in zip(numbers, points_A, strict=True):
            there = expected.get(frame, {}).get(str(number))
            found = None if point is None else [point.x / 100 * width, point.y / 100 * height]
            assert found == (None if there is None else pytest.approx(there["point"]))


@pytest.mark.parametrize(
    ("text", "arms", "expected"),
    [
        ('<tracks coords="0.0 1 100 200;0.5 1 110 200;1.0 1 120 200">g</tracks>', 1, [[10], [11], [12]]),
        # One arm missing in one frame: the other is still known by its number.
        ('<tracks coords="0.0 1 100 200 2 800 200;0.5 2 790 200">g</tracks>', 2, [[10, 80], [None, 79], [None, None]]),
        # Pointing numbers through the whole answer; from left to right, and too few are none.
        ('<points coords="0.0 1 800 200 2 100 200;0.5 3 110 200">g</points>', 2, [[10, 80], [None] * 2, [None] * 2]),
        ('<points coords="0.0 1 100 200;1.0 2 110 200">g</points>', 1, [[10], [None], [11]]),
        # A third thing is no arm; a time that was not told is no frame.
        ('<tracks coords="0.0 1 100 200 2 500 500;0.7 1 110 200">g</tracks>', 1, [[10], [None], [None]]),
        # Cut off: what is whole counts.
        ('<tracks coords="0.0 1 100 200;0.5 1 110 200;1.0 1 120 2', 1, [[10], [11], [None]]),
        ("There are none.", 1, [[None], [None], [None]]),
        ('<tracks coords="9.0 1 100 200">g</tracks>', 1, [[None], [None], [None]]),
    ],
)  # fmt: skip
def test_an_answer_about_three_frames(
    text: str, arms: int, expected: list[list[int | None]]
) -> None:
    found = points_of_clip(text, times(3), arms)
    assert [[None if p is None else p.x for p in row] for row in found] == expected


@dataclass
class Says:
    """A `ClipModel` that says one text, a character a token, with the probability of a half up to the first `;`."""

    text: str
    asked: list[tuple[int, list[float], str, int]] = field(default_factory=list)

    def answer_clip(
        self,
        frames: Sequence[np.ndarray],
        times_s: Sequence[float],
        question: str,
        *,
        is_complete: Callable[[str], bool],
        max_new_tokens: int,
    ) -> Answer:
        self.asked.append((len(frames), list(times_s), question, max_new_tokens))
        answer = Answer(read_tokens=100)
        for place in range(len(self.text)):
            sure = 0.5 if ";" not in self.text[:place] else 1.0
            answer.append(
                place, math.log(sure), end=-1, is_complete=is_complete,
                decode=lambda ids: "".join(self.text[i] for i in ids),
            )  # fmt: skip
            if answer.complete:
                break
        return answer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    said = [
        '<tracks coords="',
        "0.0 1 100 500",
        *(f";{t / 2} 1 {100 + 20 * t} 500" for t in range(1, 12)),
        '">g',
    ]
    return write_molmo2(tmp_path_factory.mktemp("hub") / "Molmo2-4B", said)


def clip_pointer(checkpoint: Path, **settings: Any) -> Molmo2ClipPointer:
    return Molmo2ClipPointer(str(checkpoint), ClipConfig(**{"frames": 8, **settings}), device="cpu")


def test_a_folder_in_the_released_layout_tracks(checkpoint: Path) -> None:
    """Twelve frames are told; of a clip of eight the rest belongs to no frame, of one of fourteen two stay open."""
    pointer = clip_pointer(checkpoint)
    assert isinstance(pointer, GripperPointer)
    assert isinstance(pointer, ClipPointer)
    points = pointer.point_clip(frames_THWC()[:8], "Track the robot gripper.")
    x = np.array([100 + 20 * t for t in range(8)]) / 1000 * SIDE / (SIDE - 1)
    np.testing.assert_allclose(points.xy_NA2[:, 0, 0], x, rtol=1e-6)
    assert (points.confidence_NA > 0.9).all()
    assert points.tokens_C2 is not None
    assert points.tokens_C2[0, 0] > 8 * 83  # 81 places of patches and two ends each
    longer = pointer.point_clip(frames_THWC()[:14], "Track the robot gripper.")
    assert np.isnan(longer.xy_NA2[:, 0, 0]).tolist() == [False] * 12 + [True] * 2
    assert pointer.describe()["clips"] == "told at 2 frames per second"


def test_confidence_is_of_the_points_own_digits_and_the_rest_of_the_text_is_not_waited_for(
    checkpoint: Path,
) -> None:
    pointer = clip_pointer(checkpoint, fps=4.0)
    pointer.model = said = Says(
        '<tracks coords="0.0 1 100 200;0.2 1 110 200;0.5 1 120 200">and so on and on'
    )
    points = pointer.point_clip(frames_THWC()[:3], "Where?")
    np.testing.assert_allclose(points.confidence_NA[:, 0], [0.5, 1.0, 1.0])
    assert said.asked == [(3, [0.0, 0.25, 0.5], "Where?", longest_answer(3, 1))]
    assert points.tokens_C2 is not None
    assert points.tokens_C2.tolist() == [
        [100, len('<tracks coords="0.0 1 100 200;0.2 1 110 200;0.5 1 120 200"')]
    ]


def test_the_longest_answer_has_room() -> None:
    """Digits, blanks, points and semicolons a token each, every arm in every frame of three hours and more."""
    points = [TimedPoint(t / 2, arm, 100.0, 100.0) for t in range(384) for arm in (1, 2)]
    text = format_timed_points(points, "robot gripper", unit="seconds", tag="tracks")
    assert len(text) <= longest_answer(384, 2)


def test_a_clip_that_is_longer_than_the_model_reads_is_one_line(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="--clip-frames") as caught:
        clip_pointer(checkpoint).point_clip(np.repeat(frames_THWC()[:1], 60, axis=0), "Track it.")
    assert "\n" not in str(caught.value)


MOLMO2 = GOLDEN / "molmo" / "tiny-molmo2"


@pytest.mark.skipif(not MOLMO2.is_dir(), reason=f"no checkpoint at {MOLMO2}; set MOLMOACT_GOLDEN")
def test_the_golden_clip_is_read_as_its_makers_read_it() -> None:
    """Frames, times and question become the stored ids; random weights tell no point, so nothing is found."""
    from test_train_molmo2 import arrays, video_question

    stored = arrays("molmo2_network.npz")
    pointer = clip_pointer(MOLMO2, fps=2.0)
    question = video_question(stored["video_input_ids"][0], pointer.model.processor)  # type: ignore[attr-defined]
    points = pointer.point_clip(stored["frames"], question)
    assert points.tokens_C2 is not None
    assert points.tokens_C2[0, 0] == len(stored["video_input_ids"][0])
    assert np.isnan(points.xy_NA2).all()
    assert (points.confidence_NA == 0).all()


# The cache


EPISODE = EpisodeKey("ds", "rev1", "observation.images.front", 3)


def test_clips_are_paid_for_once_torn_lines_again(tmp_path: Path) -> None:
    first, second, third = (
        ClipTruth(one_arm(), ClipConfig(frames=16, overlap=4)) for _ in range(3)
    )
    first.xy_TA2[20:30] = np.nan
    second.xy_TA2[20:30] = np.nan
    a = track(cached(first, tmp_path, EPISODE), every=1)
    again = cached(second, tmp_path, EPISODE)
    assert isinstance(again, CachedClipPointer)
    b = track(again, every=1)
    assert (len(first.asked), second.asked) == (9, [])
    np.testing.assert_array_equal(a.points.xy_NA2, b.points.xy_NA2)
    assert a.spent == b.spent
    (file,) = tmp_path.rglob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-20])  # killed in the middle of the last line
    third.xy_TA2[20:30] = np.nan
    c = track(cached(third, tmp_path, EPISODE), every=1)
    assert len(third.asked) == 1
    np.testing.assert_array_equal(a.points.xy_NA2, c.points.xy_NA2)


def test_another_picture_in_a_clip_is_another_clip(tmp_path: Path) -> None:
    pointer = ClipTruth(one_arm(), ClipConfig(frames=4, overlap=1))
    over = cached(pointer, tmp_path, EPISODE)
    assert isinstance(over, CachedClipPointer)
    rgb = frames_THWC()[:4].copy()
    over.point_clip(rgb, pointer.clips.prompt)
    rgb[2, 5, 5] += 1
    over.point_clip(rgb, pointer.clips.prompt)
    over.point_frames(rgb[:1], pointer.clips.prompt, [0])
    assert (len(pointer.asked), pointer.pictures) == (2, [0])


# Settings


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pointer": "molmo", "clip_frames": 8}, "for --pointer molmo2"),
        ({"pointer": "molmo2", "clip_frames": 4}, "share 1 to 3 of them, got 4"),
        ({"pointer": "molmo2", "clip_frames": 0}, "2 to 384 frames, got 0"),
        ({"pointer": "molmo2", "clip_frames": 385}, "2 to 384 frames, got 385"),
        ({"pointer": "molmo2", "clip_frames": 8, "clip_overlap": 0}, "share 1 to 7 of them, got 0"),
        (
            {"pointer": "molmo2", "clip_frames": 8, "clip_fps": 25.0},
            "at most 10 frames a second, got 25",
        ),
    ],
)
def test_clips_that_cannot_be_are_one_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        build(LabelConfig, values)
    assert "\n" not in str(caught.value)
    assert build(LabelConfig, {"pointer": "molmo2", "clip_frames": 64}).clip_overlap == 4
