"""The main job on real input with the embedded teachers: both LeRobot versions give the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from golden import SHARED_DATA, needs_shared_data

from molmoact_data import schema
from molmoact_data.pictures.images import decode_image
from pipelines.config import nested
from pipelines.preprocess import Summary, preprocess

EMBEDDED = {"depth": "embedded", "vqvae": "embedded", "pointer": "embedded"}

pytestmark = needs_shared_data


def run(name: str, output: Path, **more: object) -> tuple[Summary, pa.Table]:
    values = {
        "dataset_path": str(SHARED_DATA / name),
        "output_path": str(output),
        **EMBEDDED,
        **more,
    }
    summary = preprocess(nested(values), resume=False, overwrite=False)
    files = sorted((output / schema.DATA_DIR).glob("*.parquet"))
    return summary, pa.concat_tables([pq.read_table(f) for f in files])


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Summary, pa.Table, Path]:
    """All of the v2.1 rollouts with the embedded teachers, and where they are."""
    output = tmp_path_factory.mktemp("rollouts") / "v21"
    return *run("libero_rollouts_v21", output), output


def test_all_rollouts_become_rows_with_every_label(
    rollouts: tuple[Summary, pa.Table, Path],
) -> None:
    summary, rows, _ = rollouts
    assert (summary.episodes, summary.frames, summary.rejected_episodes) == (5, 669, 0)
    keys = rows.select([schema.EPISODE_INDEX, schema.FRAME_INDEX]).to_pylist()
    assert len({tuple(key.values()) for key in keys}) == rows.num_rows == 669
    codes = np.array(rows[schema.DEPTH_CODES].to_pylist())
    assert codes.shape == (669, 100)
    assert np.array(rows[schema.ACTION_BINS].to_pylist()).shape == (669, 8, 7)
    assert len(np.unique(codes)) > 10


def test_the_v30_twin_gives_the_same_rows(
    rollouts: tuple[Summary, pa.Table, Path], tmp_path: Path
) -> None:
    """Every column of all 669 frames. Frames of the twins decode to equal pixels (test_data_episodes
    compares them), so not even the images may differ: there is no tolerance here."""
    _, old, _ = rollouts
    summary, new = run("libero_rollouts_v30", tmp_path / "v30")
    assert (summary.episodes, summary.frames, summary.rejected_episodes) == (5, 669, 0)
    assert new.column_names == old.column_names
    for name in old.column_names:
        if name not in (schema.DATASET, schema.REVISION):
            assert new[name].to_pylist() == old[name].to_pylist(), name


def test_load_dataset_shows_decoded_images(
    rollouts: tuple[Summary, pa.Table, Path], tmp_path: Path
) -> None:
    import datasets

    _, rows, output = rollouts
    loaded = datasets.load_dataset(
        "parquet", data_files=str(output / "data/*.parquet"), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert len(loaded) == 669
    name = schema.image_column("primary")
    for row in (0, 668):
        expected = decode_image(rows[name][row]["bytes"].as_py())
        np.testing.assert_array_equal(np.asarray(loaded[row][name]), expected)
        assert expected.shape == (256, 256, 3)


def test_without_teachers_there_are_no_empty_columns(tmp_path: Path) -> None:
    summary, rows = run(
        "libero_rollouts_v21",
        tmp_path / "o",
        depth="none",
        vqvae=None,
        pointer="none",
        episodes="4",
    )
    assert summary.frames == rows.num_rows == 109
    assert schema.TRACE not in rows.column_names
    assert schema.DEPTH_CODES not in rows.column_names


def test_missing_videos_are_an_error_before_any_work(tmp_path: Path) -> None:
    from molmoact_data.errors import UserError

    with pytest.raises(UserError, match="not one of the image"):
        run("reachy2-real-lerobot-v30-novideo", tmp_path / "out")
    assert not (tmp_path / "out").exists()
