"""`--depth-scaling`: which range depth is coded over, and that shards, preview and measuring agree about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_datasets import make_dataset
from made_outputs import BrightestPixel, DotSource, FakeDepth, FakeTokenizer

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.storage import Storage
from molmoact_data.label_quality.depth import measure_depth
from molmoact_data.labels.depth_scaling import (
    WINDOW,
    DepthScaling,
    SteadyScaler,
    align,
    depth_scaler,
    scale_between,
)
from molmoact_data.outputs.columns import fixed_array
from molmoact_data.outputs.output import Output
from molmoact_data.sources.base import EpisodeRef
from molmoact_data.teachers.choice import Teachers
from molmoact_data.validate.run import validate
from pipelines.config import nested
from pipelines.merge import merge
from pipelines.preprocess import preprocess
from pipelines.preview import scaled_depth
from vqvae.depth.data import DepthEpisode, prepare_frames
from vqvae.files import read_depth_u8
from vqvae.recipe import Recipe

HEIGHT, WIDTH = 60, 80
BEHIND = np.s_[:, :, WIDTH // 2 :]
"""What the moving block never hides."""


def still_scene() -> np.ndarray:
    """float32 [H,W]: a slope, far at the top, with the extremes 1 and 5."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return (1 + 4 * (rows * WIDTH + columns) / (HEIGHT * WIDTH - 1)).astype(np.float32)


def with_a_block(
    frames: int, *, enters: int = 4, approach: float = 0.2, sways: float = 0.0
) -> np.ndarray:
    """[T,H,W]: from frame `enters` on, something nearer than all else crosses the left half, comes nearer or sways."""
    depth = np.repeat(still_scene()[None], frames, axis=0)
    for t in range(enters, frames):
        depth[t, 10:30, t - enters : t - enters + 12] = 6 + approach * t + sways * (t % 3)
    return depth


def wandering(depth: np.ndarray) -> np.ndarray:
    """As an estimator gives it whose gain and offset are others in every frame."""
    rng = np.random.default_rng(3)
    gain, offset = rng.uniform(0.7, 1.4, len(depth)), rng.uniform(-3, 3, len(depth))
    return (depth * gain[:, None, None] + offset[:, None, None]).astype(np.float32)


def scaled(name: DepthScaling, depth: np.ndarray) -> np.ndarray:
    return depth_scaler(name).scale(depth)[0].astype(int)


def test_image_is_the_published_formula() -> None:
    depth = np.array([[[1.0, 2.0], [3.0, 5.0]], [[-1.0, -1.0], [-1.0, 0.0]]], np.float32)
    maps, ranges = depth_scaler("image").scale(depth)
    assert maps.tolist() == [[[0, 63], [127, 255]], [[0, 0], [0, 255]]]
    assert ranges.tolist() == [[1, 5], [-1, 0]]
    rng = np.random.default_rng(0)
    depth = rng.normal(size=(5, 33, 47)).astype(np.float32)
    low, high = depth.min(axis=(1, 2), keepdims=True), depth.max(axis=(1, 2), keepdims=True)
    published = ((depth - low) / (high - low + 1e-8) * 255.0).astype(np.uint8)
    np.testing.assert_array_equal(depth_scaler("image").scale(depth)[0], published)


def test_a_still_background_keeps_its_value_while_something_enters() -> None:
    depth = with_a_block(30)
    image, steady = scaled("image", depth)[BEHIND], scaled("steady", depth)[BEHIND]
    np.testing.assert_array_equal(steady[:4], image[:4])
    changes = [bool((steady[t] != steady[t - 1]).any()) for t in range(1, 30)]
    # It enters in frame 4, and is believed in frame 5, when it has been there for two of three.
    assert changes.index(True) == 4
    per_image = np.abs(np.diff(image, axis=0)).mean(axis=(1, 2))
    assert (per_image[3:] > 0).all()
    away = np.concatenate([depth, with_a_block(20, enters=20)])
    steady = scaled("steady", away)[BEHIND]
    np.testing.assert_array_equal(steady[30:], np.repeat(steady[29:30], 20, axis=0))
    assert np.abs(scaled("image", away)[BEHIND][30] - scaled("image", away)[BEHIND][29]).mean() > 20


def test_an_estimator_whose_scale_wanders_changes_nothing() -> None:
    """Beside what the same scene gives with a steady estimator; a level is a rounding."""
    depth = with_a_block(40)
    expected = scaled("steady", depth)
    found = scaled("steady", wandering(depth))
    np.testing.assert_allclose(found, expected, atol=1)
    assert (found != expected).mean() < 0.02


def test_a_frame_depends_on_the_past_alone_however_batches_are_cut() -> None:
    rng = np.random.default_rng(5)
    depth = wandering(with_a_block(25)) + rng.normal(0, 0.01, (25, HEIGHT, WIDTH)).astype(
        np.float32
    )
    whole, ranges = depth_scaler("steady").scale(depth)
    for cuts in ([3], [1, 2, 20], [12, 13]):
        scaler = depth_scaler("steady")
        parts = [scaler.scale(part)[0] for part in np.split(depth, cuts)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    for end in (1, 6, 17):
        np.testing.assert_array_equal(depth_scaler("steady").scale(depth[:end])[0], whole[:end])
    np.testing.assert_array_equal(scale_between(depth, ranges), whole)


def test_the_range_is_that_of_the_last_frames() -> None:
    """Against plain loops; nothing wanders, so that a frame's units are the episode's."""
    rng = np.random.default_rng(1)
    depth = np.repeat(still_scene()[None], 3 * WINDOW, axis=0)
    depth[:, :3, :3] = rng.uniform(4, 9, (len(depth), 1, 1))
    depth[:, -3:, -3:] = rng.uniform(-4, 1, (len(depth), 1, 1))
    ends = np.array([[frame.min(), frame.max()] for frame in depth], np.float64)
    settled = [
        np.median(ends[max(t - 2, 0) : t + 1], axis=0) if t > 1 else ends[t]
        for t in range(len(ends))
    ]
    expected = []
    for t in range(len(depth)):
        last = settled[max(t - WINDOW + 1, 0) : t + 1]
        expected.append([min(low for low, _ in last), max(high for _, high in last)])
    np.testing.assert_allclose(depth_scaler("steady").scale(depth)[1], expected, rtol=1e-6)


def test_one_flash_moves_nothing_but_itself() -> None:
    depth = np.repeat(still_scene()[None], 12, axis=0)
    depth[6, :4, :4] = 80.0
    maps = scaled("steady", depth)
    clean = np.delete(maps, 6, axis=0)
    np.testing.assert_array_equal(clean, np.repeat(maps[:1], 11, axis=0))
    assert (maps[6, :4, :4] == 255).all()
    np.testing.assert_array_equal(maps[6, 4:], maps[0, 4:])


@pytest.mark.parametrize("lost", [0.0, np.nan, "noise"])
def test_a_lost_picture_and_a_cut_begin_anew(lost: Any) -> None:
    """What comes after is scaled as if the episode began there; the values before have no say."""
    other = still_scene()[::-1, ::-1].copy()
    other[20:30, 30:60] = 0.5
    after = np.repeat(other[None], 4, axis=0)
    nothing = np.full((1, HEIGHT, WIDTH), 0.0 if lost == "noise" else lost, np.float32)
    if lost == "noise":
        nothing = np.random.default_rng(0).normal(size=nothing.shape).astype(np.float32)
    with np.errstate(invalid="ignore"):
        maps = scaled("steady", np.concatenate([with_a_block(9), nothing, after]))
    np.testing.assert_array_equal(maps[10:], scaled("image", after))
    cut = scaled("steady", np.concatenate([with_a_block(9), after]))
    np.testing.assert_array_equal(cut[9:], scaled("image", after))


def test_flat_maps_are_all_zero_and_tell_no_gain() -> None:
    flat = np.full((3, 8, 8), 7.0, np.float32)
    assert not scaled("steady", flat).any()
    assert align(flat[0].astype(np.float64), still_scene().astype(np.float64)[:8, :8]) is None
    assert align(still_scene().astype(np.float64)[:8, :8], flat[0].astype(np.float64)) is None


def test_a_flat_background_before_which_something_moves() -> None:
    depth = np.ones((10, 40, 40), np.float32)
    depth[:, :2, :2] = 0.0
    for t in range(10):
        depth[t, 10:14, 2 * t : 2 * t + 4] = 3.0
    maps = scaled("steady", depth)
    assert np.unique(maps[:, 20:]).tolist() == [85]


def test_gain_and_offset_are_found_beside_a_quarter_that_moved() -> None:
    rng = np.random.default_rng(2)
    now = rng.normal(size=(64, 64))
    before = 2.5 * now - 1.25
    before[:32, :32] = rng.uniform(5, 20, (32, 32))
    assert align(now, before) == pytest.approx((2.5, -1.25), abs=1e-6)


def test_unknown_names_are_told() -> None:
    with pytest.raises(UserError, match="steady"):
        depth_scaler("stedy")


# In outputs


class BlockSource(DotSource):
    """A grey picture of `with_a_block`, whose block sways."""

    def frames(self, ref: EpisodeRef, camera: str) -> np.ndarray:
        depth = (
            with_a_block(ref.num_frames, enters=3 + ref.episode_index % 3, approach=0, sways=1) * 20
        )
        return np.repeat(depth.astype(np.uint8)[..., None], 3, axis=3)


class WanderingDepth(FakeDepth):
    """Its scale follows the brightest thing."""

    def estimate(self, rgb_NHWC: np.ndarray) -> np.ndarray:
        depth = super().estimate(rgb_NHWC)
        return depth / depth.max(axis=(1, 2), keepdims=True)


TEACHERS = Teachers(WanderingDepth(), FakeTokenizer(), BrightestPixel())


def columns_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(path / schema.DATA_DIR)
    return fixed_array(table[schema.DEPTH_CODES]), fixed_array(table[schema.DEPTH_RANGE])


def test_the_codes_of_an_output_are_those_of_each_episode_by_itself(
    make_output: Callable[..., Path],
) -> None:
    """Eight frames a batch; the range that is stored makes the same codes again."""
    source = BlockSource((20, 9, 7))
    path = make_output(source=source, teachers=TEACHERS, depth_scaling="steady")
    assert validate(str(path)).passed
    codes, ranges = columns_of(path)
    start, changed = 0, {}
    for ref in source.episodes:
        depth = WanderingDepth().estimate(source.frames(ref, ""))
        rows = slice(start, start + ref.num_frames)
        for name in ("image", "steady"):
            own = FakeTokenizer().encode(depth_scaler(name).scale(depth)[0])
            changed[name] = changed.get(name, 0) + (own[1:] != own[:-1]).sum()
            assert (codes[rows] == own).all() == (name == "steady")
        again = FakeTokenizer().encode(scale_between(depth, ranges[rows]))
        np.testing.assert_array_equal(codes[rows], again)
        start = rows.stop
    assert changed["steady"] < 0.5 * changed["image"]


def test_manifest_and_report_say_it_and_merging_refuses_a_mixture(
    make_output: Callable[..., Path], tmp_path: Path
) -> None:
    one = make_output("one", depth_scaling="steady")
    two = make_output("two", source=DotSource(first_episode=50))
    said = [Output.open(path).manifest.depth_scaling for path in (one, two)]
    assert said == ["steady", "image"]
    for path, words in ((one, "kept over the episode"), (two, "the range of each image")):
        assert words in (path / schema.REPORT_FILE).read_text()
    with pytest.raises(UserError, match=r"labels\.depth_scaling.*depth scalings never merge"):
        merge(
            [Output.open(one), Output.open(two)],
            Storage(str(tmp_path / "both")),
            resume=False,
            overwrite=False,
        )


def test_preview_and_measuring_see_the_depth_that_is_coded(
    make_output: Callable[..., Path],
) -> None:
    """Both look at some frames only, and show a range that looks back the others, too."""
    source = BlockSource((20,))
    (ref,) = source.episodes
    rgb = source.frames(ref, "")
    codes, _ = columns_of(make_output(source=source, teachers=TEACHERS, depth_scaling="steady"))
    shown = np.array([0, 7, 13, 19])
    maps = scaled_depth(source, ref, "any", shown, rgb[shown], WanderingDepth(), "steady")
    np.testing.assert_array_equal(FakeTokenizer().encode(maps), codes[shown])

    class Decodes(FakeTokenizer):
        def decode(self, codes: np.ndarray) -> np.ndarray:
            return codes.reshape(-1, 10, 10).astype(np.float32) / 127

    scaler, found = depth_scaler("steady"), []
    for start in (0, 11):
        part = slice(start, start + 11)
        rows = [i for i in range(len(rgb[part])) if (start + i) % 4 == 0]
        truth = 1 / (1 + rgb[part].mean(axis=3))
        found += measure_depth(rgb[part], truth, WanderingDepth(), Decodes(), scaler, rows)
    measured = np.stack([told.codes_N for _, told in found if told])
    np.testing.assert_array_equal(measured, codes[::4])


def test_the_codebook_is_trained_and_asked_with_the_same_rule(tmp_path: Path) -> None:
    depth = wandering(with_a_block(12))
    expected, _ = depth_scaler("steady").scale(depth)
    np.save(tmp_path / "depth.npy", depth)
    np.testing.assert_array_equal(read_depth_u8(tmp_path / "depth.npy", "steady"), expected)
    assert (read_depth_u8(tmp_path / "depth.npy") != expected).any()
    parts = DepthEpisode("d", "e", lambda: iter([depth[:5], depth[5:]]))
    side = 64
    prepared = np.concatenate(
        list(prepare_frames(parts, size=side, recipe=Recipe(), scaling="steady"))
    )
    rows, columns = np.arange(side) * HEIGHT // side, np.arange(side) * WIDTH // side
    np.testing.assert_array_equal(prepared, expected[:, rows[:, None], columns])


class KilledDepth(WanderingDepth):
    """Is interrupted at its sixth batch."""

    calls = 0

    def estimate(self, rgb_NHWC: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.calls == 6:
            raise KeyboardInterrupt
        return super().estimate(rgb_NHWC)


def test_killed_in_an_episode_and_resumed_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of an episode begins with the episode, whatever was labelled before it."""
    dataset = make_dataset(tmp_path / "squares", lengths=[9, 12, 7])

    def run(
        name: str, depth: Any, *, resume: bool = False, scaling: str = "steady"
    ) -> dict[str, bytes]:
        teachers = Teachers(depth, FakeTokenizer(), None)
        for module in ("pipelines.preprocess", "pipelines.shards.build"):
            monkeypatch.setattr(f"{module}.load_teachers", lambda *_: teachers)
        values = {
            "dataset_path": str(dataset), "output_path": str(tmp_path / name), "depth": "embedded", "vqvae": "embedded",
            "pointer": "none", "depth_scaling": scaling, "batch_size": 4, "frames_per_shard": 10,
        }  # fmt: skip
        preprocess(nested(values), resume=resume, overwrite=False)
        files = [p for p in (tmp_path / name).rglob("*") if p.is_file()]
        return {p.relative_to(tmp_path / name).as_posix(): p.read_bytes() for p in files}

    undisturbed = run("whole", WanderingDepth())
    with pytest.raises(KeyboardInterrupt):
        run("killed", KilledDepth())
    assert run("killed", WanderingDepth(), resume=True) == undisturbed
    with pytest.raises(UserError, match="depth_scaling"):
        run("whole", WanderingDepth(), resume=True, scaling="image")


def test_the_memory_is_one_window() -> None:
    scaler = SteadyScaler(window=4)
    depth = np.repeat(still_scene()[None], 20, axis=0)
    depth[:5, :2, :2] = 9.0
    ranges = scaler.scale(depth)[1]
    assert ranges[:, 1].tolist() == [9.0] * 9 + [5.0] * 11
