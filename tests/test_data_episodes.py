"""The two twins of one real dataset, read by us: same rows, same pixels. More in test_data_episodes_*.py."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from golden import SHARED_DATA

from molmoact_data.errors import UserError
from molmoact_data.sources.cameras import resolve_cameras
from molmoact_data.sources.opening import open_source
from molmoact_data.sources.selection import select_episodes

ROOT = Path(__file__).resolve().parent.parent
CAMERA = "observation.images.image"

needs_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason=f"real input is not at {SHARED_DATA}"
)


@needs_data
def test_twins_of_both_versions_give_equal_rows_and_frames() -> None:
    v21, v30 = (
        pickle.loads(pickle.dumps(open_source(SHARED_DATA / f"libero_rollouts_{v}")))
        for v in ("v21", "v30")
    )
    assert v21.info.format == "lerobot-v2.1"
    assert v30.info.format == "lerobot-v3.0"
    assert [r.num_frames for r in v21.episodes] == [116, 100, 120, 224, 109]
    assert v21.episodes == v30.episodes
    for ref in v21.episodes:
        ours, twin = v21.read_columns(ref), v30.read_columns(ref)
        np.testing.assert_array_equal(ours.action, twin.action)
        assert ours.action.shape == (ref.num_frames, 7)
        assert ours.instructions == twin.instructions
        assert set(ours.instructions) == {
            "pick up the black bowl next to the ramekin and place it on the plate"
        }
        pairs = zip(
            v21.iter_frames(ref, [CAMERA], 50), v30.iter_frames(ref, [CAMERA], 50), strict=True
        )
        sizes = []
        for a, b in pairs:
            np.testing.assert_array_equal(a[CAMERA].rgb_NHWC, b[CAMERA].rgb_NHWC)
            sizes.append(len(a[CAMERA].rgb_NHWC))
        assert sum(sizes) == ref.num_frames
        assert set(sizes[:-1]) <= {50}


@needs_data
def test_metadata_that_lies_is_reported_and_missing_videos_stop_before_any_work() -> None:
    source = open_source(SHARED_DATA / "reachy2-real-lerobot-v30-novideo")
    assert any("14983" in text and "899" in text for text in source.info.warnings)
    assert sum(len(source.read_columns(ref).action) for ref in source.episodes) == 899
    with pytest.raises(UserError, match=r"'observation.image', but not one of the .* files exists"):
        resolve_cameras(source.info, {})


def test_episodes_are_chosen_by_numbers_and_ranges() -> None:
    from molmoact_data.sources.base import EpisodeRef

    refs = [EpisodeRef(i, 1) for i in (0, 1, 2, 5, 6, 7)]
    assert [r.episode_index for r in select_episodes("5-6, 0,0", refs)] == [0, 5, 6]
    assert select_episodes(None, refs) == refs
    for text, match in (("3-5", "no episode 3, 4"), ("a", "not a number"), ("2-1", "backwards")):
        with pytest.raises(UserError, match=match):
            select_episodes(text, refs)
