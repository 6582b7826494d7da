"""Training reads an output on an object store as it reads the folder."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest
from made_training import open_training_data

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.outputs.frames import FrameDataset
from molmoact_train.config import resolve
from molmoact_train.data.dataset import TrainingData
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.debug.tiny import tiny_processor


def opened(path: str) -> TrainingData:
    given = {"checkpoint": "c", "data": [path], "output_path": "s", "eval_fraction": 0.3}
    return open_training_data(resolve("debug", given), tiny_processor())


def test_a_bucket_gives_the_samples_of_the_folder(bucket: str, tmp_path: Path) -> None:
    local = write_debug_dataset(tmp_path / "out", episodes=3, frames=4, size=56)
    store = fsspec.filesystem("s3")
    store.put(str(local), f"{bucket}/out", recursive=True)
    here, there = opened(str(local)), opened(f"{bucket}/out:1.5")
    assert here.sources[0].rows.tolist() == there.sources[0].rows.tolist()
    for position in (0, 5, 11):
        one, two = here[position], there[position]
        assert np.array_equal(one.input_tokens, two.input_tokens)
        assert np.array_equal(one.crops_UPC, two.crops_UPC)
    row, twin = here.sources[0].row(1), there.sources[0].row(1)
    assert np.array_equal(row.actions_HD, twin.actions_HD)
    frames = FrameDataset(f"{bucket}/out", cameras=["front"])
    assert (
        frames[3][schema.DEPTH_CODES].tolist()
        == FrameDataset(local)[3][schema.DEPTH_CODES].tolist()
    )


def test_a_bucket_without_an_output_is_one_line(bucket: str) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        opened(f"{bucket}/nothing")
