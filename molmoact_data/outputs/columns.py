"""The labels of one episode -> Arrow columns of the record (all but the images), without a loop over rows."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.labels.labels import EpisodeLabels
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.labels.traces import MIN_USABLE_POINTS, EpisodeTraces, reason_names
from molmoact_data.schema import RecordLayout
from molmoact_data.sources.base import EpisodeColumns

_NO_ARM = np.iinfo(np.int64).max


def label_columns(
    layout: RecordLayout,
    *,
    dataset: str,
    revision: str,
    columns: EpisodeColumns,
    labels: EpisodeLabels,
) -> dict[str, pa.Array]:
    """Every non-image column of `layout`, in schema order and with the schema's types, T rows each.

    Raises ValueError where a part that the layout has is missing or has another shape.
    """
    num_frames = len(columns.frame_index)
    types = _column_types(layout)
    arrays: dict[str, pa.Array] = {
        schema.DATASET: pa.repeat(dataset, num_frames),
        schema.REVISION: pa.repeat(revision, num_frames),
        schema.EPISODE_INDEX: pa.repeat(pa.scalar(columns.episode_index, pa.int32()), num_frames),
        schema.FRAME_INDEX: pa.array(columns.frame_index, pa.int32()),
        schema.TIMESTAMP_S: pa.array(columns.timestamp_s, pa.float32()),
        schema.INSTRUCTION: pa.array(columns.instructions, pa.string()),
    }
    if layout.depth_codes is not None:
        arrays[schema.DEPTH_CODES] = fixed_size_lists(labels.depth_codes, types[schema.DEPTH_CODES])
        arrays[schema.DEPTH_RANGE] = fixed_size_lists(labels.depth_range, types[schema.DEPTH_RANGE])
    if layout.depth_buffer:
        if labels.depth_buffer is None:
            raise ValueError("the layout has a buffer of depth codes, but it is missing")
        buffer, mask = schema.BUFFER_CODES, schema.DEPTH_UPDATED_MASK
        arrays[buffer] = fixed_size_lists(labels.depth_buffer.buffer_TG, types[buffer])
        arrays[mask] = fixed_size_lists(labels.depth_buffer.updated_TG, types[mask])
    if layout.num_arms is not None:
        arrays.update(_trace_columns(labels, types))
    if layout.action_dim is not None:
        arrays[schema.ACTION] = fixed_size_lists(columns.action, types[schema.ACTION])
        arrays[schema.ACTION_BINS] = fixed_size_lists(labels.action_bins, types[schema.ACTION_BINS])
        arrays[schema.NUM_VALID_ACTIONS] = pa.array(labels.num_valid_actions, pa.int8())
    if layout.state_dim is not None:
        arrays[schema.STATE] = fixed_size_lists(columns.state, types[schema.STATE])
    wrong = {name: len(a) for name, a in arrays.items() if len(a) != num_frames}
    if wrong:
        raise ValueError(f"the episode has {num_frames} frames, but columns have {wrong} rows")
    return arrays


@cache
def _column_types(layout: RecordLayout) -> dict[str, pa.DataType]:
    """Asked for once per episode, and the schema's metadata takes longer than an episode's labels."""
    return {field.name: field.type for field in layout.arrow_schema()}


def fixed_size_lists(
    values: NDArray[np.generic] | None, arrow_type: pa.FixedSizeListType
) -> pa.Array:
    """[T, n] or [T, n, m] -> a fixed-size list of lists of exactly these sizes."""
    if values is None:
        raise ValueError(f"the layout has a {arrow_type} column, but its values are missing")
    sizes, inner = [], arrow_type
    while pa.types.is_fixed_size_list(inner):
        sizes.append(inner.list_size)
        inner = inner.value_type
    if list(values.shape[1:]) != sizes:
        raise ValueError(f"values have shape {values.shape}, the layout wants [T, {sizes}]")
    array = pa.array(np.ascontiguousarray(values).reshape(-1)).cast(inner)
    for depth in reversed(range(len(sizes))):
        level = arrow_type
        for _ in range(depth):
            level = level.value_type
        array = pa.FixedSizeListArray.from_arrays(array, type=level)
    return array


def fixed_array(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """(Nested) fixed-size lists without nulls -> one array [T, ...]; the inverse of `fixed_size_lists`."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    shape = [len(array)]
    while pa.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False).reshape(shape)


def usable_traces(trace: pa.ChunkedArray, reject_reason: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Per row [T], `labels.traces.is_usable` without a loop over rows."""
    column = trace.combine_chunks()
    points = pc.list_value_length(pc.list_flatten(column)).fill_null(0).to_numpy()
    shortest = np.full(len(column), _NO_ARM)
    np.minimum.at(shortest, pc.list_parent_indices(column).to_numpy(), points)
    accepted = pc.is_null(reject_reason).to_numpy()
    return accepted & (shortest >= MIN_USABLE_POINTS) & (shortest < _NO_ARM)


def _trace_columns(labels: EpisodeLabels, types: dict[str, pa.DataType]) -> dict[str, pa.Array]:
    points, traces = labels.points, labels.traces
    if points is None or traces is None:
        raise ValueError("the layout has traces, but points or traces are missing")
    num_frames, num_arms = points.confidence_NA.shape
    per_frame = pa.array(np.arange(num_frames + 1, dtype=np.int32) * num_arms)
    confidence = pa.array(points.confidence_NA.reshape(-1), pa.float32())
    return {
        schema.GRIPPER_POINTS: pa.ListArray.from_arrays(
            per_frame, _nullable_points(points), type=types[schema.GRIPPER_POINTS]
        ),
        schema.GRIPPER_CONFIDENCE: pa.ListArray.from_arrays(
            per_frame, confidence, type=types[schema.GRIPPER_CONFIDENCE]
        ),
        schema.TRACE: _trace_array(traces, per_frame, types[schema.TRACE]),
        schema.TRACE_QUALITY: pa.array(traces.quality_T, pa.float32()),
        schema.TRACE_REJECT_REASON: _reason_array(traces),
    }


def _nullable_points(points: GripperPoints) -> pa.Array:
    """[T * A] lists of two floats; null where not found."""
    xy = points.xy_NA2.reshape(-1, 2)
    found = ~np.isnan(xy).any(axis=1)
    offsets = np.concatenate([[0], 2 * np.cumsum(found)]).astype(np.int32)
    values = pa.array(xy[found].reshape(-1), pa.float32())
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~found))


def _trace_array(traces: EpisodeTraces, per_frame: pa.Array, arrow_type: pa.ListType) -> pa.Array:
    xy = pa.FixedSizeListArray.from_arrays(
        pa.array(traces.points_P2.reshape(-1)), type=arrow_type.value_type.value_type
    )
    runs = pa.ListArray.from_arrays(pa.array(traces.offsets), xy, type=arrow_type.value_type)
    return pa.ListArray.from_arrays(per_frame, runs, type=arrow_type)


def _reason_array(traces: EpisodeTraces) -> pa.Array:
    code_T = traces.frame_reason_code_T.astype(np.int32)
    index = pa.array(np.maximum(code_T - 1, 0), mask=code_T == 0)
    return pa.DictionaryArray.from_arrays(index, pa.array(reason_names())).cast(pa.string())
