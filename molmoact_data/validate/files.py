"""The folder held to its manifest: hashes, counts, and what should not be there."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.folders import TEMPORARY_MARK
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.manifest import Manifest
from molmoact_data.outputs.output import Output
from molmoact_data.outputs.shards import ShardRecord, file_sha256
from molmoact_data.validate.findings import Finding, Problem

REMOTE_PIECE = 1 << 20


def check_files(output: Output) -> Iterator[Problem]:
    """Everything that can be said without reading a row."""
    yield from _manifest(output.manifest)
    yield from _statistics(output)
    yield from _rejects(output)
    yield from _strangers(output)


def _manifest(manifest: Manifest) -> Iterator[Problem]:
    where = schema.MANIFEST_FILE
    version = manifest.schema_version
    if version not in schema.READABLE_VERSIONS:
        detail = (
            f"schema version {version}, this program reads {', '.join(schema.READABLE_VERSIONS)}"
        )
        yield Problem(Finding.SCHEMA_VERSION_DIFFERS, where, detail)
    whole = manifest.with_shards(manifest.shards).to_json()
    said = manifest.to_json()
    for part in ("counts", "quality", "rejects_by_reason"):
        for name in _different(said[part], whole[part]):
            detail = (
                f"{part}.{name} is {said[part].get(name)}, the shards add up to "
                f"{whole[part].get(name)}"
            )
            yield Problem(Finding.MANIFEST_COUNTS_DIFFER, where, detail)


def _different(said: Mapping[str, Any], counted: Mapping[str, Any]) -> list[str]:
    """Names whose values differ by more than the rounding of another machine; a measure of later versions may lack."""
    known = said.keys() | {name for name, value in counted.items() if value is not None}
    return sorted(name for name in known if not _same(said.get(name), counted.get(name)))


def _same(said: Any, counted: Any) -> bool:
    if isinstance(counted, Mapping) and isinstance(said, Mapping):
        return said.keys() == counted.keys() and all(_same(said[k], counted[k]) for k in counted)
    if isinstance(counted, float) and isinstance(said, float | int):
        return math.isclose(said, counted, rel_tol=1e-9, abs_tol=1e-12)
    return bool(said == counted)


def _statistics(output: Output) -> Iterator[Problem]:
    expected = output.manifest.statistics_sha256
    where = schema.STATISTICS_FILE
    if output.statistics is None:
        if output.labels["process_actions"]:
            detail = "actions were processed, but their statistics are missing"
            yield Problem(Finding.STATISTICS_MISSING, where, detail)
    elif output.statistics.sha256() != expected:
        detail = f"sha256 {output.statistics.sha256()[:12]}, the manifest says {expected[:12]}"
        yield Problem(Finding.STATISTICS_HASH_DIFFERS, where, detail)


def _rejects(output: Output) -> Iterator[Problem]:
    try:
        output.rejects()
    except UserError as error:
        yield Problem(Finding.REJECTS_DIFFER, schema.REJECTS_FILE, str(error))


def _strangers(output: Output) -> Iterator[Problem]:
    """Files that a reader of `data/*.parquet` would take for rows of this dataset."""
    planned = {shard.name for shard in output.shards}
    for name in output.storage.list(schema.DATA_DIR):
        if name not in planned:
            detail = "this file is in no shard of the manifest"
            yield Problem(Finding.SHARD_UNLISTED, name, detail)
    for name in temporary_files(output.storage):
        yield Problem(Finding.TEMPORARY_FILE_LEFT, name, "a killed writer left this")


def temporary_files(storage: Storage) -> list[str]:
    """What a killed writer leaves in a local folder; object stores have no such thing."""
    if storage.is_remote:
        return []
    from pathlib import Path

    found = Path(storage.root).rglob(f".*{TEMPORARY_MARK}*")
    return sorted(path.relative_to(storage.root).as_posix() for path in found)


def check_shard_bytes(storage: Storage, shard: ShardRecord) -> Iterator[Problem]:
    """Whether the file is there and is the one that was written."""
    if not storage.exists(shard.name):
        yield Problem(Finding.SHARD_MISSING, shard.name, "the manifest lists it")
    elif shard_sha256(storage, shard.name) != shard.sha256:
        yield Problem(Finding.SHARD_HASH_DIFFERS, shard.name, "the bytes are not those written")


def shard_sha256(storage: Storage, name: str) -> str:
    """sha256 of a shard, local or remote, in bounded pieces."""
    if not storage.is_remote:
        from pathlib import Path

        return file_sha256(Path(storage.root) / name)
    digest = hashlib.sha256()
    with storage.open_bytes(name) as file:
        while piece := file.read(REMOTE_PIECE):
            digest.update(piece)
    return digest.hexdigest()
