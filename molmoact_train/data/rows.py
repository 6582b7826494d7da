"""Rows of many Parquet files by number, one row group in memory at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from molmoact_data.errors import UserError

_CACHED_ROW_GROUPS = 4


class ParquetRows:
    """Random access over the concatenation of files; the last few row groups stay in memory."""

    def __init__(self) -> None:
        self.rows = 0
        self._places: list[tuple[Path, int]] = []
        self._starts: list[int] = []
        self._open: OrderedDict[tuple[int, tuple[str, ...]], pa.Table] = OrderedDict()

    def add_file(self, path: Path) -> int:
        """Append a file; returns its number of rows."""
        metadata = open_parquet(path).metadata
        for group in range(metadata.num_row_groups):
            self._places.append((path, group))
            self._starts.append(self.rows)
            self.rows += metadata.row_group(group).num_rows
        return metadata.num_rows

    def read(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        """One row as plain Python values."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        key = (number, tuple(columns))
        if key not in self._open:
            path, group = self._places[number]
            self._open[key] = open_parquet(path).read_row_group(group, columns=list(columns))
            if len(self._open) > _CACHED_ROW_GROUPS:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key].slice(row - self._starts[number], 1).to_pylist()[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file, or an error that says what to do."""
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing although the manifest lists it; the folder is incomplete. Copy it again, "
            "or run `molmoact preprocess ... --resume` to rebuild what is missing."
        ) from error
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path} is not a readable Parquet file ({error}); it is damaged. Copy it again, or delete it "
            "and run `molmoact preprocess ... --resume`."
        ) from error
