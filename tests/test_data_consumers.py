"""What others read an output with: every value of every row, through their own readers, as it is.

LeRobotDataset and the published mixtures read an export; test_data_export holds those to their readers.
"""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_outputs import write_output
from PIL import Image

from molmoact_data import schema
from molmoact_data.exporters import ExportOptions, export
from molmoact_data.outputs.output import Output
from molmoact_data.text import tokens


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_output(tmp_path_factory.mktemp("consumers") / "out", frames_per_shard=15)


@pytest.fixture(scope="module")
def rows(output: Path) -> list[dict[str, Any]]:
    """By our own reader, which other tests hold to the records that were written."""
    found = list(Output.open(output).rows())
    assert len(found) == 33
    assert len(list((output / "data").iterdir())) > 1
    return found


def plain(value: Any) -> Any:
    """Nested arrays as nested lists."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def test_datasets_decodes_the_images_and_keeps_every_value(
    output: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    import datasets

    files = {"train": str(output / "data/*.parquet")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))["train"]
    images = [schema.image_column(role) for role in ("primary", "wrist")]
    assert all(isinstance(loaded.features[name], datasets.Image) for name in images)
    for theirs, ours in zip(loaded, rows, strict=True):
        for name in images:
            np.testing.assert_array_equal(np.asarray(theirs[name]), pixels(ours[name]["bytes"]))
        assert {k: v for k, v in theirs.items() if k not in images} == {
            k: v for k, v in ours.items() if k not in images
        }


def test_duckdb_reads_every_value_and_looks_into_lists_and_images(
    output: Path, rows: list[dict[str, Any]]
) -> None:
    import duckdb

    table = f"read_parquet('{output}/data/*.parquet')"
    keys = f"{schema.EPISODE_INDEX}, {schema.FRAME_INDEX}"
    names = list(rows[0])
    found = duckdb.sql(f"select {', '.join(names)} from {table} order by {keys}").fetchall()
    assert [dict(zip(names, row, strict=True)) for row in found] == rows
    asked = duckdb.sql(
        f"""select {schema.EPISODE_INDEX}, count(*), avg(list_avg({schema.DEPTH_CODES})),
               max({schema.ACTION_BINS}[1][7]), sum(octet_length(image_primary.bytes))
            from {table} where len({schema.TRACE}[1]) > 2 group by 1 order by 1"""
    ).fetchall()
    for episode, count, mean_code, gripper, num_bytes in asked:
        chosen = [
            r for r in rows if r[schema.EPISODE_INDEX] == episode and len(r[schema.TRACE][0]) > 2
        ]
        assert count == len(chosen)
        assert mean_code == pytest.approx(np.mean([r[schema.DEPTH_CODES] for r in chosen]))
        assert gripper == max(r[schema.ACTION_BINS][0][6] for r in chosen)
        assert num_bytes == sum(len(r["image_primary"]["bytes"]) for r in chosen)
    assert len(asked) == 4


def test_pandas_reads_every_value(output: Path, rows: list[dict[str, Any]]) -> None:
    import pandas as pd

    frame = pd.read_parquet(output / "data").sort_values(
        [schema.EPISODE_INDEX, schema.FRAME_INDEX], ignore_index=True
    )
    assert list(frame.columns) == list(rows[0])
    for name in frame.columns:
        theirs = [plain(value) for value in frame[name]]
        ours = [row[name] for row in rows]
        if frame[name].isna().all():
            assert ours == [None] * len(rows), name
        else:
            assert theirs == ours, name
    assert frame[schema.TRACE_QUALITY].mean() == pytest.approx(
        np.mean([row[schema.TRACE_QUALITY] for row in rows])
    )


def test_the_reference_trainer_finds_what_it_expects_in_every_row(
    output: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Its loader: `load_from_disk`; two named cameras that convert to RGB; three texts that go into the
    answer as they are; JSON with `chunked_action`; the trace as a Python literal of type list."""
    import datasets

    options = ExportOptions()
    export(str(output), tmp_path / "ref", "reference", options, overwrite=False)
    saved = datasets.load_from_disk(str(tmp_path / "ref"))
    assert saved.column_names == [
        *("image", "wrist_image", "language_instruction", "depth", "trace", "processed_action")
    ]
    with_a_path = [row for row in rows if len(row[schema.TRACE][0]) > 1]
    for theirs, ours in zip(saved, with_a_path, strict=True):
        for column, role in (("image", "primary"), ("wrist_image", "wrist")):
            assert isinstance(theirs[column], Image.Image)
            expected = pixels(ours[schema.image_column(role)]["bytes"])
            np.testing.assert_array_equal(np.asarray(theirs[column].convert("RGB")), expected)
        assert theirs["language_instruction"] == ours[schema.INSTRUCTION]
        assert tokens.decode_depth(theirs["depth"]) == [ours[schema.DEPTH_CODES]]
        trace = ast.literal_eval(theirs["trace"])
        assert type(trace) is list
        assert trace == ours[schema.TRACE][0]
        chunk = json.loads(theirs["processed_action"])["chunked_action"]
        steps = [step.split(", ") for step in chunk.removeprefix("[[")[:-2].split("], [")]
        bins = [[tokens.action_bin(token) for token in step] for step in steps]
        assert bins == ours[schema.ACTION_BINS]
    statistics = json.loads((tmp_path / "ref" / "dataset_statistics.json").read_text())
    assert statistics["dots"]["num_trajectories"] == 4


def test_lerobot_iterates_the_whole_export(
    output: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Through a torch loader, as a LeRobot policy is trained."""
    pytest.importorskip("lerobot")
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    export(str(output), tmp_path / "lr", "lerobot", ExportOptions(), overwrite=False)
    dataset = LeRobotDataset(
        "local/lr", root=tmp_path / "lr", delta_timestamps={"action": [0.0, 0.1, 0.2]}
    )
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=8))
    assert torch.cat([b["depth_codes"] for b in batches]).tolist() == [
        row[schema.DEPTH_CODES] for row in rows
    ]
    ahead = torch.cat([b["action"] for b in batches])
    assert ahead.shape == (33, 3, 7)
    np.testing.assert_allclose(ahead[:, 0], np.array([r[schema.ACTION] for r in rows]), rtol=1e-6)
    np.testing.assert_allclose(ahead[0, 2], rows[2][schema.ACTION], rtol=1e-6)
    front = torch.cat([b["observation.images.primary"] for b in batches])
    expected = pixels(rows[20][schema.image_column("primary")]["bytes"]) / 255
    np.testing.assert_allclose(front[20].permute(1, 2, 0), expected, atol=1e-6)
