"""Rows of many Parquet files by number, local or on an object store, one row group in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from molmoact_data.files.recent import Recent
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.output import Output, readable

_CACHED_ROW_GROUPS = 4


class ParquetRows:
    """Random access over the concatenation of files; the last few row groups stay in memory. Pickles without them."""

    def __init__(self) -> None:
        self.rows = 0
        self._places: list[tuple[Storage, str, int]] = []
        self._starts: list[int] = []
        self._open = Recent[tuple[int, tuple[str, ...]], pa.Table](_CACHED_ROW_GROUPS)

    @classmethod
    def of(cls, output: Output) -> ParquetRows:
        """All rows of an output. Raises `UserError` where a shard is not what the manifest says."""
        rows = cls()
        for shard in output.shards:
            with output.open_shard(shard) as file:
                rows._append(output.storage, shard.name, file.metadata)
        return rows

    def add_file(self, storage: Storage, name: str) -> pa.Schema:
        """Append a file; returns its columns."""
        with readable(storage, name) as file:
            self._append(storage, name, file.metadata)
            return file.schema_arrow

    def _append(self, storage: Storage, name: str, metadata: pq.FileMetaData) -> None:
        for group in range(metadata.num_row_groups):
            self._places.append((storage, name, group))
            self._starts.append(self.rows)
            self.rows += metadata.row_group(group).num_rows

    def read(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        """One row as plain Python values."""
        table, place = self._group(row, columns)
        return table.slice(place, 1).to_pylist()[0]

    def read_column(self, first: int, count: int, name: str, columns: Sequence[str]) -> list[Any]:
        """`count` values of one of `columns` from row `first` on; those that `read` asks for share its cache."""
        values: list[Any] = []
        while len(values) < count:
            table, place = self._group(first + len(values), columns)
            values += table.column(name).slice(place, count - len(values)).to_pylist()
        return values

    def _group(self, row: int, columns: Sequence[str]) -> tuple[pa.Table, int]:
        """The row group that holds a row, and the row's place in it."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        table = self._open.get(
            (number, tuple(columns)), lambda: self._read_group(number, list(columns))
        )
        return table, row - self._starts[number]

    def _read_group(self, number: int, columns: list[str]) -> pa.Table:
        storage, name, group = self._places[number]
        with readable(storage, name) as file:
            return file.read_row_group(group, columns=columns)


def padded_chunk(following: Sequence[Sequence[float]], steps: int) -> NDArray[np.float32]:
    """Recorded actions [h][D], 1 <= h, of this row and the next ones -> [steps, D]; the last is repeated."""
    recorded = np.asarray(following, dtype=np.float32)
    return recorded[np.minimum(np.arange(steps), len(recorded) - 1)]
