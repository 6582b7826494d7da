"""The stream of samples and its augmentation: pure functions of seed and position."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from molmoact_data.errors import UserError
from molmoact_train.data import augment
from molmoact_train.data.mixture import (
    DataArgument,
    Mixture,
    parse_data_argument,
    positions_of,
    sample_rng,
    sampling_rates,
)


def test_path_and_weight(tmp_path: Path) -> None:
    assert parse_data_argument("runs/a:0.25").weight == 0.25
    assert parse_data_argument("runs/a") == DataArgument("runs/a", None)
    odd = tmp_path / "run:3"
    odd.mkdir()
    assert parse_data_argument(str(odd)).path == str(odd)
    with pytest.raises(UserError, match="positive"):
        parse_data_argument("runs/a:0")


def test_rates_are_square_roots_of_sizes_or_the_given_weights() -> None:
    assert sampling_rates([100, 400], [None, None]) == pytest.approx([1 / 3, 2 / 3])
    assert sampling_rates([100, 400], [3.0, 1.0]) == pytest.approx([0.75, 0.25])
    with pytest.raises(UserError, match="all of them one"):
        sampling_rates([1, 2], [None, 1.0])


def test_an_epoch_reads_every_row_once_in_a_new_order() -> None:
    mixture = Mixture([37], np.array([1.0]), seed=1)
    first, second = ([mixture.at(p).row for p in range(e * 37, e * 37 + 37)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(37))
    assert first != second
    assert mixture.at(37).epoch == 1


def test_any_position_can_be_asked_first() -> None:
    """A resumed or parallel reader starts anywhere: a fresh object must agree with one that walked."""
    arguments = ([50, 7, 900], np.array([0.2, 0.1, 0.7]), 5)
    walked = Mixture(*arguments)
    stream = [walked.at(p) for p in range(0, 70_000, 7)]
    for draw in (stream[0], stream[-1], stream[5_000]):
        assert Mixture(*arguments).at(draw.position) == draw
    counts = Counter(draw.source for draw in stream)
    assert [counts[i] / len(stream) for i in range(3)] == pytest.approx([0.2, 0.1, 0.7], abs=0.02)


def test_draws_of_a_source_are_consecutive_across_the_block_border() -> None:
    mixture = Mixture([10**6, 10**6], np.array([0.5, 0.5]), seed=2)
    rows = [d.row for d in map(mixture.at, range(65_000, 66_000)) if d.source == 0]
    assert len(set(rows)) == len(rows), "a row was read twice within one epoch"


def test_seed_changes_the_stream() -> None:
    streams = [[Mixture([100], np.ones(1), seed=s).at(p).row for p in range(9)] for s in (1, 2)]
    assert streams[0] != streams[1]
    assert sample_rng(1, 7).random() == sample_rng(1, 7).random() != sample_rng(1, 8).random()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_each_global_batch_without_overlap(world_size: int) -> None:
    parts = [positions_of(3, 8, rank, world_size) for rank in range(world_size)]
    assert sorted(p for part in parts for p in part) == list(range(24, 32))
    assert len({len(part) for part in parts}) == 1


def marked(size: tuple[int, int], trace: list[list[int]]) -> Image.Image:
    """A dark image with a white dot at each trace point (0..255 over the frame)."""
    image = Image.new("RGB", size)
    pen = ImageDraw.Draw(image)
    for x, y in trace:
        cx, cy = x / 255 * (size[0] - 1), y / 255 * (size[1] - 1)
        pen.ellipse([cx - 2, cy - 2, cx + 2, cy + 2], fill="white")
    return image


@pytest.mark.parametrize("size", [(320, 240), (256, 256), (200, 300)])
def test_the_trace_moves_with_the_pixels(size: tuple[int, int]) -> None:
    """Brute force: find the dot in the cropped image and compare it with the moved point."""
    rng = np.random.default_rng(0)
    for point in ([120, 90], [31, 200], [240, 17]):
        crop = augment.draw_crop(rng, [point])
        assert crop != augment.WHOLE
        pixels = np.asarray(augment.crop_image(marked(size, [point]), crop), dtype=float)[..., 0]
        ys, xs = np.mgrid[: size[1], : size[0]]
        found = np.array([(pixels * xs).sum(), (pixels * ys).sum()]) / pixels.sum()
        (moved,) = augment.crop_trace([point], crop, size)
        expected = np.array(moved) / 255 * (np.array(size) - 1)
        assert np.abs(found - expected).max() < 1.0, (size, point, found, expected)


def test_the_crop_keeps_area_aspect_and_all_points() -> None:
    trace = [[10, 20], [240, 100]]
    for seed in range(50):
        crop = augment.draw_crop(np.random.default_rng(seed), trace)
        assert crop.side**2 == pytest.approx(0.9)
        assert crop.left <= 10 / 255 <= 240 / 255 <= crop.left + crop.side + 1e-9
        moved = np.array(augment.crop_trace(trace, crop, (320, 240)))
        assert moved.min() >= 0
        assert moved.max() <= 255
    wide = [[0, 0], [255, 255]]
    assert augment.draw_crop(np.random.default_rng(0), wide) == augment.WHOLE


def test_depth_keeps_the_first_camera_whole() -> None:
    """Only colours change then; without jitter the first camera would be untouched, the second not."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    trace = [[[100, 100], [120, 130]]]
    kept = augment.augment([image, image], trace, np.random.default_rng(3), crop_first=False)
    moved = augment.augment([image, image], trace, np.random.default_rng(3), crop_first=True)
    assert kept.traces == trace
    assert moved.traces != trace
    assert kept.images[0].tobytes() != moved.images[0].tobytes()
    assert kept.images[1].tobytes() == moved.images[1].tobytes()


def test_hue_shift_wraps_and_nothing_shifts_at_zero() -> None:
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    assert augment.shift_hue(red, 0.0).getpixel((0, 0)) == (255, 0, 0)
    assert augment.shift_hue(red, 1 / 3).getpixel((0, 0))[1] > 250
    assert augment.shift_hue(red, -1 / 3).getpixel((0, 0))[2] > 250
