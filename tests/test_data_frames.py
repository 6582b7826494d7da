"""A finished output as a torch dataset, against its Parquet files; and rows by number from any store."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.recent import Recent
from molmoact_data.files.storage import Storage
from molmoact_data.labels.traces import is_usable
from molmoact_data.outputs.columns import usable_traces
from molmoact_data.outputs.frames import FrameDataset
from molmoact_data.outputs.output import Output
from molmoact_data.outputs.rows import ParquetRows
from molmoact_train.debug.data import write_debug_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_debug_dataset(tmp_path_factory.mktemp("data"), episodes=3, frames=5, chunk_size=4)


def test_every_item_is_its_row(folder):
    frames = FrameDataset(folder)
    rows = pq.read_table(folder / schema.DATA_DIR).to_pylist()
    assert len(frames) == len(rows) == 15
    for item, row in zip(frames, rows, strict=False):
        place = (row[schema.EPISODE_INDEX], row[schema.FRAME_INDEX])
        assert (item[schema.EPISODE_INDEX], item[schema.FRAME_INDEX]) == place
        picture = np.asarray(Image.open(io.BytesIO(row["image_wrist"]["bytes"])).convert("RGB"))
        assert np.array_equal(item["image_wrist"].permute(1, 2, 0).numpy(), picture)
        assert item[schema.DEPTH_CODES].tolist() == row[schema.DEPTH_CODES]
        (count,) = item["trace_points"].tolist()
        assert item[schema.TRACE][0, :count].tolist() == row[schema.TRACE][0]
        same = [r for r in rows if r[schema.EPISODE_INDEX] == place[0]]
        steps = [min(place[1] + h, 4) for h in range(4)]
        expected = np.array([same[s][schema.ACTION] for s in steps], dtype=np.float32)
        assert np.array_equal(item[schema.ACTION].numpy(), expected)
        assert item["action_is_pad"].tolist() == [place[1] + h > 4 for h in range(4)]


def test_a_loader_batches_it(folder):
    frames = pickle.loads(pickle.dumps(FrameDataset(folder, cameras=["front"])))
    (batch,) = torch.utils.data.DataLoader(frames, batch_size=15)
    assert batch["image_front"].shape == (15, 3, 96, 96)
    assert "image_wrist" not in batch
    assert batch[schema.ACTION].shape == (15, 4, 7)
    assert batch[schema.TRACE].shape == (15, 1, 5, 2)
    assert batch[schema.INSTRUCTION] == ["move the square"] * 15


def test_wrong_questions_are_named(folder):
    with pytest.raises(UserError, match=r"no camera 'top'.* front, wrist"):
        FrameDataset(folder, cameras=["top"])
    with pytest.raises(IndexError):
        FrameDataset(folder)[15]
    assert FrameDataset(folder)[-1][schema.FRAME_INDEX] == 4


def test_rows_by_number_across_row_groups(tmp_path):
    import pyarrow as pa

    table = pa.table({"a": list(range(23)), "b": [str(n) for n in range(23)]})
    pq.write_table(table.slice(0, 10), tmp_path / "x.parquet", row_group_size=3)
    pq.write_table(table.slice(10), tmp_path / "y.parquet", row_group_size=4)
    rows = ParquetRows()
    for name in ("x.parquet", "y.parquet"):
        assert rows.add_file(Storage(str(tmp_path)), name).names == ["a", "b"]
    assert [rows.read(n, ["a", "b"])["a"] for n in (0, 9, 10, 22)] == [0, 9, 10, 22]
    assert rows.read_column(2, 15, "b", ["a", "b"]) == [str(n) for n in range(2, 17)]


def test_recent_keeps_the_last_few():
    made: list[int] = []
    recent = Recent[int, int](2)
    for key in (1, 2, 1, 3, 1, 2):
        assert recent.get(key, lambda k=key: made.append(k) or k * 10) == key * 10
    assert made == [1, 2, 3, 2]
    assert len(recent) == 2
    assert len(pickle.loads(pickle.dumps(recent))) == 0


def test_the_rule_for_traces_is_the_same_for_rows_and_columns(make_output):
    table = pq.read_table(Storage(str(make_output())).root + "/data")
    columns = table[schema.TRACE], table[schema.TRACE_REJECT_REASON]
    by_row = [is_usable(*values) for values in zip(*(c.to_pylist() for c in columns), strict=True)]
    assert usable_traces(*columns).tolist() == by_row
    assert {True, False} == set(by_row)


def test_an_output_of_another_schema_is_refused(folder, tmp_path):
    import json
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    manifest = json.loads((copy / schema.MANIFEST_FILE).read_text())
    (copy / schema.MANIFEST_FILE).write_text(json.dumps({**manifest, "schema_version": "2.0"}))
    with pytest.raises(UserError, match=r"schema version 2\.0"):
        Output.open(copy)
