"""A pointer that looks at clips, wherever a run is tried before it is made: preview, `--dry-run`, `evaluate-labels`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_outputs import CAMERAS, HEIGHT, WIDTH, DotSource, FakeDepth, FakeTokenizer
from test_data_label_evaluation import SIDE, FakeSource, last

from molmoact_data.label_quality.evaluate import EvaluationConfig, evaluate_labels
from molmoact_data.label_quality.report import render_report
from molmoact_data.labels.pointing import ClipConfig, GripperPoints
from molmoact_data.labels.tracking import PointTracker
from molmoact_data.sources.base import EpisodeRef
from molmoact_data.teachers.choice import Teachers
from pipelines import estimate, preview
from pipelines.config import nested
from pipelines.preprocess import make_job

LENGTH = 12
DOT_XY = np.array([[(8 + 4 * t) / (WIDTH - 1), (20 + t) / (HEIGHT - 1)] for t in range(LENGTH)])


class NumberedDots(DotSource):
    """`DotSource` whose frames carry their number in the corner."""

    def frames(self, ref: EpisodeRef, camera: str) -> np.ndarray:
        rgb = super().frames(ref, camera)
        rgb[:, 0, 0, 0] = np.arange(len(rgb))
        return rgb


class NumberedClips:
    """Knows where the dot of a numbered frame is; remembers the frames of every clip; never sees a picture alone."""

    num_arms = 1

    def __init__(self, xy_T2: np.ndarray, clips: ClipConfig) -> None:
        self.xy_T2, self.clips = xy_T2, clips
        self.asked: list[list[int]] = []
        self.pictures: list[int] = []

    def describe(self) -> dict[str, str]:
        return {"name": "clips", "revision": "1", "licence": "none"}

    def point(self, rgb_NHWC: np.ndarray, prompt: str) -> GripperPoints:
        numbers = rgb_NHWC[:, 0, 0, 0].astype(int).tolist()
        self.pictures += numbers
        return self._told(numbers)

    def point_clip(self, rgb_NHWC: np.ndarray, prompt: str) -> GripperPoints:
        assert prompt == self.clips.prompt
        assert len(rgb_NHWC) <= self.clips.frames
        numbers = rgb_NHWC[:, 0, 0, 0].astype(int).tolist()
        self.asked.append(numbers)
        return self._told(numbers)

    def _told(self, numbers: list[int]) -> GripperPoints:
        xy_N12 = self.xy_T2[numbers][:, None].astype(np.float32)
        return GripperPoints(xy_N12, np.ones((len(numbers), 1), np.float32))


def settings(**values: Any) -> Any:
    base = {
        "dataset_path": "none",
        "output_path": "none",
        "vqvae": "fake",
        "process_actions": False,
    }
    return nested({**base, **values})


@pytest.mark.parametrize(
    ("clips", "asked"),
    [
        (ClipConfig(16, 4), [[0, 3, 7, 11]]),
        (ClipConfig(4, 2), [[0, 3, 7, 11]]),
        (ClipConfig(3, 1), [[0, 3, 7], [7, 11]]),
        (ClipConfig(2, 1), [[0, 3], [3, 7], [7, 11]]),
    ],
)
def test_a_preview_shows_its_frames_as_clips_of_the_models_length(
    clips: ClipConfig, asked: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = NumberedDots((LENGTH,))
    pointer = NumberedClips(DOT_XY, clips)
    marked: list[np.ndarray] = []

    def mark(rgb: np.ndarray, points: GripperPoints, index: int) -> np.ndarray:
        marked.append(points.xy_NA2[index, 0])
        return rgb

    monkeypatch.setattr(preview, "mark", mark)
    (ref,) = source.episodes
    teachers = Teachers(None, None, pointer)
    tiles, found = preview.show_episode(settings(), source, ref, CAMERAS, teachers)
    assert (len(tiles), found) == (4, 4)
    assert (pointer.asked, pointer.pictures) == (asked, [])
    np.testing.assert_allclose(marked, DOT_XY[[0, 3, 7, 11]], atol=1e-6)


@pytest.mark.parametrize(("every", "frames"), [(1, LENGTH), (2, 7)])
def test_a_dry_run_asks_about_a_clip_of_its_batches(
    every: int, frames: int, tmp_path: Path
) -> None:
    """Two batches of six frames; what they ask about is asked as clips, and the measured batch bears its share."""
    source = NumberedDots((LENGTH, 20))
    pointer = NumberedClips(np.tile(DOT_XY, (2, 1)), ClipConfig(8, 2))
    teachers = Teachers(FakeDepth(), FakeTokenizer(), pointer)
    config = settings(batch_size=6, point_every=every, output_path=str(tmp_path / "out"))
    job = replace(make_job(config, source, CAMERAS, teachers, None), point_cache=None)
    seconds, num_bytes, measured = estimate._label_one_batch(
        job, source.episodes[0], source, teachers
    )
    assert measured == 6
    assert seconds > 0
    assert num_bytes > 0
    assert sorted({frame for clip in pointer.asked for frame in clip}) == (
        list(range(LENGTH)) if every == 1 else [0, 2, 4, 6, 8, 10, 11]
    )
    assert len({frame for clip in pointer.asked for frame in clip}) == frames


class SceneClips(NumberedClips):
    """The truth of the scene whose episode is measured."""

    def __init__(self, source: FakeSource, clips: ClipConfig) -> None:
        super().__init__(source.scenes[0].pixel_T2 / (SIDE - 1), clips)


def test_evaluate_labels_asks_a_clip_pointer_about_clips() -> None:
    """For every K those clips that `preprocess` would ask about."""
    source = FakeSource()
    pointer = SceneClips(source, ClipConfig(8, 2))
    config = EvaluationConfig(point_every=(1, 8), batch_size=10)
    teachers = Teachers(None, None, pointer)
    result = last(evaluate_labels(source, source.episodes[:1], teachers, config))
    expected = SceneClips(source, ClipConfig(8, 2))
    for every in (1, 8):
        tracker = PointTracker(expected, config.prompt, every)
        tracker.push(source.scenes[0].rgb_THWC)
        tracker.finish()
    assert sorted(pointer.asked) == sorted(expected.asked)
    assert [0, 1, 2, 3, 4, 5, 6, 7] in pointer.asked
    assert [0, 8, 16, 24, 32] in pointer.asked
    assert sorted(pointer.pictures) == sorted(expected.pictures)
    assert result.pointing is not None
    assert result.pointing["visible"].median_px == pytest.approx(0, abs=1e-3)


def test_evaluate_labels_measures_keyframes_by_motion() -> None:
    """Beside the tracker that `preprocess` would use; the page says which rule it was."""
    source = FakeSource()
    seen = {}
    for rule in ("regular", "motion"):
        pointer = NumberedClips(source.scenes[0].pixel_T2 / (SIDE - 1), ClipConfig(2, 1))
        pictures = PicturesOnly(pointer)
        config = EvaluationConfig(point_every=(1, 32), batch_size=10, keyframes=rule)  # type: ignore[arg-type]
        result = last(
            evaluate_labels(source, source.episodes[:1], Teachers(None, None, pictures), config)
        )
        tracker = PointTracker(PicturesOnly(pointer), config.prompt, 32, by_motion=rule == "motion")
        tracker.push(source.scenes[0].rgb_THWC)
        asked = tracker.finish().from_pointer_T
        assert result.tracking is not None
        assert [scores.keyframes for scores in result.tracking] == ["regular", rule]
        assert result.tracking[1].calls == pytest.approx(asked.mean())
        seen[rule] = (asked.tolist(), render_report(result))
    assert seen["regular"][0] != seen["motion"][0]
    assert not all(seen["motion"][0])
    assert "by motion, gap at most 32" in seen["motion"][1]
    assert "K = 32" in seen["regular"][1]


class PicturesOnly:
    """The same answers about pictures."""

    num_arms = 1

    def __init__(self, pointer: NumberedClips) -> None:
        self.pointer = pointer

    def describe(self) -> dict[str, str]:
        return self.pointer.describe()

    def point(self, rgb_NHWC: np.ndarray, prompt: str) -> GripperPoints:
        return self.pointer.point(rgb_NHWC, prompt)
