"""THE record: one Parquet row is one frame. Column names are spelled here and nowhere else.

Numbers are stored and text is rendered late (`molmoact_data.text.prompts`), so a new template never
rebuilds a dataset.

`MEANINGS` says what every column holds, `RecordLayout` its type.

Every field is nullable in the Arrow sense only because `datasets` ignores its `Image` metadata
otherwise; `molmoact validate` holds the record to what is said here.

A part that was not asked for (no depth, no pointer, no actions, a dataset without state) is an absent
column, never an empty one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = "1.1"
READABLE_VERSIONS = ("1.0", SCHEMA_VERSION)
"""1.1 added `buffer_codes` and `depth_updated_mask`, which 1.0 does not have."""
WITHOUT_LAYOUT = ("1.0",)
"""Versions whose shards do not say what of their layout the columns do not tell."""

DATASET = "dataset"
REVISION = "revision"
EPISODE_INDEX = "episode_index"
FRAME_INDEX = "frame_index"
TIMESTAMP_S = "timestamp_s"
INSTRUCTION = "instruction"
IMAGE_PREFIX = "image_"
DEPTH_CODES = "depth_codes"
DEPTH_RANGE = "depth_range"
BUFFER_CODES = "buffer_codes"
DEPTH_UPDATED_MASK = "depth_updated_mask"
GRIPPER_POINTS = "gripper_points"
GRIPPER_CONFIDENCE = "gripper_confidence"
TRACE = "trace"
TRACE_QUALITY = "trace_quality"
TRACE_REJECT_REASON = "trace_reject_reason"
ACTION = "action"
STATE = "state"
ACTION_BINS = "action_bins"
NUM_VALID_ACTIONS = "num_valid_actions"

MEANINGS: Mapping[str, str] = {
    DATASET: "source dataset",
    REVISION: "its revision",
    EPISODE_INDEX: "with `frame_index` the key, unique together",
    FRAME_INDEX: "0-based within the episode",
    TIMESTAMP_S: "seconds from the episode's start",
    INSTRUCTION: "the task in words, never empty",
    DEPTH_CODES: "codebook ids of the depth grid, row-major, 0 <= id < codebook size",
    DEPTH_RANGE: "raw minimum and maximum of the depth map before per-image scaling",
    BUFFER_CODES: "codes that follow only where the picture changed",
    DEPTH_UPDATED_MASK: "which cells of the picture changed; all of them in an episode's first frame",
    GRIPPER_POINTS: "per arm, unit coordinates 0..1, x right, y down; null = not found",
    GRIPPER_CONFIDENCE: "per arm, 0..1; 0 where the point is null",
    TRACE: "per arm, up to 5 points, x right, y down, 0..255 over the frame; the first is now",
    TRACE_QUALITY: "0..1, of the worst arm",
    TRACE_REJECT_REASON: "null = the trace is usable; otherwise why it is empty",
    ACTION: "raw, as recorded",
    STATE: "raw, as recorded",
    ACTION_BINS: "bins 1..N of the normalised chunk that starts at this frame",
    NUM_VALID_ACTIONS: "steps of the chunk before the episode's end; the rest repeats the last",
}
"""Column -> meaning, unit, range; the columns of cameras have `meaning` alone."""

# Keys of the Parquet file's own metadata.
META_SCHEMA_VERSION = b"molmoact.schema_version"
META_CONFIG_HASH = b"molmoact.config_hash"
META_STATISTICS_HASH = b"molmoact.statistics_hash"
META_LAYOUT = b"molmoact.layout"
"""What of the layout the columns do not tell, as JSON; absent where that is the default."""

# Files beside the shards.
DATA_DIR = "data"
STATISTICS_FILE = "dataset_statistics.json"
MANIFEST_FILE = "manifest.json"
REJECTS_FILE = "rejects.jsonl"
REPORT_FILE = "report.html"
DEMO_RUN_DIR, DEMO_ANSWER_DIR = "run", "prediction"
"""What `molmoact demo` leaves in its output beside the dataset: never published."""

TRACE_MAX_POINTS = 5
# `datasets` decodes images on load only from this struct, not from a bare binary column.
IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
DEPTH_GRID_CODES = 100
_UNTOLD = ("action_chunk_size", "codebook_size", "num_arms")
"""Fields of a layout that its columns do not always tell."""


def image_column(role: str) -> str:
    """The column that holds the frames of one camera role."""
    return IMAGE_PREFIX + role


def meaning(column: str) -> str:
    """What a column of the record holds."""
    if column.startswith(IMAGE_PREFIX):
        return f"encoded RGB of camera `{column.removeprefix(IMAGE_PREFIX)}`, JPEG or PNG"
    return MEANINGS[column]


@dataclass(frozen=True)
class RecordLayout:
    """What varies between outputs; decides the Arrow schema and nothing else."""

    cameras: tuple[str, ...]
    """Roles in order; the first is the one that depth, points and traces belong to."""
    action_dim: int | None
    """D; None = actions were not processed."""
    state_dim: int | None
    """S; None = the dataset has no state."""
    action_chunk_size: int = 8
    depth_codes: int | None = DEPTH_GRID_CODES
    """Codes per frame; None = no depth."""
    codebook_size: int = 128
    depth_buffer: bool = False
    """Whether there are `buffer_codes` and their mask."""
    num_arms: int | None = 1
    """None = no pointer, hence no points and no traces."""

    def __post_init__(self) -> None:
        if not self.cameras:
            raise ValueError("a record needs at least one camera role")
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"camera roles repeat: {self.cameras}")
        if self.depth_buffer and self.depth_codes is None:
            raise ValueError("a buffer of depth codes needs depth codes")

    def arrow_schema(self, metadata: dict[bytes, bytes] | None = None) -> pa.Schema:
        """The schema of a shard, with Hugging Face features so that images decode on load."""
        fields = self._fields()
        features = {f.name: _hf_feature(f) for f in fields}
        hf = json.dumps({"info": {"features": features}}).encode()
        base = {b"huggingface": hf, META_SCHEMA_VERSION: SCHEMA_VERSION.encode()}
        if untold := self._untold(pa.schema(fields)):
            base[META_LAYOUT] = json.dumps(untold, sort_keys=True).encode()
        return pa.schema(fields, metadata={**base, **(metadata or {})})

    @classmethod
    def from_arrow_schema(cls, schema: pa.Schema) -> RecordLayout:
        """The layout a shard was written with; the inverse of `arrow_schema`.

        Raises `ValueError` where its metadata are not what `arrow_schema` writes.
        """
        untold = json.loads((schema.metadata or {}).get(META_LAYOUT, b"{}"))
        if {*untold} - {*_UNTOLD} or not all(type(value) is int for value in untold.values()):
            raise ValueError(f"{META_LAYOUT.decode()} is no part of a layout: {untold}")
        return replace(cls._told_by(schema), **untold)

    def _untold(self, columns: pa.Schema) -> dict[str, int]:
        told = self._told_by(columns)
        return {k: getattr(self, k) for k in _UNTOLD if getattr(self, k) != getattr(told, k)}

    def _fields(self) -> list[pa.Field]:
        fields = [
            pa.field(DATASET, pa.string()),
            pa.field(REVISION, pa.string()),
            pa.field(EPISODE_INDEX, pa.int32()),
            pa.field(FRAME_INDEX, pa.int32()),
            pa.field(TIMESTAMP_S, pa.float32()),
            pa.field(INSTRUCTION, pa.string()),
        ]
        fields += [pa.field(image_column(r), IMAGE_TYPE) for r in self.cameras]
        return fields + self._depth_fields() + self._trace_fields() + self._action_fields()

    def _depth_fields(self) -> list[pa.Field]:
        if self.depth_codes is None:
            return []
        code = pa.uint8() if self.codebook_size <= 256 else pa.int16()
        fields = [
            pa.field(DEPTH_CODES, pa.list_(code, self.depth_codes)),
            pa.field(DEPTH_RANGE, pa.list_(pa.float32(), 2)),
        ]
        if self.depth_buffer:
            fields += [
                pa.field(BUFFER_CODES, pa.list_(code, self.depth_codes)),
                pa.field(DEPTH_UPDATED_MASK, pa.list_(pa.bool_(), self.depth_codes)),
            ]
        return fields

    def _trace_fields(self) -> list[pa.Field]:
        if self.num_arms is None:
            return []
        return [
            # Parquet cannot hold a null fixed-size list, hence the variable inner list.
            pa.field(GRIPPER_POINTS, pa.list_(pa.list_(pa.float32()))),
            pa.field(GRIPPER_CONFIDENCE, pa.list_(pa.float32())),
            pa.field(TRACE, pa.list_(pa.list_(pa.list_(pa.uint8(), 2)))),
            pa.field(TRACE_QUALITY, pa.float32()),
            pa.field(TRACE_REJECT_REASON, pa.string()),
        ]

    def _action_fields(self) -> list[pa.Field]:
        fields = []
        if self.action_dim is not None:
            row = pa.list_(pa.int16(), self.action_dim)
            fields += [
                pa.field(ACTION, pa.list_(pa.float32(), self.action_dim)),
                pa.field(ACTION_BINS, pa.list_(row, self.action_chunk_size)),
                pa.field(NUM_VALID_ACTIONS, pa.int8()),
            ]
        if self.state_dim is not None:
            fields.append(pa.field(STATE, pa.list_(pa.float32(), self.state_dim)))
        return fields

    @classmethod
    def _told_by(cls, columns: pa.Schema) -> RecordLayout:
        """What columns say by their names and sizes, with defaults for the rest."""

        def size(name: str) -> int | None:
            return columns.field(name).type.list_size if name in columns.names else None

        return cls(
            cameras=tuple(
                n.removeprefix(IMAGE_PREFIX) for n in columns.names if n.startswith(IMAGE_PREFIX)
            ),
            action_dim=size(ACTION),
            state_dim=size(STATE),
            action_chunk_size=size(ACTION_BINS) or cls.action_chunk_size,
            depth_codes=size(DEPTH_CODES),
            depth_buffer=BUFFER_CODES in columns.names,
            num_arms=1 if TRACE in columns.names else None,
        )


def _hf_feature(field: pa.Field) -> dict[str, Any]:
    """The `datasets.Features` spelling of a column, as JSON."""
    if field.name.startswith(IMAGE_PREFIX):
        return {"_type": "Image"}
    return _hf_type(field.type)


def _hf_type(arrow_type: pa.DataType) -> dict[str, Any]:
    if pa.types.is_fixed_size_list(arrow_type):
        feature = _hf_type(arrow_type.value_type)
        return {"_type": "List", "feature": feature, "length": arrow_type.list_size}
    if pa.types.is_list(arrow_type):
        return {"_type": "List", "feature": _hf_type(arrow_type.value_type)}
    name = {"float": "float32", "double": "float64"}.get(str(arrow_type), str(arrow_type))
    return {"_type": "Value", "dtype": name}
