"""The main job on real input with the embedded teachers: both LeRobot versions give the same labels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from molmoact_data import schema
from molmoact_data.images import decode_image
from pipelines.options import nested
from pipelines.preprocess import Summary, preprocess

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("MOLMOACT_SHARED_DATA", ROOT.parent / "shared" / "data"))
EMBEDDED = {"depth": "embedded", "vqvae": "embedded", "pointer": "embedded"}

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no shared data at {DATA}")


def run(name: str, output: Path, **more: object) -> tuple[Summary, pa.Table]:
    values = {"dataset_path": str(DATA / name), "output_path": str(output), **EMBEDDED, **more}
    summary = preprocess(nested(values), resume=False, overwrite=False)
    files = sorted((output / schema.DATA_DIR).glob("*.parquet"))
    return summary, pa.concat_tables([pq.read_table(f) for f in files])


def test_both_lerobot_versions_of_the_same_episodes_give_the_same_labels(tmp_path: Path) -> None:
    _, old = run("libero_rollouts_v21", tmp_path / "v21", episodes="4", point_every=4)
    summary, new = run("libero_rollouts_v30", tmp_path / "v30", episodes="4", point_every=4)
    assert summary.frames == old.num_rows > 50
    for name in old.column_names:
        if name not in (schema.DATASET, schema.REVISION) and not name.startswith("image_"):
            assert old[name].to_pylist() == new[name].to_pylist(), name
    for row in (0, old.num_rows // 2, old.num_rows - 1):
        pictures = [t["image_primary"][row]["bytes"].as_py() for t in (old, new)]
        difference = decode_image(pictures[0]).astype(int) - decode_image(pictures[1])
        assert np.abs(difference).mean() < 1


def test_all_rows_of_the_rollouts_without_teachers(tmp_path: Path) -> None:
    summary, rows = run(
        "libero_rollouts_v21", tmp_path / "out", depth="none", vqvae=None, pointer="none"
    )
    assert (summary.episodes, summary.frames, summary.rejected_episodes) == (5, 669, 0)
    keys = rows.select([schema.EPISODE_INDEX, schema.FRAME_INDEX]).to_pylist()
    assert len({tuple(key.values()) for key in keys}) == 669
    assert schema.TRACE not in rows.column_names
    assert schema.DEPTH_CODES not in rows.column_names


def test_missing_videos_are_an_error_before_any_work(tmp_path: Path) -> None:
    from molmoact_data.errors import UserError

    with pytest.raises(UserError, match="not one of the image"):
        run("reachy2-real-lerobot-v30-novideo", tmp_path / "out")
    assert not (tmp_path / "out").exists()
