"""Rows of one episode out of LeRobot's Parquet files, as dense arrays or a named reject."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from molmoact_data.sources.lerobot.instructions import without_views
from molmoact_data.sources.lerobot.metadata import LeRobotMetadata
from molmoact_data.sources.lerobot.places import EPISODE_INDEX

KEPT_FOOTERS = 2
KEPT_TABLES = 2
"""One for `read_columns`, one for the clock that `iter_frames` needs."""


class RaggedColumnError(ValueError):
    """A list column whose rows do not all have the same length, or are null."""


@dataclass(frozen=True)
class _Part:
    """The row groups of one file that may hold rows of an episode."""

    path: Path
    schema: pa.Schema
    groups: tuple[int, ...]


@dataclass
class RowReader:
    """Reads episodes' rows. Keeps the last files' footers and numbers, never across a pickle.

    v3.0 files made by LeRobot's converter hold all episodes in one row group; without the kept
    table every episode would decode the whole file's columns again.
    """

    folder: Folder
    metadata: LeRobotMetadata
    elsewhere: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """Row files of the episodes that are not (all) in the file that the metadata names, in order."""
    _footers: dict[Path, tuple[pq.FileMetaData, pa.Schema]] = field(
        default_factory=dict, repr=False
    )
    _kept: dict[tuple[Any, ...], pa.Table] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_footers": {}, "_kept": {}}

    def files(self, episode_index: int) -> Sequence[str]:
        """Relative paths of the files with the episode's rows. Raises `EpisodeRejected`."""
        if episode_index in self.elsewhere:
            return self.elsewhere[episode_index]
        try:
            return (self.metadata.data_file(episode_index),)
        except FileNotFoundError as error:
            raise EpisodeRejected(RejectReason.ROWS_MISSING, f"no such file: {error}") from error

    def schema(self, episode_index: int) -> pa.Schema:
        """Columns of the file that holds the episode, or its beginning."""
        return self._parts(episode_index)[0].schema

    def read(self, episode_index: int, columns: Sequence[str]) -> pa.Table:
        """The episode's rows in file order. Columns that the files lack are left out."""
        parts = self._parts(episode_index)
        tables = [self._read_part(part, episode_index, columns) for part in parts]
        try:
            table = pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise EpisodeRejected(RejectReason.ROWS_UNREADABLE, str(error)) from error
        if not len(table):
            names = ", ".join(part.path.name for part in parts)
            raise EpisodeRejected(
                RejectReason.ROWS_EMPTY, f"no row of episode {episode_index} in {names}"
            )
        return table

    def iter_column(self, episode_index: int, column: str, batch_size: int) -> Iterator[pa.Array]:
        """One heavy column (images), `batch_size` rows at a time, without keeping the rest."""
        v3 = self.metadata.is_v3
        names = [column, EPISODE_INDEX] if v3 else [column]
        for part in self._parts(episode_index):
            if column not in part.schema.names:
                raise EpisodeRejected(
                    RejectReason.COLUMN_MISSING, f"no column {column!r} in {part.path.name}"
                )
            for batch in _iter_batches(part.path, part.groups, names, batch_size):
                table = pa.table(batch)
                rows = _slice_episode(table, episode_index) if v3 else table
                if len(rows):
                    yield rows[column].combine_chunks()

    def _parts(self, episode_index: int) -> list[_Part]:
        return [self._open(path, episode_index) for path in self.files(episode_index)]

    def _open(self, relative: str, episode_index: int) -> _Part:
        try:
            path = self.folder.fetch(relative)
        except FileNotFoundError as error:
            raise EpisodeRejected(RejectReason.ROWS_MISSING, f"no such file: {error}") from error
        if path not in self._footers:
            if len(self._footers) >= KEPT_FOOTERS:
                self._footers.clear()
                self._kept.clear()
            self._footers[path] = _footer(path)
        footer, schema = self._footers[path]
        groups = (
            _row_groups(footer, schema, episode_index)
            if self.metadata.is_v3
            else range(footer.num_row_groups)
        )
        return _Part(path, schema, tuple(groups))

    def _read_part(self, part: _Part, episode_index: int, columns: Sequence[str]) -> pa.Table:
        wanted = [name for name in columns if name in part.schema.names]
        if not self.metadata.is_v3:
            return _read(part.path, part.groups, wanted)
        names = [*wanted, *({EPISODE_INDEX} - set(wanted))]
        return _slice_episode(self._read_kept(part, names), episode_index).select(wanted)

    def _read_kept(self, part: _Part, columns: list[str]) -> pa.Table:
        key = (part.path, part.groups, *sorted(columns))
        if key not in self._kept:
            if len(self._kept) >= KEPT_TABLES:
                self._kept.clear()
            self._kept[key] = _read(part.path, part.groups, columns)
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
        raise TypeError(f"{kind} is not numeric; write it as float or whole numbers")
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


def _footer(path: Path) -> tuple[pq.FileMetaData, pa.Schema]:
    """Footer and columns; every column has a name of its own, or nobody can say which one is meant."""
    try:
        footer = pq.read_metadata(path, memory_map=True)
        schema = footer.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        why = "a Git LFS pointer; run `git lfs pull`" if is_git_lfs_pointer(path) else str(error)
        raise EpisodeRejected(RejectReason.ROWS_UNREADABLE, f"{path}: {why}") from error
    twice = [name for name, times in Counter(schema.names).items() if times > 1]
    if twice:
        raise EpisodeRejected(
            RejectReason.ROWS_UNREADABLE, f"{path}: several columns are named {twice[0]!r}"
        )
    return footer, schema


def _read(path: Path, groups: Sequence[int], columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            table = file.read_row_groups(list(groups), columns=columns, use_threads=False)
        return without_views(table)
    except (pa.ArrowException, OSError) as error:
        raise EpisodeRejected(RejectReason.ROWS_UNREADABLE, f"{path}: {error}") from error


def _iter_batches(
    path: Path, groups: Sequence[int], columns: list[str], batch_size: int
) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            yield from file.iter_batches(batch_size, row_groups=list(groups), columns=columns)
    except (pa.ArrowException, OSError) as error:
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
