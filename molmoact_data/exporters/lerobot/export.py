"""`--format lerobot`: our record as a LeRobot v3.0 dataset, labels as further features.

LeRobot's features have fixed shapes. A trace therefore has all five places, filled up by repeating its last
point (zeros where there is none), and `trace_num_points` says how many are real. A point that was not found is
NaN. Images keep their encoded bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.exporters.lerobot.metadata import DatasetDescription, feature
from molmoact_data.exporters.lerobot.writer import LeRobotWriter
from molmoact_data.outputs.columns import fixed_array
from molmoact_data.outputs.output import BATCH_ROWS, Output
from molmoact_data.pictures.images import decode_image
from molmoact_data.schema import RecordLayout

STATE_KEY, IMAGE_KEY = "observation.state", "observation.images.{role}"
TRACE_NUM_POINTS = "trace_num_points"


def export_lerobot(output: Output, folder: Path) -> int:
    """Write the dataset; returns the number of rows. Episodes are numbered anew from 0."""
    dataset = output.manifest.dataset
    if dataset.fps is None:
        raise UserError(f"{output.storage.root} merges datasets of different fps; LeRobot has one.")
    first = next(output.rows())
    description = DatasetDescription(
        fps=dataset.fps,
        robot_type=dataset.robot_type,
        features=lerobot_features(output.layout, first),
    )
    writer = LeRobotWriter(folder, description)
    last: tuple[str, int] | None = None
    for batch in output.batches(batch_rows=BATCH_ROWS):
        for key, part in _episode_parts(batch):
            if last is not None and key != last:
                writer.end_episode()
            last = key
            columns = lerobot_columns(part, output.layout)
            tasks = part.column(schema.INSTRUCTION).to_pylist()
            writer.write(columns, tasks, part.column(schema.TIMESTAMP_S))
    writer.end_episode()
    writer.close()
    return writer.rows


def _episode_parts(batch: pa.RecordBatch) -> list[tuple[tuple[str, int], pa.RecordBatch]]:
    """Consecutive rows of the same episode."""
    names = batch.column(schema.DATASET).to_pylist()
    episodes = batch.column(schema.EPISODE_INDEX).to_pylist()
    keys = list(zip(names, episodes, strict=True))
    starts = [i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]]
    stops = [*starts[1:], len(keys)]
    return [(keys[a], batch.slice(a, b - a)) for a, b in zip(starts, stops, strict=True)]


def lerobot_features(layout: RecordLayout, first: Mapping[str, Any]) -> dict[str, Any]:
    """Features of the exported dataset; image sizes are those of the first row."""
    features: dict[str, Any] = {}
    for role in layout.cameras:
        shape = decode_image(first[schema.image_column(role)]["bytes"]).shape
        names = ["height", "width", "channels"]
        features[IMAGE_KEY.format(role=role)] = feature("image", shape, names)
    if layout.state_dim is not None:
        features[STATE_KEY] = feature("float32", [layout.state_dim])
    if layout.action_dim is not None:
        features[schema.ACTION] = feature("float32", [layout.action_dim])
        shape = (layout.action_chunk_size, layout.action_dim)
        features[schema.ACTION_BINS] = feature("int16", shape)
        features[schema.NUM_VALID_ACTIONS] = feature("int64", [1])
    if layout.depth_codes is not None:
        features[schema.DEPTH_CODES] = feature("int16", [layout.depth_codes])
        features[schema.DEPTH_RANGE] = feature("float32", [2])
        if layout.depth_buffer:
            features[schema.BUFFER_CODES] = feature("int16", [layout.depth_codes])
            features[schema.DEPTH_UPDATED_MASK] = feature("bool", [layout.depth_codes])
    if layout.num_arms is not None:
        arms, points = layout.num_arms, schema.TRACE_MAX_POINTS
        features[schema.TRACE] = feature("int16", (arms, points * 2))
        features[TRACE_NUM_POINTS] = feature("int64", [arms])
        features[schema.TRACE_QUALITY] = feature("float32", [1])
        features[schema.GRIPPER_POINTS] = feature("float32", (arms, 2))
        features[schema.GRIPPER_CONFIDENCE] = feature("float32", [arms])
    return features


def lerobot_columns(batch: pa.RecordBatch, layout: RecordLayout) -> dict[str, pa.Array]:
    """The record's columns under LeRobot's names and with fixed shapes."""
    columns = {
        IMAGE_KEY.format(role=role): batch.column(schema.image_column(role))
        for role in layout.cameras
    }
    if layout.state_dim is not None:
        columns[STATE_KEY] = batch.column(schema.STATE)
    if layout.action_dim is not None:
        columns[schema.ACTION] = batch.column(schema.ACTION)
        columns[schema.ACTION_BINS] = _nested(fixed_array(batch.column(schema.ACTION_BINS)))
        columns[schema.NUM_VALID_ACTIONS] = batch.column(schema.NUM_VALID_ACTIONS)
    if layout.depth_codes is not None:
        columns[schema.DEPTH_CODES] = batch.column(schema.DEPTH_CODES)
        columns[schema.DEPTH_RANGE] = batch.column(schema.DEPTH_RANGE)
    if layout.depth_buffer:
        for name in (schema.BUFFER_CODES, schema.DEPTH_UPDATED_MASK):
            columns[name] = batch.column(name)
    if layout.num_arms is not None:
        columns |= _trace_columns(batch, layout.num_arms)
    return columns


def _trace_columns(batch: pa.RecordBatch, num_arms: int) -> dict[str, pa.Array]:
    traces = batch.column(schema.TRACE).to_pylist()
    padded_TAK = np.array([[padded_trace(trace) for trace in arms] for arms in traces], np.int16)
    counts_TA = np.array([[len(trace) for trace in arms] for arms in traces], np.int64)
    points_TA2 = np.array(
        [
            [[np.nan, np.nan] if xy is None else xy for xy in arms]
            for arms in batch.column(schema.GRIPPER_POINTS).to_pylist()
        ],
        np.float32,
    )
    confidence_TA = np.array(batch.column(schema.GRIPPER_CONFIDENCE).to_pylist(), np.float32)
    return {
        schema.TRACE: _nested(padded_TAK),
        TRACE_NUM_POINTS: _per_arm(counts_TA),
        schema.TRACE_QUALITY: batch.column(schema.TRACE_QUALITY),
        schema.GRIPPER_POINTS: _nested(points_TA2),
        schema.GRIPPER_CONFIDENCE: _per_arm(confidence_TA),
    }


def padded_trace(trace: list[list[int]]) -> list[int]:
    """x and y of five points in a row; the last one repeated, zeros for an empty trace."""
    points = trace or [[0, 0]]
    points = points + [points[-1]] * (schema.TRACE_MAX_POINTS - len(points))
    return [value for xy in points for value in xy]


def _nested(values_TAB: NDArray[Any]) -> pa.Array:
    """[T, A, B] -> lists of lists, as `datasets.Array2D` stores them."""
    return pa.array(values_TAB.tolist(), pa.list_(pa.list_(pa.from_numpy_dtype(values_TAB.dtype))))


def _per_arm(values_TA: NDArray[Any]) -> pa.Array:
    """[T, A] -> one list per row, or plain numbers for a single arm, as LeRobot stores shape (1,)."""
    if values_TA.shape[1] == 1:
        return pa.array(values_TA[:, 0])
    return pa.array(values_TA.tolist(), pa.list_(pa.from_numpy_dtype(values_TA.dtype)))
