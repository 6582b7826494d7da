"""Rows of one episode out of LeRobot's Parquet files, as dense arrays or a named reject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, RejectReason
from molmoact_data.files.inputs import Folder, is_git_lfs_pointer
from molmoact_data.sources.lerobot.metadata import LeRobotMetadata

EPISODE_INDEX = "episode_index"
KEPT_TABLES = 2
"""One for `read_columns`, one for the clock that `iter_frames` needs."""


class RaggedColumnError(ValueError):
    """A list column whose rows do not all have the same length, or are null."""


@dataclass
class RowReader:
    """Reads episodes' rows. Keeps the last file's footer and numbers, never across a pickle.

    v3.0 files made by LeRobot's converter hold all episodes in one row group; without the kept
    table every episode would decode the whole file's columns again.
    """

    folder: Folder
    metadata: LeRobotMetadata
    _footer: tuple[Path, pq.FileMetaData, pa.Schema] | None = field(default=None, repr=False)
    _kept: dict[tuple[Any, ...], pa.Table] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_footer": None, "_kept": {}}

    def schema(self, episode_index: int) -> pa.Schema:
        """Columns of the file that holds the episode."""
        return self._open(episode_index)[2]

    def read(self, episode_index: int, columns: Sequence[str]) -> pa.Table:
        """The episode's rows in file order. Columns that the file lacks are left out."""
        path, footer, schema = self._open(episode_index)
        wanted = [name for name in columns if name in schema.names]
        if not self.metadata.is_v3:
            table = _read(path, range(footer.num_row_groups), wanted)
        else:
            groups = _row_groups(footer, schema, episode_index)
            names = [*wanted, *({EPISODE_INDEX} - set(wanted))]
            table = self._read_kept(path, groups, names)
            table = _slice_episode(table, episode_index).select(wanted)
        if not len(table):
            raise EpisodeRejected(
                RejectReason.ROWS_EMPTY, f"no row of episode {episode_index} in {path.name}"
            )
        return table

    def iter_column(self, episode_index: int, column: str, batch_size: int) -> Iterator[pa.Array]:
        """One heavy column (images), `batch_size` rows at a time, without keeping the rest."""
        path, footer, schema = self._open(episode_index)
        if column not in schema.names:
            raise EpisodeRejected(
                RejectReason.COLUMN_MISSING, f"no column {column!r} in {path.name}"
            )
        v3 = self.metadata.is_v3
        groups = (
            _row_groups(footer, schema, episode_index) if v3 else list(range(footer.num_row_groups))
        )
        names = [column, EPISODE_INDEX] if v3 else [column]
        with pq.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(batch_size, row_groups=groups, columns=names):
                table = pa.table(batch)
                rows = _slice_episode(table, episode_index) if v3 else table
                if len(rows):
                    yield rows[column].combine_chunks()

    def _open(self, episode_index: int) -> tuple[Path, pq.FileMetaData, pa.Schema]:
        try:
            path = self.folder.fetch(self.metadata.data_file(episode_index))
        except FileNotFoundError as error:
            raise EpisodeRejected(RejectReason.ROWS_MISSING, f"no such file: {error}") from error
        if self._footer is None or self._footer[0] != path:
            footer = _footer(path)
            self._footer = (path, footer, footer.schema.to_arrow_schema())
            self._kept.clear()
        return self._footer

    def _read_kept(self, path: Path, groups: list[int], columns: list[str]) -> pa.Table:
        key = (tuple(groups), *sorted(columns))
        if key not in self._kept:
            if len(self._kept) >= KEPT_TABLES:
                self._kept.clear()
            self._kept[key] = _read(path, groups, columns)
        return self._kept[key]


def dense(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """A numeric column as [T], or [T, ...] for nested lists. Nulls become NaN.

    Raises `RaggedColumnError` where lists are null or differ in length, `TypeError` for text.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if array.null_count:
            raise RaggedColumnError(f"row {_first_null(array)} is null")
        lengths = np.unique(pc.list_value_length(array).to_numpy(zero_copy_only=False))
        if len(lengths) > 1:
            raise RaggedColumnError(f"rows have between {lengths[0]} and {lengths[-1]} values")
        values = dense(array.flatten())
        width = int(lengths[0]) if len(lengths) else 0
        return values.reshape(len(array), width, *values.shape[1:])
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise TypeError(f"{kind} is not numeric")
    return array.to_numpy(zero_copy_only=False)


def numbers(table: pa.Table, name: str) -> NDArray[Any]:
    """A column of one number per row as [T], however it is wrapped. Raises `EpisodeRejected`."""
    if name not in table.column_names:
        raise EpisodeRejected(RejectReason.COLUMN_MISSING, f"no column {name!r}")
    try:
        values = dense(table[name])
    except (RaggedColumnError, TypeError) as error:
        raise EpisodeRejected(RejectReason.ROWS_UNREADABLE, f"column {name!r}: {error}") from error
    if values.size != len(table):
        raise EpisodeRejected(
            RejectReason.ROWS_UNREADABLE,
            f"column {name!r} has {values.size} numbers in {len(table)} rows",
        )
    return values.reshape(-1)


def is_numeric(kind: pa.DataType) -> bool:
    """True for numbers and nested lists of numbers: what `dense` can take."""
    if isinstance(kind, pa.ExtensionType):
        return is_numeric(kind.storage_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return is_numeric(kind.value_type)
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _first_null(array: pa.Array) -> int:
    return int(pc.index(array.is_null(), value=True).as_py())


def _footer(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        why = "a Git LFS pointer; run `git lfs pull`" if is_git_lfs_pointer(path) else str(error)
        raise EpisodeRejected(RejectReason.ROWS_UNREADABLE, f"{path}: {why}") from error


def _read(path: Path, groups: Sequence[int], columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            return file.read_row_groups(list(groups), columns=columns, use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise EpisodeRejected(RejectReason.ROWS_UNREADABLE, f"{path}: {error}") from error


def _row_groups(footer: pq.FileMetaData, schema: pa.Schema, episode_index: int) -> list[int]:
    """Row groups that may hold the episode, by their statistics."""
    if EPISODE_INDEX not in schema.names:
        raise EpisodeRejected(
            RejectReason.COLUMN_MISSING, f"no column {EPISODE_INDEX!r} in a file shared by episodes"
        )
    if not pa.types.is_integer(schema.field(EPISODE_INDEX).type):
        kind = schema.field(EPISODE_INDEX).type
        raise EpisodeRejected(
            RejectReason.ROWS_UNREADABLE, f"column {EPISODE_INDEX!r} is {kind}, not whole numbers"
        )
    leaves = [footer.schema.column(i).path for i in range(footer.num_columns)]
    leaf = leaves.index(EPISODE_INDEX)

    def may_hold(group: int) -> bool:
        found = footer.row_group(group).column(leaf).statistics
        return found is None or not found.has_min_max or found.min <= episode_index <= found.max

    return [group for group in range(footer.num_row_groups) if may_hold(group)]


def _slice_episode(table: pa.Table, episode_index: int) -> pa.Table:
    return table.filter(pc.equal(table[EPISODE_INDEX], episode_index))
