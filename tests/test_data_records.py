from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from molmoact_data.labels.actions import chunk
from molmoact_data.labels.labels import EpisodeLabels
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.labels.traces import TraceConfig, episode_traces
from molmoact_data.outputs.columns import label_columns
from molmoact_data.schema import RecordLayout
from molmoact_data.sources.base import EpisodeColumns

T, D, S, G = 9, 7, 4, 16
LAYOUT = RecordLayout(
    cameras=("primary",),
    action_dim=D,
    state_dim=S,
    action_chunk_size=3,
    depth_codes=G,
    num_arms=2,
)


@pytest.fixture
def columns() -> EpisodeColumns:
    rng = np.random.default_rng(0)
    return EpisodeColumns(
        episode_index=5,
        frame_index=np.arange(T, dtype=np.int32),
        timestamp_s=(np.arange(T) / 10).astype(np.float32),
        instructions=tuple(f"task {t % 2}" for t in range(T)),
        action=rng.normal(size=(T, D)).astype(np.float32),
        state=rng.normal(size=(T, S)).astype(np.float32),
    )


@pytest.fixture
def labels() -> EpisodeLabels:
    rng = np.random.default_rng(1)
    xy = np.full((T, 2, 2), 0.5, dtype=np.float32) + rng.random((T, 2, 2), dtype=np.float32) / 100
    xy[3, 0] = np.nan
    xy[[0, 6], 1] = np.nan
    points = GripperPoints(xy, np.where(np.isnan(xy[..., 0]), 0, 0.75).astype(np.float32))
    bins, num_valid = chunk(rng.integers(1, 257, (T, D)).astype(np.int16), 3)
    return EpisodeLabels(
        depth_codes=rng.integers(0, 128, (T, G)),
        depth_range=rng.random((T, 2)).astype(np.float32),
        points=points,
        traces=episode_traces(points, TraceConfig()),
        action_bins=bins,
        num_valid_actions=num_valid,
    )


def rows(columns: EpisodeColumns, labels: EpisodeLabels, layout: RecordLayout = LAYOUT) -> pa.Table:
    return pa.table(
        label_columns(layout, dataset="d", revision="r", columns=columns, labels=labels)
    )


def test_columns_equal_what_a_loop_over_rows_writes(
    columns: EpisodeColumns, labels: EpisodeLabels
) -> None:
    """The twin: one dict per frame, left to pyarrow to type by the schema."""
    points, traces = labels.points, labels.traces
    assert points is not None
    assert traces is not None
    assert labels.depth_codes is not None
    assert labels.depth_range is not None
    assert labels.action_bins is not None
    assert labels.num_valid_actions is not None
    assert columns.state is not None
    expected = [
        {
            "dataset": "d",
            "revision": "r",
            "episode_index": 5,
            "frame_index": t,
            "timestamp_s": columns.timestamp_s[t],
            "instruction": f"task {t % 2}",
            "depth_codes": labels.depth_codes[t].tolist(),
            "depth_range": labels.depth_range[t].tolist(),
            "gripper_points": [None if np.isnan(xy[0]) else xy.tolist() for xy in points.xy_NA2[t]],
            "gripper_confidence": points.confidence_NA[t].tolist(),
            "trace": traces.trace[t],
            "trace_quality": traces.quality_T[t],
            "trace_reject_reason": traces.reject_reason_T[t],
            "action": columns.action[t].tolist(),
            "action_bins": labels.action_bins[t].tolist(),
            "num_valid_actions": int(labels.num_valid_actions[t]),
            "state": columns.state[t].tolist(),
        }
        for t in range(T)
    ]
    label_schema = pa.schema([f for f in LAYOUT.arrow_schema() if f.name != "image_primary"])
    twin = pa.Table.from_pylist(expected, schema=label_schema)
    ours = rows(columns, labels)
    assert ours.schema.equals(twin.schema)
    assert ours.to_pylist() == twin.to_pylist()
    assert {row["trace_reject_reason"] for row in ours.to_pylist()} == {None, "no_point_now"}


def test_columns_survive_parquet(
    columns: EpisodeColumns, labels: EpisodeLabels, tmp_path: Path
) -> None:
    table = rows(columns, labels)
    pq.write_table(table, tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == table.to_pylist()


ONE_ARM = RecordLayout(cameras=("primary", "wrist"), action_dim=7, state_dim=None)
DEFAULT_BYTES = {b"huggingface", b"molmoact.schema_version"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_arms": 2},
        {"num_arms": None},
        {"codebook_size": 64},
        {"codebook_size": 256},
        {"codebook_size": 512},
        {"depth_codes": 144, "codebook_size": 2048, "num_arms": 3},
        {"depth_codes": None, "codebook_size": 32},
        {"depth_buffer": True, "num_arms": 2},
        {"action_chunk_size": 50, "state_dim": 14},
        {"action_dim": None, "action_chunk_size": 30},
        {"cameras": ("left", "right", "primary"), "action_dim": 1, "state_dim": 1},
    ],
)
def test_a_layout_comes_back_from_its_schema(change: dict[str, object], tmp_path: Path) -> None:
    layout = dataclasses.replace(ONE_ARM, **change)
    pq.write_table(layout.arrow_schema({b"more": b"1"}).empty_table(), tmp_path / "x.parquet")
    schema = pq.read_schema(tmp_path / "x.parquet")
    assert RecordLayout.from_arrow_schema(schema) == layout
    assert RecordLayout.from_arrow_schema(layout.arrow_schema()) == layout


@pytest.mark.parametrize(
    "change", [{}, {"num_arms": None}, {"depth_buffer": True}, {"action_chunk_size": 50}]
)
def test_what_columns_tell_is_not_said_again(change: dict[str, object]) -> None:
    """Outputs of one arm and 128 codes keep their bytes."""
    assert set(dataclasses.replace(ONE_ARM, **change).arrow_schema().metadata) == DEFAULT_BYTES


@pytest.mark.parametrize(
    "text", [b'{"num_arms": "2"}', b'{"arms": 2}', b'{"num_arms": true}', b"{"]
)
def test_a_layout_that_nobody_wrote_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"layout|Expecting"):
        RecordLayout.from_arrow_schema(ONE_ARM.arrow_schema({b"molmoact.layout": text}))


def test_what_was_not_asked_for_is_no_column(
    columns: EpisodeColumns, labels: EpisodeLabels
) -> None:
    layout = RecordLayout(
        cameras=("primary",), action_dim=None, state_dim=None, depth_codes=None, num_arms=None
    )
    assert rows(columns, EpisodeLabels(), layout).column_names == [
        "dataset", "revision", "episode_index", "frame_index", "timestamp_s", "instruction",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth_codes": None}, "missing"),
        ({"traces": None}, "missing"),
        ({"depth_codes": np.zeros((T, G + 1), np.uint8)}, "layout wants"),
        ({"depth_codes": np.zeros((T - 1, G), np.uint8)}, "9 frames"),
        ({"action_bins": np.ones((T, 2, D), np.int16)}, "layout wants"),
        ({"depth_codes": np.full((T, G), 300)}, "300"),
    ],
)
def test_a_part_that_does_not_fit_is_an_error(
    columns: EpisodeColumns,
    labels: EpisodeLabels,
    change: dict[str, np.ndarray | None],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        rows(columns, dataclasses.replace(labels, **change))  # type: ignore[arg-type]
