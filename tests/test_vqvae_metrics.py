"""Metrics against plain loops, and depth places against hand-made files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from made_outputs import DotSource, write_output

from molmoact_data.errors import EpisodeRejected, LimitExceeded, RejectReason, UserError
from molmoact_data.outputs.output import Output
from vqvae.depth import data, places
from vqvae.depth.data import (
    DepthEpisode,
    collect,
    episode_scaler,
    metric_to_inverse,
    prepare_frames,
    write_cache,
)
from vqvae.depth.scenes import depth_maps, random_scene, render_episode
from vqvae.evaluate import check_min_codes, flicker
from vqvae.metrics import (
    ReconstructionSums,
    boundary_mask,
    changed_share,
    code_counts,
    code_usage,
    reconstruction_sums,
)
from vqvae.recipe import RELEASED, Recipe


def test_reconstruction_numbers_equal_a_loop_over_pixels() -> None:
    rng = np.random.default_rng(0)
    true, decoded = rng.random((2, 6, 7), np.float32), rng.random((2, 6, 7), np.float32)
    pairs = list(zip(decoded.ravel().tolist(), true.ravel().tolist(), strict=True))
    counted = [(d, t) for d, t in pairs if t >= 0.05]
    numbers = reconstruction_sums(decoded, true).averages()
    mse = sum((d - t) ** 2 for d, t in pairs) / len(pairs)
    assert numbers["mse"] == pytest.approx(mse, rel=1e-5)
    assert numbers["psnr_db"] == pytest.approx(10 * np.log10(1 / mse), rel=1e-5)
    assert numbers["abs_rel"] == pytest.approx(
        sum(abs(d - t) / t for d, t in counted) / len(counted), rel=1e-5
    )
    assert numbers["delta1"] == pytest.approx(
        sum(max(d / t, t / d) < 1.25 for d, t in counted) / len(counted)
    )


def test_sums_over_batches_equal_one_batch() -> None:
    rng = np.random.default_rng(1)
    true, decoded = rng.random((5, 8, 8), np.float32), rng.random((5, 8, 8), np.float32)
    parts = [reconstruction_sums(decoded[s], true[s]) for s in (slice(0, 2), slice(2, 5))]
    whole = reconstruction_sums(decoded, true).averages()
    assert sum(parts, ReconstructionSums()).averages() == pytest.approx(whole)


def test_boundaries_are_within_two_pixels_of_a_step() -> None:
    depth = np.zeros((1, 1, 12), np.float32)
    depth[..., 6:] = 0.5
    assert np.flatnonzero(boundary_mask(depth)[0, 0]).tolist() == [4, 5, 6, 7]


def test_no_boundary_is_none_not_zero() -> None:
    flat = np.full((1, 4, 4), 0.5, np.float32)
    assert reconstruction_sums(flat, flat).averages()["boundary_mae"] is None


def test_code_usage_of_known_counts() -> None:
    counts = code_counts(np.array([[0, 0, 1, 1], [3, 3, 2, 2]]), 8)
    assert counts.tolist() == [2, 2, 2, 2, 0, 0, 0, 0]
    usage = code_usage(counts)
    assert (usage["codes_used"], usage["dead_codes"]) == (4, 4)
    assert usage["perplexity"] == pytest.approx(4.0)
    assert code_usage(code_counts(np.zeros(9, int), 8))["perplexity"] == pytest.approx(1.0)


def test_flicker_compares_neighbours_within_an_episode_only() -> None:
    codes = np.array([[1, 1], [1, 2], [9, 9], [9, 9]])
    assert changed_share(codes[:2]) == 0.5
    assert flicker(codes, np.array([0, 0, 1, 1], np.int32)) == 0.25
    assert flicker(codes, np.arange(4, dtype=np.int32)) is None


def test_min_codes_is_a_limit() -> None:
    check_min_codes({"all": {"codes_used": 100}}, 100)
    with pytest.raises(LimitExceeded, match="99 codes are used"):
        check_min_codes({"all": {"codes_used": 99}}, 100)


# Depth from places.


def test_episode_scaling_keeps_still_things_still() -> None:
    still = np.linspace(1, 2, 16, dtype=np.float32).reshape(4, 4)
    nearer = still.copy()
    nearer[0, 0] = 9.0  # something enters the second frame
    frames = np.stack([still, nearer])
    whole = DepthEpisode.of_maps("d", "e", frames)
    image, episode = (episode_scaler(whole, name).scale(frames)[0] for name in ("image", "episode"))
    assert (image[0, 1:] != image[1, 1:]).all()
    np.testing.assert_array_equal(episode[0, 1:], episode[1, 1:])


def test_metric_depth_becomes_inverse_and_holes_become_far() -> None:
    z = np.array([[[500, 1000, 0]]], np.uint16)
    np.testing.assert_allclose(metric_to_inverse(z), [[[1 / 500, 1 / 1000, 1 / 1000]]])
    with pytest.raises(UserError, match="really metric"):
        metric_to_inverse(np.zeros((1, 2, 2)))


def test_folders_of_png_and_npy_are_episodes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    maps = rng.integers(1, 60000, (3, 10, 12), dtype=np.uint16)
    (tmp_path / "ep0").mkdir()
    for index, depth in enumerate(maps):
        cv2.imwrite(str(tmp_path / "ep0" / f"{index:04d}.png"), depth)
    np.save(tmp_path / "stack.npy", maps[:2].astype(np.float32))
    episodes = list(places.open_place(str(tmp_path), "auto", None, 32))
    assert [(e.key, len(e.depth_THW)) for e in episodes] == [("stack.npy", 2), ("ep0", 3)]
    np.testing.assert_array_equal(episodes[1].depth_THW, maps)
    metric = list(places.open_place(str(tmp_path), "metric", None, 32))
    np.testing.assert_allclose(metric[1].depth_THW, 1.0 / maps, rtol=1e-6)


def test_bad_depth_files_are_named(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "colour.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UserError, match=r"colour\.png is not a depth map: .* 3 channels"):
        list(places.open_place(str(tmp_path), "auto", None, 32))
    (tmp_path / "colour.png").unlink()
    with pytest.raises(UserError, match="is neither an output of"):
        places.open_place(str(tmp_path), "auto", None, 32)
    np.save(tmp_path / "nan.npy", np.full((2, 2), np.nan))
    with pytest.raises(UserError, match="not finite"):
        list(places.open_place(str(tmp_path), "auto", None, 32))
    with pytest.raises(UserError, match="no folder at"):
        places.open_place(str(tmp_path / "x"), "auto", None, 32)
    with pytest.raises(UserError, match="write for example procedural:64"):
        places.open_place("procedural:many", "auto", None, 32)


class MeanOfColours:
    """A depth model for tests: the mean of the channels."""

    def describe(self) -> dict[str, str]:
        return {"name": "mean"}

    def estimate(self, rgb_NHWC: np.ndarray) -> np.ndarray:
        return rgb_NHWC.mean(axis=-1).astype(np.float32)


def test_shards_give_depth_per_episode_from_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Episodes of 12, 3 and 13 frames lie across batches of 5, row groups of 4 and two shards."""
    monkeypatch.setattr("molmoact_data.outputs.shards.ROWS_PER_ROW_GROUP", 4)
    monkeypatch.setattr(places, "_FRAMES_PER_BATCH", 5)
    root = str(write_output(tmp_path / "out", DotSource((12, 3, 13)), frames_per_shard=15))
    with pytest.raises(UserError, match="--depth-encoder"):
        list(places.open_place(root, "auto", None, 32))
    episodes = list(places.open_place(root, "auto", MeanOfColours(), 32))
    assert [(e.dataset, e.key) for e in episodes] == [("dots", f"episode {i}") for i in range(3)]
    rows = list(Output.open(root).rows(["episode_index", "image_primary"]))
    for index, episode in enumerate(episodes):
        stored = [r["image_primary"]["bytes"] for r in rows if r["episode_index"] == index]
        frames = [cv2.imdecode(np.frombuffer(b, np.uint8), cv2.IMREAD_COLOR) for b in stored]
        sizes = [len(batch) for batch in episode.batches()]
        assert (sum(sizes), max(sizes) <= 5) == (len(frames), True)
        found = np.concatenate(list(episode.batches()))  # a second pass gives the same
        np.testing.assert_allclose(found, np.stack(frames).mean(-1), atol=1.5)


def test_an_episode_that_turns_out_bad_is_left_out_as_a_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = [DepthEpisode.of_maps("d", f"e{i}", rng.random((4, 20, 24), np.float32)) for i in (0, 1)]

    def half() -> Iterator[np.ndarray]:
        yield good[0].depth_THW
        raise EpisodeRejected(RejectReason.VIDEO_UNDECODABLE, "cut in the middle")

    settings = {"size": 16, "recipe": Recipe(), "scaling": "image"}
    write_cache(tmp_path / "a", [good[0], DepthEpisode("d", "bad", half), good[1]], **settings)  # type: ignore[arg-type]
    write_cache(tmp_path / "b", good, **settings)  # type: ignore[arg-type]
    for name in ("maps.u8", "maps.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("scaling", ["image", "steady", "episode"])
def test_batches_are_scaled_as_the_whole_episode_is(scaling: Any) -> None:
    depth = np.random.default_rng(1).random((7, 20, 24), np.float32)
    whole = DepthEpisode.of_maps("d", "e", depth)
    parts = DepthEpisode("d", "e", lambda: iter([depth[:3], depth[3:]]))
    one, other = (
        np.concatenate(list(prepare_frames(e, size=16, recipe=Recipe(), scaling=scaling)))
        for e in (whole, parts)
    )
    np.testing.assert_array_equal(one, other)


def test_cache_round_trips_and_whole_episodes_are_held_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    episodes = [
        DepthEpisode.of_maps("d", f"e{i}", rng.random((4, 20, 24), np.float32)) for i in range(10)
    ]
    settings = {"size": 16, "recipe": RELEASED, "scaling": "image"}
    data.write_cache(tmp_path, episodes, **settings)  # type: ignore[arg-type]
    cached, direct = data.read_cache(tmp_path), collect(episodes, **settings)  # type: ignore[arg-type]
    np.testing.assert_array_equal(cached.maps_NSS, direct.maps_NSS)
    assert cached.keys == direct.keys
    train_rows, held_out = cached.split(0.2)
    assert sorted([*train_rows, *held_out]) == list(range(40))
    assert len(held_out) == 8
    assert not set(cached.episode_N[train_rows]) & set(cached.episode_N[held_out])
    more = collect([*episodes, DepthEpisode.of_maps("d", "e99", episodes[0].depth_THW)], **settings)  # type: ignore[arg-type]
    assert len(set(more.episode_N[more.split(0.2)[1]]) & set(cached.episode_N[held_out])) >= 1


def test_a_sphere_of_known_distance_is_rendered_there() -> None:
    # The middle ray of a scene with only a ball straight ahead hits it at distance minus radius.
    scene = random_scene(np.random.default_rng(0))
    ahead = scene.camera_m + 0.5 * scene.rotation[2]
    import dataclasses

    alone = dataclasses.replace(
        scene, boxes=(), balls=((ahead, 0.1),), arm_base_m=np.array([50.0, 0, 0]), wall_y_m=90.0
    )
    depth = render_episode(alone, np.random.default_rng(1), num_frames=1, size=65)[0]
    assert 1 / depth[32, 32] == pytest.approx(0.4, abs=1e-3)


def test_procedural_depth_is_a_function_of_the_seed() -> None:
    maps = depth_maps(3, 2, 40)
    assert maps.shape == (2, 40, 40)
    assert (maps.min(), maps.max()) == (0, 254) or maps.max() >= 254
    np.testing.assert_array_equal(maps, depth_maps(3, 2, 40))
    assert (maps != depth_maps(4, 2, 40)).any()
