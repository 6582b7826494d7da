"""Shards: the unit of commit. Planned before the run, named by their content, written whole or not at all.

A shard's name is a pure function of the configuration and its episodes, so a re-run does only what is
missing and two workers doing the same shard is harmless.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from molmoact_data import schema
from molmoact_data.config import content_hash
from molmoact_data.files.typed import parse_json
from molmoact_data.labels.quality import QualitySums
from molmoact_data.sources.base import EpisodeRef

ROWS_PER_ROW_GROUP = 64
"""Training reads rows in random order, a row group at a time (two cameras: some 2 MB); labels still compress."""


@dataclass(frozen=True)
class ShardSpec:
    """What one shard will hold; small enough to travel through a shuffle."""

    name: str
    episodes: tuple[EpisodeRef, ...]

    @property
    def num_frames(self) -> int:
        """Frames as declared by the metadata."""
        return sum(ref.num_frames for ref in self.episodes)


def plan_shards(
    episodes: Sequence[EpisodeRef], frames_per_shard: int, config_hash: str
) -> list[ShardSpec]:
    """Consecutive episodes, closed as soon as a shard holds `frames_per_shard` frames."""
    groups: list[list[EpisodeRef]] = []
    frames = frames_per_shard
    for ref in episodes:
        if frames >= frames_per_shard:
            groups.append([])
            frames = 0
        groups[-1].append(ref)
        frames += ref.num_frames
    return [ShardSpec(_shard_name(group, config_hash), tuple(group)) for group in groups]


def _shard_name(episodes: Sequence[EpisodeRef], config_hash: str) -> str:
    indices = [ref.episode_index for ref in episodes]
    key = content_hash({"config": config_hash, "episodes": indices})
    return f"{schema.DATA_DIR}/episodes-{indices[0]:06d}-{indices[-1]:06d}-{key[:12]}.parquet"


@dataclass(frozen=True)
class Reject:
    """One line of `rejects.jsonl`."""

    episode_index: int
    reason: str
    detail: str


@dataclass(frozen=True)
class ShardRecord:
    """What a finished shard says about itself; the manifest is made of these."""

    name: str
    rows: int
    num_bytes: int
    """0 where every episode of the shard was rejected and no file exists."""
    sha256: str | None
    episodes: tuple[tuple[int, int], ...]
    """(episode_index, rows) of what was written, in order."""
    rejects: tuple[Reject, ...] = ()
    quality: Mapping[str, Any] = field(default_factory=dict)
    """Partial sums of `molmoact_data.labels.quality`, merged over shards for the report."""

    def __post_init__(self) -> None:
        parse_json(QualitySums, json.dumps(self.quality), "quality")
        if self.rows != sum(rows for _, rows in self.episodes):
            raise ValueError(f"{self.rows} rows, but its episodes have other ones")

    def to_json(self) -> dict[str, Any]:
        """Plain data; the inverse of `from_json`."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ShardRecord:
        """A record read back from disk."""
        return cls(
            **{
                **data,
                "episodes": tuple((int(e), int(n)) for e, n in data["episodes"]),
                "rejects": tuple(Reject(**r) for r in data["rejects"]),
            }
        )


class ShardWriter:
    """Parquet rows of one shard, appended in row groups; the file appears with its first rows."""

    def __init__(self, path: Path, arrow_schema: pa.Schema) -> None:
        self.path = path
        self.rows = 0
        self.schema = arrow_schema
        self._buffered: list[pa.Table] = []
        self._num_buffered = 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self._num_buffered:
            self._flush(self._num_buffered)
        if self._writer is not None:
            self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Append rows; columns must be those of the schema, in its order."""
        self._buffered.append(table)
        self._num_buffered += table.num_rows
        self.rows += table.num_rows
        while self._num_buffered >= ROWS_PER_ROW_GROUP:
            self._flush(ROWS_PER_ROW_GROUP)

    def _flush(self, rows: int) -> None:
        table = pa.concat_tables(self._buffered)
        self._open().write_table(table.slice(0, rows).combine_chunks(), row_group_size=rows)
        rest = table.slice(rows)
        self._buffered = [rest] if rest.num_rows else []
        self._num_buffered = rest.num_rows

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            images = [n for n in self.schema.names if n.startswith(schema.IMAGE_PREFIX)]
            others = [n for n in self.schema.names if n not in images]
            self._writer = pq.ParquetWriter(
                self.path,
                self.schema,
                # JPEG and PNG do not shrink further; everything else does.
                compression={
                    **_leaf_codecs(self.schema, images, "none"),
                    **_leaf_codecs(self.schema, others, "zstd"),
                },
                use_dictionary=[schema.DATASET, schema.REVISION, schema.INSTRUCTION],
                store_schema=True,
            )
        return self._writer


def _leaf_codecs(arrow_schema: pa.Schema, columns: Iterable[str], codec: str) -> dict[str, str]:
    """Compression per Parquet leaf: nested columns are addressed by their path."""
    return {
        path: codec for name in columns for path in _leaf_paths(name, arrow_schema.field(name).type)
    }


def _leaf_paths(prefix: str, arrow_type: pa.DataType) -> Iterator[str]:
    if pa.types.is_struct(arrow_type):
        for child in arrow_type:
            yield from _leaf_paths(f"{prefix}.{child.name}", child.type)
    elif pa.types.is_list(arrow_type) or pa.types.is_fixed_size_list(arrow_type):
        yield from _leaf_paths(f"{prefix}.list.element", arrow_type.value_type)
    else:
        yield prefix


class EpisodeSpool:
    """Images and per-frame labels of one episode on disk, until the whole episode is known.

    A trace needs every later frame of its episode, so rows cannot be written while frames are decoded;
    keeping them in memory would make it grow with the episode. The file has no name, so that not even a killed
    process leaves it behind.
    """

    def __init__(self, arrow_schema: pa.Schema) -> None:
        self._file = tempfile.TemporaryFile(prefix="molmoact-")  # noqa: SIM115 - closed by __exit__
        self._writer = pa.ipc.new_stream(self._file, arrow_schema)
        self._written = False
        self.rows = 0

    def append(self, batch: pa.RecordBatch) -> None:
        """Add the frames of one decoded batch."""
        self._writer.write_batch(batch)
        self.rows += batch.num_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        """What was appended, in order, one batch in memory at a time; ends the writing."""
        self._end_writing()
        self._file.seek(0)
        yield from pa.ipc.open_stream(self._file)

    def __enter__(self) -> EpisodeSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _end_writing(self) -> None:
        if not self._written:
            self._writer.close()
            self._written = True


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, read in bounded pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
