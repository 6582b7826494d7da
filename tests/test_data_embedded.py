"""The embedded teachers on the shipped demonstrations, whose scenes they were not trained on."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import spearmanr

from molmoact_data.labels.depth import DepthEstimator
from molmoact_data.labels.pointing import DEFAULT_PROMPT, GripperPointer, GripperPoints
from molmoact_data.teachers.embedded import (
    DEPTH_WEIGHTS,
    POINTER_WEIGHTS,
    EmbeddedDepth,
    EmbeddedPointer,
    from_window,
    windows,
)
from molmoact_data.teachers.embedded_networks import PointerNetwork, to_input
from scripts.embedded.metrics import pointing_scores

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo_dataset"
EPISODE = 4


def rows(episode: int) -> dict[str, list]:
    return pq.read_table(DEMO / f"data/chunk-000/episode_{episode:06d}.parquet").to_pydict()


def front_frames(episode: int) -> NDArray[np.uint8]:
    path = DEMO / f"videos/chunk-000/observation.images.front/episode_{episode:06d}.mp4"
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    return front_frames(EPISODE)[::4]


@pytest.fixture(scope="module")
def pointer() -> EmbeddedPointer:
    return EmbeddedPointer(device="cpu", min_confidence=0.0)


def test_they_are_what_the_registry_promises(pointer: EmbeddedPointer) -> None:
    depth = EmbeddedDepth(device="cpu")
    assert isinstance(depth, DepthEstimator)
    assert isinstance(pointer, GripperPointer)
    for teacher, path in ((depth, DEPTH_WEIGHTS), (pointer, POINTER_WEIGHTS)):
        said = teacher.describe()
        assert said["name"] == "embedded"
        assert said["licence"] == "Apache-2.0"
        assert said["revision"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_stay_small() -> None:
    assert DEPTH_WEIGHTS.stat().st_size < 4e6
    assert POINTER_WEIGHTS.stat().st_size < 4e6


def test_points_lie_on_the_recorded_gripper(frames, pointer) -> None:
    points = pointer.point(frames, DEFAULT_PROMPT)
    recorded = np.array(rows(EPISODE)["observation.gripper_pixel"], np.float32)[::4]
    error_px = np.linalg.norm(points.xy_NA2[:, 0] * 255 - recorded, axis=1)
    assert np.median(error_px) < 3.0, "median error in pixels of 256"
    assert (error_px < 8).mean() > 0.9


def test_depth_orders_the_scene_like_the_recorded_one(frames) -> None:

    inverse = EmbeddedDepth(device="cpu").estimate(frames[:3])
    for index, predicted in enumerate(inverse):
        png = rows(EPISODE)["observation.depth.front"][4 * index]["bytes"]
        truth = np.asarray(Image.open(io.BytesIO(png))).astype(np.int32)
        assert spearmanr(predicted.ravel(), -truth.ravel()).statistic > 0.92


@pytest.mark.parametrize("size", [(256, 256), (120, 200)])
def test_depth_has_the_size_of_its_image(frames, size) -> None:
    rgb = frames[:2, : size[0], : size[1]]
    depth = EmbeddedDepth(device="cpu").estimate(rgb)
    assert depth.shape == (2, *rgb.shape[1:3])
    assert depth.dtype == np.float32
    assert np.isfinite(depth).all()


def test_batches_do_not_change_the_answer(frames, pointer) -> None:
    one_by_one = EmbeddedPointer(device="cpu", batch_size=1, min_confidence=0.0)
    together = pointer.point(frames[:5], DEFAULT_PROMPT)
    singly = one_by_one.point(frames[:5], DEFAULT_PROMPT)
    np.testing.assert_allclose(together.xy_NA2, singly.xy_NA2, atol=1e-4)


def test_an_empty_batch_is_an_empty_answer(pointer) -> None:
    nothing = np.empty((0, 64, 64, 3), np.uint8)
    assert pointer.point(nothing, DEFAULT_PROMPT).xy_NA2.shape == (0, 1, 2)
    assert EmbeddedDepth(device="cpu").estimate(nothing).shape == (0, 64, 64)


def test_a_point_that_is_not_trusted_is_not_found(frames) -> None:
    points = EmbeddedPointer(device="cpu", min_confidence=1.1).point(frames[:2], DEFAULT_PROMPT)
    assert np.isnan(points.xy_NA2).all()
    assert (points.confidence_NA == 0).all()


def test_soft_argmax_of_one_hot_heat_is_that_cell() -> None:
    """With all weight on one cell and no offset the point is the cell's centre in unit coordinates."""
    network = PointerNetwork().eval()
    cells = network.input_size // 8
    row, column = 5, 9
    heat = torch.full((1, 3, cells, cells), 0.0)
    heat[0, 0] = -1e4
    heat[0, 0, row, column] = 1e4
    network.head.forward = lambda _: heat  # type: ignore[method-assign]
    image = torch.zeros(1, network.input_size, network.input_size, 3, dtype=torch.uint8)
    xy, _, _ = network(to_input(image, network.input_size))
    centre_px = np.array([column, row]) * 8 + 3.5  # pixel index of the middle of an 8 px cell
    np.testing.assert_allclose(xy[0].detach().numpy(), centre_px / 255, atol=1e-6)


def test_second_look_is_cut_around_the_first_and_stays_inside() -> None:
    """Pixels carry their own column and row, so that a window says where it was cut."""
    height, width = 40, 60
    rgb = torch.zeros(3, height, width, 3, dtype=torch.uint8)
    rgb[..., 0] = torch.arange(width, dtype=torch.uint8)
    rgb[..., 1] = torch.arange(height, dtype=torch.uint8)[:, None]
    cut, corner = windows(rgb, torch.tensor([[0.5, 0.5], [0.0, 0.0], [1.0, 0.9]]))
    assert cut.shape == (3, 20, 30, 3)
    np.testing.assert_array_equal(cut[:, 0, 0, :2], corner)
    assert corner[1].tolist() == [0, 0]
    assert corner[2].tolist() == [30, 20]
    assert abs(float(corner[0, 0]) + 14.5 - 29.5) <= 1, "the point is in the window's middle"


def test_a_point_in_the_window_is_the_same_point_in_the_image() -> None:
    """Hand-computed: the middle of an 80x50 window whose corner is (20, 10) is pixel index (59.5, 34.5)."""
    middle, corner = torch.tensor([[0.5, 0.5]]), torch.tensor([[20.0, 10.0]])
    xy = from_window(middle, corner, (50, 80), (100, 160), 256)
    np.testing.assert_allclose(xy[0], [59.5 / 159, 34.5 / 99], rtol=1e-6)


def test_pointing_scores_count_visible_frames_only() -> None:
    xy = np.array([[[0.0, 0.0]], [[1.0, 1.0]], [[0.5, 0.5]]], np.float32)
    points = GripperPoints(xy, np.array([[0.9], [0.9], [0.1]], np.float32))
    truth = np.array([[3.0, 4.0], [255.0, 255.0], [0.0, 0.0]], np.float32)
    visible = np.array([True, True, False])
    scores = pointing_scores(points, truth, visible, 256)
    assert scores["visible_frames"] == 2
    assert scores["median_px"] == pytest.approx(2.5)
    assert scores["within_8_px"] == 1.0
    assert scores["visibility_accuracy"] == 1.0
