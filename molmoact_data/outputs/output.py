"""A finished output folder, read back: manifest, statistics, shards in order, rows in bounded batches.

What `validate`, `retokenize`, `merge`, `export` and `publish` share. Nothing is written here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from molmoact_data import schema
from molmoact_data.errors import UserError, first_line
from molmoact_data.files.storage import Storage
from molmoact_data.files.typed import parse_json
from molmoact_data.outputs.manifest import Manifest, SourceName, read_manifest
from molmoact_data.outputs.rejects import RejectLine, read_rejects
from molmoact_data.outputs.shards import ShardRecord
from molmoact_data.statistics import DatasetStatistics

BATCH_ROWS = 256
"""Rows with images held at once; at 20 kB an image this is some 10 MB."""


@dataclass(frozen=True)
class Output:
    """One folder (or URL) that `molmoact preprocess` completed."""

    storage: Storage
    manifest: Manifest
    statistics: DatasetStatistics | None
    """None = actions were not processed."""

    @classmethod
    def open(cls, root: str | Path) -> Output:
        """Manifest and statistics, which belong together. Raises `UserError` where they do not."""
        output = cls.read(root)
        wanted, found = output.manifest.statistics_sha256, output.statistics
        if output.layout.action_dim is not None and (found is None or found.sha256() != wanted):
            what = "is missing" if found is None else "does not match the manifest"
            raise UserError(
                f"{output.storage.root}/{schema.STATISTICS_FILE} {what}: the action tokens of the shards were made "
                "with other statistics than could be read. Restore the file, or preprocess again."
            )
        return output

    @classmethod
    def read(cls, root: str | Path) -> Output:
        """As `open`, for those who tell people what does not fit together."""
        storage = Storage(str(root))
        manifest = read_manifest(storage)
        statistics = None
        if storage.exists(schema.STATISTICS_FILE):
            statistics = DatasetStatistics.from_json(statistics_entries(storage))
        return cls(storage, manifest, statistics)

    @property
    def shards(self) -> tuple[ShardRecord, ...]:
        """Those that have rows, in order."""
        return tuple(record for record in self.manifest.shards if record.rows)

    @property
    def name(self) -> str:
        """The dataset's own name."""
        return self.manifest.dataset.name

    @property
    def sources(self) -> tuple[SourceName, ...]:
        """Every dataset in it; more than one after `merge`."""
        return self.manifest.sources

    @property
    def labels(self) -> Mapping[str, Any]:
        """The resolved label configuration: bins, chunk size, teachers by name."""
        return self.manifest.labels

    @property
    def num_bins(self) -> int:
        """Action bins."""
        return int(self.labels["action_bins"])

    @property
    def layout(self) -> schema.RecordLayout:
        """Which columns there are, as the manifest promises."""
        return self.manifest.layout

    def batches(
        self, columns: Sequence[str] | None = None, batch_rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """All rows in order, at most `batch_rows` at a time."""
        for shard in self.shards:
            with self.open_shard(shard) as file:
                yield from file.iter_batches(batch_size=batch_rows, columns=columns)

    def open_shard(self, shard: ShardRecord) -> pq.ParquetFile:
        """A shard as a context manager. Raises `UserError` where it has not the rows, bytes and columns promised."""
        file, path = readable(self.storage, shard.name), f"{self.storage.root}/{shard.name}"
        found = file.metadata.num_rows, self.storage.size(shard.name)
        if found != (shard.rows, shard.num_bytes):
            file.close()
            raise UserError(
                f"{path} has {found[0]} rows in {found[1]} bytes, the manifest says {shard.rows} in "
                f"{shard.num_bytes}: shard and manifest are of different runs."
            )
        columns, promised = file.schema_arrow, self.layout.arrow_schema()
        if not self.promises(columns):
            file.close()
            raise UserError(
                f"{path} has other columns than the manifest says ({', '.join(columns.names)} instead of "
                f"{', '.join(promised.names)}, or other types, codes, arms): shard and manifest are of different runs."
            )
        return file

    def promises(self, columns: pa.Schema) -> bool:
        """Whether a shard of these columns has the layout of the manifest, what columns do not tell included."""
        if not columns.equals(self.layout.arrow_schema()):
            return False
        if self.manifest.schema_version in schema.WITHOUT_LAYOUT:
            return True
        try:
            return schema.RecordLayout.from_arrow_schema(columns) == self.layout
        except ValueError:
            return False

    def rejects(self) -> list[RejectLine]:
        """Which episodes are missing. Raises `UserError` where the file does not fit the manifest."""
        return read_rejects(self.storage, self.manifest.shards)

    def episodes(self) -> Iterator[EpisodeRows]:
        """Every episode in order, known from the manifest; rows are read when asked for."""
        for shard in self.shards:
            start = 0
            for index, num_rows in shard.episodes:
                yield EpisodeRows(self, shard, index, start, num_rows)
                start += num_rows

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """All rows in order, as plain Python values."""
        for batch in self.batches(columns):
            yield from batch.to_pylist()


@dataclass(frozen=True)
class EpisodeRows:
    """One episode of an output: where its rows are."""

    output: Output
    shard: ShardRecord
    index: int
    """The episode's number in its dataset."""
    start: int
    """Its first row in the shard."""
    num_rows: int

    @property
    def dataset(self) -> str:
        """The dataset it comes from; a merged output has several."""
        return next(self.batches([schema.DATASET], 1)).column(0)[0].as_py()

    def batches(
        self, columns: Sequence[str] | None = None, batch_rows: int = BATCH_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Its rows in order, at most `batch_rows` at a time; no other row group of the file is read."""
        with self.output.open_shard(self.shard) as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            ends = list(itertools.accumulate(sizes))
            end = self.start + self.num_rows
            groups = [i for i, e in enumerate(ends) if e > self.start and e - sizes[i] < end]
            first = ends[groups[0]] - sizes[groups[0]] if groups else 0
            for batch in file.iter_batches(batch_rows, row_groups=groups, columns=columns):
                low, high = max(self.start - first, 0), min(end - first, batch.num_rows)
                first += batch.num_rows
                if low < high:
                    yield batch.slice(low, high - low)


def statistics_entries(storage: Storage) -> dict[str, Any]:
    """The content of `dataset_statistics.json`, {dataset key: entry}. Raises `UserError` where it is no JSON."""
    where = f"{storage.root}/{schema.STATISTICS_FILE}"
    return parse_json(dict[str, Any], storage.read_bytes(schema.STATISTICS_FILE), where)


def readable(storage: Storage, name: str) -> pq.ParquetFile:
    """A Parquet file as a context manager, or an error that says what to do."""
    path = f"{storage.root}/{name}"
    try:
        return open_parquet(storage, name)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing although the manifest lists it; the folder is incomplete. Copy it again, "
            "or run `molmoact preprocess ... --resume` to rebuild what is missing."
        ) from error
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path} is not a readable Parquet file ({first_line(error)}); it is damaged. Copy it again, or delete "
            "it and run `molmoact preprocess ... --resume`."
        ) from error


def open_parquet(storage: Storage, name: str) -> pq.ParquetFile:
    """A shard, local or remote; use it as a context manager."""
    if not storage.is_remote:
        return pq.ParquetFile(Path(storage.root) / name)
    return pq.ParquetFile(storage.open_bytes(name))
