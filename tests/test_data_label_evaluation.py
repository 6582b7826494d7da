"""Label quality: every number against a hand-computed or independent answer, then the whole on a small dataset."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

import cli
from molmoact_data.errors import UserError
from molmoact_data.label_quality.depth import nearest
from molmoact_data.label_quality.evaluate import (
    EvaluationConfig,
    LabelEvaluation,
    evaluate_labels,
    parse_point_every,
)
from molmoact_data.label_quality.report import render_report
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.pages.charts import round_up
from molmoact_data.sources.base import (
    CameraBatch,
    CameraFeature,
    EpisodeColumns,
    EpisodeRef,
    SourceInfo,
)
from molmoact_data.teachers.choice import Teachers
from molmoact_data.teachers.column import RecordedPoints

SIDE, FRAMES = 64, 33
FRONT, DEPTH = "observation.images.front", "observation.depth.front"
PIXEL, VISIBLE = "observation.gripper_pixel", "observation.gripper_visible"


@dataclass
class Scene:
    """One textured disc that moves over a textured floor, nearer than it; it leaves the picture at the end."""

    rgb_THWC: np.ndarray
    depth_THW: np.ndarray
    pixel_T2: np.ndarray
    visible_T: np.ndarray


def scene(seed: int) -> Scene:
    rng = np.random.default_rng(seed)
    floor = cv2.GaussianBlur(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), (5, 5), 0)
    disc = cv2.GaussianBlur(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), (5, 5), 0)
    floor_m = np.repeat(np.linspace(2, 1, SIDE)[:, None], SIDE, axis=1)
    pixel_T2 = np.stack([12 + np.arange(FRAMES) * 1.7, np.full(FRAMES, 20 + seed)], axis=1)
    rgb, depth = [], []
    for i, (x, y) in enumerate(pixel_T2):
        grid = np.indices((SIDE, SIDE))
        mask = np.hypot(grid[1] - x, grid[0] - y) <= 9
        moved = np.roll(disc, (int(y), int(x)), axis=(0, 1))
        frame = np.where(mask[..., None], moved, floor)
        frame[0, 0] = i  # the frame's number, for the fakes
        rgb.append(frame)
        depth.append(np.where(mask, 0.5, floor_m))
    visible_T = np.arange(FRAMES) % 8 != 0
    return Scene(np.stack(rgb), np.stack(depth), pixel_T2.astype(np.float32), visible_T)


class FakeSource:
    """Two scenes as an `EpisodeSource`."""

    def __init__(self) -> None:
        self.scenes = [scene(0), scene(5)]
        cameras = (
            CameraFeature(FRONT, SIDE, SIDE, "image"),
            CameraFeature(DEPTH, SIDE, SIDE, "image", is_depth=True),
        )
        self.info = SourceInfo("fake", "r1", "fake", 10.0, cameras, 1, None, None)
        self.episodes = [EpisodeRef(i, FRAMES) for i in range(2)]

    def read_columns(self, ref: EpisodeRef, extra: Sequence[str] = ()) -> EpisodeColumns:
        told = self.scenes[ref.episode_index]
        columns = {PIXEL: told.pixel_T2, VISIBLE: told.visible_T}
        frames = np.arange(FRAMES, dtype=np.int32)
        return EpisodeColumns(
            ref.episode_index, frames, frames / np.float32(10), ("go",) * FRAMES,
            np.zeros((FRAMES, 1), np.float32), None, {name: columns[name] for name in extra},
        )  # fmt: skip

    def iter_frames(
        self, ref: EpisodeRef, camera_keys: Sequence[str], batch_size: int
    ) -> Iterator[dict[str, CameraBatch]]:
        told = self.scenes[ref.episode_index]
        steps = np.rint(told.depth_THW / 0.0005).astype(np.uint16)
        pictures: Mapping[str, np.ndarray] = {FRONT: told.rgb_THWC, DEPTH: steps}
        for start in range(0, FRAMES, batch_size):
            yield {
                key: CameraBatch(pictures[key][start : start + batch_size], None)
                for key in camera_keys
            }


class TrueDepth:
    """Knows the depth of a source; asked about every fourth frame from frame 0 on, episode after episode."""

    def __init__(self, source: FakeSource) -> None:
        self.depth = dict(enumerate(source.scenes))
        self.asked: list[int] = []

    def describe(self) -> dict[str, str]:
        return {"name": "true", "revision": "1", "licence": "none"}

    def estimate(self, rgb_NHWC: np.ndarray) -> np.ndarray:
        frames = rgb_NHWC[:, 0, 0, 0].astype(int)
        self.asked += frames.tolist()
        episode = 0 if len(self.asked) <= 9 else 1
        return (3 / self.depth[episode].depth_THW[frames] + 1).astype(np.float32)


class FourCodes:
    """Four grey levels on a 4x4 grid."""

    codebook_size = 4
    grid_hw = (4, 4)

    def describe(self) -> dict[str, str]:
        return {"name": "four", "revision": "1", "licence": "none"}

    def encode(self, depth_u8_NHW: np.ndarray) -> np.ndarray:
        small = depth_u8_NHW[:, ::16, ::16].reshape(len(depth_u8_NHW), 16)
        return (small // 64).astype(np.int64)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return ((codes.reshape(-1, 4, 4) * 64 + 32) / 255).astype(np.float32)


class OffsetPointer:
    """The truth, two pixels of 64 to the right; nothing in frame 5; asked frames are remembered."""

    num_arms = 1

    def __init__(self, source: FakeSource) -> None:
        self.scenes = source.scenes
        self.asked: list[int] = []

    def describe(self) -> dict[str, str]:
        return {"name": "offset", "revision": "1", "licence": "none"}

    def point(self, rgb_NHWC: np.ndarray, prompt: str) -> GripperPoints:
        frames = rgb_NHWC[:, 0, 0, 0].astype(int)
        episode = len(self.asked) // FRAMES
        self.asked += frames.tolist()
        xy = (self.scenes[episode].pixel_T2[frames] + [2, 0]) / (SIDE - 1)
        xy = np.where((xy > 1).any(axis=1, keepdims=True) | (frames == 5)[:, None], np.nan, xy)
        found = ~np.isnan(xy[:, 0])
        return GripperPoints(xy[:, None].astype(np.float32), found[:, None].astype(np.float32))


def last(results: Iterator[LabelEvaluation]) -> LabelEvaluation:
    return list(results)[-1]


def test_evaluation_of_known_teachers() -> None:
    source = FakeSource()
    pointer = OffsetPointer(source)
    teachers = Teachers(TrueDepth(source), FourCodes(), pointer)
    config = EvaluationConfig(point_every=(1, 4, 8), batch_size=10)
    result = last(evaluate_labels(source, source.episodes, teachers, config))
    assert (result.episodes, result.frames) == (2, 2 * FRAMES)
    assert set(result.teachers) == {"depth", "depth_tokenizer", "gripper_pointer"}

    assert result.depth is not None
    assert result.depth["frames"] == 18  # frames 0, 4, ..., 32 of both episodes
    assert result.depth["rank_correlation"] == pytest.approx(1)
    assert result.depth["abs_rel"] < 1e-3  # half a step of 0.5 mm
    assert result.depth["edge_f1"] == 1

    assert result.codes is not None
    assert (result.codes.frames, result.codes.codebook_size) == (18, 4)
    assert 2 <= result.codes.codes_used <= 4
    assert result.codes.mean_absolute_error <= 32 / 255 + 1e-6
    assert 1 <= result.codes.perplexity <= result.codes.codes_used

    assert pointer.asked == [*range(FRAMES), *range(FRAMES)]  # once per frame, for all K
    assert result.pointing is not None
    inside = sum(int((s.pixel_T2[:, 0] <= SIDE - 1).sum()) for s in source.scenes)
    assert result.pointing["all"].frames == inside
    assert result.pointing["all"].median_px == pytest.approx(2 * 255 / 63, rel=1e-3)
    assert result.pointing["visible"].frames + result.pointing["hidden"].frames == inside
    assert result.pointing["out_of_frame"].found == 0


def test_tracking_curve_counts_calls_and_fills_gaps() -> None:
    source = FakeSource()
    config = EvaluationConfig(point_every=(4, 1), batch_size=10)
    pointer = RecordedPoints(PIXEL, "pixels")
    result = last(evaluate_labels(source, source.episodes, Teachers(None, None, pointer), config))
    assert result.depth is None
    assert result.tracking is not None
    every, fourth = result.tracking
    assert (every.point_every, every.calls) == (1, 1)
    assert every.points["all"].median_px == pytest.approx(0, abs=1e-4)
    assert fourth.point_every == 4
    assert 9 / FRAMES <= fourth.calls < 0.6
    assert fourth.points["all"].median_px is not None
    assert fourth.points["all"].median_px < 2.5  # a disc drawn on whole pixels, 4 px of 256 each


def test_report_and_json_hold_the_numbers() -> None:
    source = FakeSource()
    teachers = Teachers(TrueDepth(source), FourCodes(), OffsetPointer(source))
    page = render_report(
        last(evaluate_labels(source, source.episodes, teachers, EvaluationConfig()))
    )
    for text in ("Depth codes", "Pointing", "K = 16", "no filter", "<svg", "not on real video"):
        assert text in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_pictures_shrink_by_nearest_neighbour() -> None:
    picture = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(nearest(picture, (3, 2)), picture[:, [0, 2]])


def test_wrong_names_and_settings() -> None:
    source = FakeSource()
    teachers = Teachers(None, None, OffsetPointer(source))
    truth = {"camera": "observation.images.fornt"}
    with pytest.raises(UserError, match=r"Did you mean 'observation\.images\.front'"):
        last(evaluate_labels(source, source.episodes, teachers, cli_config(truth=truth)))
    with pytest.raises(UserError, match="takes numbers"):
        parse_point_every("1,two")
    assert parse_point_every("1, 10") == (1, 10)


def cli_config(**values: Any) -> EvaluationConfig:
    from molmoact_data.config import build

    return build(EvaluationConfig, values)


def png(picture: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """The first scene as a LeRobot v2.1 dataset of image features."""
    told, root = scene(0), tmp_path / "heldout"
    steps = np.rint(told.depth_THW / 0.0005).astype(np.uint16)
    columns = {
        FRONT: [png(rgb) for rgb in told.rgb_THWC],
        DEPTH: [png(depth) for depth in steps],
        PIXEL: told.pixel_T2.tolist(),
        VISIBLE: told.visible_T,
        "action": np.zeros((FRAMES, 2), np.float32).tolist(),
        "timestamp": (np.arange(FRAMES) / 10).astype(np.float32),
        "frame_index": np.arange(FRAMES),
        "episode_index": np.zeros(FRAMES, int),
        "index": np.arange(FRAMES),
        "task_index": np.zeros(FRAMES, int),
    }
    image = {"dtype": "image", "names": ["height", "width", "channel"]}
    features = {
        FRONT: {**image, "shape": [SIDE, SIDE, 3]},
        DEPTH: {**image, "shape": [SIDE, SIDE, 1]},
        PIXEL: {"dtype": "float32", "shape": [2], "names": None},
        VISIBLE: {"dtype": "bool", "shape": [1], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": None},
    }
    info = {
        "codebase_version": "v2.1", "fps": 10, "total_episodes": 1, "total_frames": FRAMES,
        "chunks_size": 1000, "features": features,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    }  # fmt: skip
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(columns), root / "data/chunk-000/episode_000000.parquet")
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "reach"}) + "\n")
    episode = {"episode_index": 0, "tasks": ["reach"], "length": FRAMES}
    (root / "meta/episodes.jsonl").write_text(json.dumps(episode) + "\n")
    return root


def test_command_measures_a_dataset_on_disk(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "quality"
    flags = [
        "evaluate-labels", "--dataset-path", str(dataset), "--output-path", str(out),
        "--depth", "none", "--pointer", "column", "--pointer-column", PIXEL,
        "--point-every", "1,8", "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(cli.app, flags, catch_exceptions=False)
    assert done.exit_code == 0
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == json.loads((out / "labels.json").read_text())
    assert [t["point_every"] for t in told["tracking"]] == [1, 8]
    assert told["pointing"]["visible"]["median_px"] < 0.01
    assert (out / "labels.html").read_text().startswith("<!doctype html>")
    with pytest.raises(UserError, match=r"labels\.json exists\. Add --overwrite"):
        CliRunner().invoke(cli.app, flags, catch_exceptions=False)


def test_command_help_names_the_teachers() -> None:
    done = CliRunner().invoke(cli.app, ["evaluate-labels", "--help"], terminal_width=200)
    assert done.exit_code == 0
    assert "--point-every" in done.stdout


@pytest.mark.parametrize(("largest", "end"), [(0, 1), (0.7, 0.8), (1, 1), (3.1, 4), (81, 100)])
def test_axes_end_at_a_number_that_four_steps_divide(largest: float, end: float) -> None:
    assert round_up(largest) == pytest.approx(end)
