"""`molmoact validate`: everything the schema promises, looked up in the files themselves."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.manifest import EditedManifest, OtherVersion
from molmoact_data.outputs.output import BATCH_ROWS, Output, open_parquet
from molmoact_data.outputs.shards import ShardRecord
from molmoact_data.sources.images import NotEightBitError, as_rgb
from molmoact_data.validate.files import check_files, check_shard_bytes
from molmoact_data.validate.findings import Finding, Problem, Report
from molmoact_data.validate.rows import Expectation, RowChecker


@dataclass(frozen=True)
class CheckedSample:
    """What a training sample made of one row is like."""

    loss: int
    """Tokens and steps that carry loss, the fewest of all samples that the row allows."""
    problem: str = ""
    """Why what was written cannot be read back; empty = it can."""


SampleCheck = Callable[[Mapping[str, Any], Sequence[Sequence[float]]], CheckedSample | None]
"""A row as plain Python values, with the recorded actions from it on that lie in its chunk; None = no sample can be
made of it (no usable trace, for example), which training counts and leaves out."""


def validate(root: str, *, samples: Callable[[Output], SampleCheck] | None = None) -> Report:
    """Check one output. What is wrong with the data is in the report; nothing is raised for it.

    Raises `UserError` where there is neither a manifest nor a shard: that is no output that could be wrong.
    `samples` makes the check of a checkpoint's processor for this output.
    """
    report = Report(root)
    try:
        output = Output.read(root)
    except UserError as error:
        if not is_begun(Storage(root)):
            raise
        report.extend([_unreadable(error)])
        return report
    report.extend(check_files(output))
    expected = expectation(output)
    check = None if samples is None else samples(output)
    keys: Counter[tuple[str, str, int]] = Counter()
    for shard in output.shards:
        damaged = list(check_shard_bytes(output.storage, shard))
        report.extend(damaged)
        if not any(p.finding is Finding.SHARD_MISSING for p in damaged):
            _check_shard(output, shard, expected, keys, report, check)
    report.extend(
        Problem(Finding.KEY_REPEATS, root, f"episode {key} is in {count} places")
        for key, count in keys.items()
        if count > 1
    )
    return report


def is_begun(storage: Storage) -> bool:
    """Whether anything of an output is there: a manifest, statistics or a shard."""
    names = (schema.MANIFEST_FILE, schema.STATISTICS_FILE)
    return any(map(storage.exists, names)) or bool(storage.list(schema.DATA_DIR))


def _unreadable(error: UserError) -> Problem:
    message = str(error)
    if isinstance(error, OtherVersion):
        return Problem(Finding.SCHEMA_VERSION_DIFFERS, schema.MANIFEST_FILE, message)
    if isinstance(error, EditedManifest):
        return Problem(Finding.CONFIG_HASH_DIFFERS, schema.MANIFEST_FILE, message)
    is_statistics = schema.STATISTICS_FILE in message or "statistics" in message
    finding = Finding.STATISTICS_UNREADABLE if is_statistics else Finding.MANIFEST_UNREADABLE
    where = schema.STATISTICS_FILE if is_statistics else schema.MANIFEST_FILE
    return Problem(finding, where, message)


def expectation(output: Output) -> Expectation:
    """What the manifest says about every row."""
    return Expectation(
        sources=frozenset((s.name, s.revision) for s in output.sources),
        codebook_size=output.layout.codebook_size,
        max_trace_points=int(output.labels["line_length"]),
        filtered_traces=bool(output.labels["filter_traces"]),
        num_bins=output.num_bins,
        statistics=output.statistics,
    )


def _check_shard(
    output: Output,
    shard: ShardRecord,
    expected: Expectation,
    keys: Counter[tuple[str, str, int]],
    report: Report,
    check: SampleCheck | None,
) -> None:
    try:
        with open_parquet(output.storage, shard.name) as file:
            problems = list(_metadata(output, shard, file))
            report.extend(problems)
            if any(p.finding is Finding.SCHEMA_DIFFERS for p in problems):
                return
            _check_rows(shard, file, expected, keys, report)
            following = _Following(file) if check is not None else None
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                _check_batch(shard.name, batch, report, check, following)
    except (pa.ArrowException, OSError) as error:
        report.extend([Problem(Finding.SHARD_UNREADABLE, shard.name, str(error))])


def _metadata(output: Output, shard: ShardRecord, file: pq.ParquetFile) -> Iterator[Problem]:
    stored = file.schema_arrow
    expected = {
        schema.META_SCHEMA_VERSION: output.manifest.schema_version,
        schema.META_CONFIG_HASH: output.manifest.config_hash,
        schema.META_STATISTICS_HASH: output.manifest.statistics_sha256,
    }
    metadata = stored.metadata or {}
    for key, value in expected.items():
        if metadata.get(key) != value.encode():
            detail = f"{key.decode()} is not that of the manifest"
            yield Problem(Finding.SHARD_METADATA_DIFFERS, shard.name, detail)
    if file.metadata.num_rows != shard.rows:
        detail = f"{file.metadata.num_rows} rows, the manifest says {shard.rows}"
        yield Problem(Finding.ROW_COUNT_DIFFERS, shard.name, detail)
    yield from _schema(output, shard.name, stored)


def _schema(output: Output, where: str, stored: pa.Schema) -> Iterator[Problem]:
    promised = output.layout.arrow_schema()
    missing = [name for name in promised.names if name not in stored.names]
    extra = [name for name in stored.names if name not in promised.names]
    types = [
        f"{name} is {stored.field(name).type}, not {promised.field(name).type}"
        for name in promised.names
        if name in stored.names and stored.field(name).type != promised.field(name).type
    ]
    if not (missing or extra or types or output.promises(stored)):
        types = [f"the file's own {schema.META_LAYOUT.decode()} is not the layout of the manifest"]
    words = [f"missing: {', '.join(missing)}"] if missing else []
    words += [f"unknown: {', '.join(extra)}"] if extra else []
    if words or types:
        yield Problem(Finding.SCHEMA_DIFFERS, where, "; ".join(words + types))


def _check_rows(
    shard: ShardRecord,
    file: pq.ParquetFile,
    expected: Expectation,
    keys: Counter[tuple[str, str, int]],
    report: Report,
) -> None:
    light = [n for n in file.schema_arrow.names if not n.startswith(schema.IMAGE_PREFIX)]
    table = file.read(columns=light)
    report.rows += table.num_rows
    report.extend(RowChecker(table, shard.name, expected).problems())
    named = (schema.DATASET, schema.REVISION, schema.EPISODE_INDEX)
    counts = Counter(zip(*(table[name].to_pylist() for name in named), strict=True))
    keys.update(counts.keys())
    found = sorted((episode, rows) for (_, _, episode), rows in counts.items())
    if found != sorted(shard.episodes):
        detail = f"the rows are of {found[:3]}, the manifest says {sorted(shard.episodes)[:3]}"
        report.extend([Problem(Finding.EPISODES_DIFFER, shard.name, detail)])


class _Following:
    """The actions of one shard, handed out row by row in order."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._actions: list[list[float]] = []
        if schema.ACTION in file.schema_arrow.names:
            self._actions = file.read(columns=[schema.ACTION])[schema.ACTION].to_pylist()
        self._row = 0

    def next(self, row: Mapping[str, Any]) -> list[list[float]]:
        """Of the next row: those of its chunk that lie within the episode."""
        start, self._row = self._row, self._row + 1
        return self._actions[start : start + (row.get(schema.NUM_VALID_ACTIONS) or 0)]


def _check_batch(
    where: str,
    batch: pa.RecordBatch,
    report: Report,
    check: SampleCheck | None,
    following: _Following | None,
) -> None:
    cameras = [n for n in batch.schema.names if n.startswith(schema.IMAGE_PREFIX)]
    sizes: dict[tuple[str, int], tuple[int, int]] = {}
    for row in batch.to_pylist():
        place = f"{where}: episode {row[schema.EPISODE_INDEX]}, frame {row[schema.FRAME_INDEX]}"
        problems = [p for name in cameras for p in _image(row, name, place, sizes)]
        report.images += len(cameras)
        report.extend(problems)
        actions = [] if following is None else following.next(row)
        if check is not None and not problems:
            _check_sample(check(row, actions), place, report)


def _image(
    row: Mapping[str, Any], name: str, place: str, sizes: dict[tuple[str, int], tuple[int, int]]
) -> Iterator[Problem]:
    encoded = (row[name] or {}).get("bytes")
    if not encoded:
        yield Problem(Finding.IMAGE_MISSING, place, f"{name} has no bytes")
        return
    try:
        size = _decoded_size(encoded)
    except (NotEightBitError, OSError) as error:
        yield Problem(Finding.IMAGE_UNDECODABLE, place, f"{name}: {error}")
        return
    first = sizes.setdefault((name, row[schema.EPISODE_INDEX]), size)
    if size != first:
        detail = f"{name} is {size[0]}x{size[1]}, earlier frames are {first[0]}x{first[1]}"
        yield Problem(Finding.IMAGE_SIZE_CHANGES, place, detail)


def _decoded_size(encoded: bytes) -> tuple[int, int]:
    """Width and height of an image that decodes to its last row. Raises `OSError`, `NotEightBitError`."""
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        return as_rgb(image).size


def _check_sample(sample: CheckedSample | None, place: str, report: Report) -> None:
    if sample is None:
        return
    report.samples += 1
    if sample.loss == 0:
        detail = "no token of this row's training sample carries loss"
        report.extend([Problem(Finding.LOSS_MASK_EMPTY, place, detail)])
    if sample.problem:
        report.extend([Problem(Finding.SAMPLE_UNREADABLE, place, sample.problem)])
