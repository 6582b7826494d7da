"""What a run remembers on disk so that it can be resumed: the plan, and one record per finished shard.

Lives in `OUT/_state` while the run is under way. The manifest, written last, holds the same records,
so the folder is removed when the run is complete.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from molmoact_data import schema
from molmoact_data.config import content_hash
from molmoact_data.errors import UserError
from molmoact_data.files.lock import locked
from molmoact_data.files.storage import Storage
from molmoact_data.files.typed import parse_json
from molmoact_data.outputs.manifest import Manifest, OtherVersion, read_manifest
from molmoact_data.outputs.shards import ShardRecord, ShardSpec, file_sha256

logger = logging.getLogger(__name__)

STATE_DIR = "_state"
PLAN_FILE = f"{STATE_DIR}/plan.json"
RECORDS_DIR = f"{STATE_DIR}/records"
PROGRESS_DIR = f"{STATE_DIR}/progress"
POINTS_DIR = f"{STATE_DIR}/points"

OURS = (
    schema.DATA_DIR,
    schema.STATISTICS_FILE,
    schema.MANIFEST_FILE,
    schema.REJECTS_FILE,
    schema.REPORT_FILE,
    STATE_DIR,
)
_HASHING_THREADS = 8
_SHARD_NAME = re.compile(rf"{schema.DATA_DIR}/episodes--?\d+--?\d+-[0-9a-f]+\.parquet")


@contextmanager
def claimed_output(
    output: Storage, *, resume: bool, overwrite: bool, inputs: Sequence[str] = ()
) -> Iterator[None]:
    """Hold the output folder while inside, or say who holds it, or which flag resolves it.

    Deletes only what a run writes, and only where a run has been: never an input, nor a folder whose
    `data/` or `manifest.json` belong to something else. What killed runs left half written goes, now and at the
    end: workers may have died while an engine went on without them.
    """
    check_free(output, resume=resume, overwrite=overwrite, inputs=inputs)
    with locked(None if output.is_remote else Path(output.root)):
        _claim(output, resume=resume, overwrite=overwrite)
        output.remove_temporary_files()
        yield
        output.remove_temporary_files()


def check_free(
    output: Storage, *, resume: bool, overwrite: bool, inputs: Sequence[str] = ()
) -> bool:
    """Whether something is there already; raises `UserError` where the run may not write. Changes nothing."""
    refuse_inputs(output, inputs)
    if not output.is_remote and Path(output.root).is_file():
        raise UserError(f"{output.root} is a file. Choose another --output-path.")
    taken = bool(output.list())
    if taken and not (resume or overwrite):
        raise UserError(
            f"{output.root} is not empty. Add --resume to continue the run that is there, "
            "--overwrite to replace it, or choose another --output-path."
        )
    return taken


def _claim(output: Storage, *, resume: bool, overwrite: bool) -> None:
    taken = check_free(output, resume=resume, overwrite=overwrite)
    if taken:
        _refuse_foreign(output)
    if taken and overwrite:
        _delete_run(output)


def refuse_inputs(output: Storage, inputs: Sequence[str]) -> None:
    """Raises `UserError` where the output folder is one of the folders that are read."""
    if output.is_remote:
        clash = [path for path in inputs if path.rstrip("/") == output.root.rstrip("/")]
    else:
        local = [path for path in inputs if "://" not in path]
        clash = [path for path in local if Path(path).resolve() == Path(output.root).resolve()]
    if clash:
        raise UserError(f"--output-path {output.root} is what is read. Choose another folder.")


def _refuse_foreign(output: Storage) -> None:
    """A run that was killed before its plan leaves statistics alone; all else comes with its plan."""
    names = {name.split("/")[0] for name in output.list()}
    made_here = STATE_DIR in names or _is_manifest(output)
    foreign = sorted(names.intersection(OURS) - {schema.STATISTICS_FILE})
    if foreign and not made_here:
        raise UserError(
            f"{output.root} holds {', '.join(foreign)}, but not of a run of molmoact; it would be lost. "
            "Choose another --output-path."
        )


def _is_manifest(output: Storage) -> bool:
    """Whether a run finished here, be it of another version."""
    if not output.exists(schema.MANIFEST_FILE):
        return False
    try:
        read_manifest(output)
    except OtherVersion:
        return True
    except UserError:
        return False
    return True


def _delete_run(output: Storage) -> None:
    """The marks of a run go last, so that a killed deletion can be repeated."""
    for name in output.list(schema.DATA_DIR):
        if _SHARD_NAME.fullmatch(name):
            output.delete(name)
    output.delete_empty(schema.DATA_DIR)
    for name in OURS:
        if name != schema.DATA_DIR:
            output.delete(name)


@dataclass(frozen=True)
class Plan:
    """What a run is about to make, and of what: written before any work, held against when it is resumed."""

    fingerprint: dict[str, Any]
    """Everything that the content depends on."""
    shards: list[str]
    files: dict[str, list[int]] = field(default_factory=dict)
    """Bytes and time of change [ns] of the source's files, where the source is a folder of this machine."""


def remember_plan(
    output: Storage,
    fingerprint: Mapping[str, Any],
    specs: Sequence[ShardSpec],
    files: Mapping[str, list[int]] | None = None,
) -> None:
    """Write the plan before any work, or hold it against the plan of the run being resumed."""
    plan = Plan(dict(fingerprint), [spec.name for spec in specs], dict(files or {}))
    earlier = _earlier_plan(output)
    if earlier is None:
        output.write_bytes(PLAN_FILE, _json(asdict(plan)))
        return
    before, now = _comparable(earlier), _comparable(plan)
    if before != now:
        changed = ", ".join(differences(before, now)) or "the list of shards"
        raise UserError(
            f"{output.root} was made with another configuration; different: {changed}. "
            "Resume with the same settings, or start again with --overwrite."
        )
    _check_files(output, earlier.files, plan.files)


def _comparable(plan: Plan) -> dict[str, Any]:
    return {"fingerprint": plan.fingerprint, "shards": plan.shards}


def _check_files(
    output: Storage, before: Mapping[str, list[int]], now: Mapping[str, list[int]]
) -> None:
    """Shards of the old content and of the new must not stand side by side."""
    other = sorted(name for name in before if before[name][0] != now.get(name, [None])[0])
    if before and other:
        raise UserError(
            f"{other[0]} is not what it was when the run in {output.root} began (another size, or gone; "
            f"{len(other)} such files): its shards would come from two datasets. Put the files back, or start "
            "again with --overwrite."
        )
    touched = [name for name in before if before[name] != now[name]]
    if touched:
        logger.warning(
            "%s was written again since the run in %s began, with the same size (%d such files); if its content "
            "is another, start again with --overwrite",
            touched[0], output.root, len(touched),
        )  # fmt: skip


def source_files(dataset_path: str) -> dict[str, list[int]]:
    """Bytes and time of change [ns] of every file of a local dataset; empty for a dataset elsewhere."""
    root = Path(dataset_path)
    if "://" in dataset_path or not root.is_dir():
        return {}
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            status = path.stat()
            found[path.relative_to(root).as_posix()] = [status.st_size, status.st_mtime_ns]
    return found


def _earlier_plan(output: Storage) -> Plan | None:
    if output.exists(PLAN_FILE):
        advice = "Start again with --overwrite."
        return parse_json(Plan, output.read_bytes(PLAN_FILE), f"{output.root}/{PLAN_FILE}", advice)
    if output.exists(schema.MANIFEST_FILE):
        manifest = _manifest(output)
        return Plan(dict(manifest.fingerprint), [record.name for record in manifest.shards])
    return None


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Dotted names of the leaves that differ between two pieces of plain data."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [d for k in keys for d in differences(before.get(k), after.get(k), f"{path}.{k}")]
    return [] if before == after else [path.strip(".") or "everything"]


@dataclass(frozen=True)
class _Sealed:
    """A record as it lies on disk, with its own hash: its numbers go into the manifest unseen."""

    record: ShardRecord
    hash: str


def write_record(output: Storage, record: ShardRecord) -> None:
    """Say that a shard is complete; written after the shard itself."""
    plain = record.to_json()
    sealed = {"record": plain, "hash": content_hash(plain)}
    output.write_bytes(_record_name(record.name), _json(sealed))


def finished_records(
    output: Storage, specs: Sequence[ShardSpec], *, hashed: bool = True
) -> dict[str, ShardRecord]:
    """Records of the planned shards whose file is there with the size and, if `hashed`, the sha256 of its record.

    A shard that is not what was written is as good as missing. Files of an object store are not read for it.
    """
    candidates = _records_by_shard(output, specs)
    sizes = output.sizes(schema.DATA_DIR)
    hashed = hashed and not output.is_remote
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        verdicts = pool.map(
            lambda records: _first_whole(output, records, sizes, hashed=hashed), candidates.values()
        )
        found = dict(zip(candidates, verdicts, strict=True))
    damaged = [name for name, record in found.items() if record is None]
    if damaged:
        logger.warning(
            "%s is missing or not what was written (%d such shards): made again",
            damaged[0],
            len(damaged),
        )
    return {name: record for name, record in found.items() if record is not None}


def drop_unfinished(output: Storage, missing: Sequence[ShardSpec]) -> None:
    """Delete what there is of shards that will be made again, so that nobody takes it for the new one."""
    there = {*output.list(schema.DATA_DIR), *output.list(RECORDS_DIR)}
    for spec in missing:
        for name in {spec.name, _record_name(spec.name)} & there:
            output.delete(name)


def _records_by_shard(output: Storage, specs: Sequence[ShardSpec]) -> dict[str, list[ShardRecord]]:
    """What is said of each planned shard: beside it, which is newer, and in the manifest."""
    names = set(output.list(RECORDS_DIR))
    beside = {
        s.name: _record_beside(output, s.name) for s in specs if _record_name(s.name) in names
    }
    in_manifest = {record.name: record for record in _manifest_records(output)}
    both = {s.name: (beside.get(s.name), in_manifest.get(s.name)) for s in specs}
    return {name: [r for r in records if r] for name, records in both.items() if any(records)}


def _first_whole(
    output: Storage, records: Sequence[ShardRecord], sizes: Mapping[str, int], *, hashed: bool
) -> ShardRecord | None:
    """The first of a shard's records that its file agrees with."""
    for record in records:
        if not record.rows:
            return record
        if sizes.get(record.name) == record.num_bytes and (
            not hashed or file_sha256(Path(output.root) / record.name) == record.sha256
        ):
            return record
    return None


def _record_beside(output: Storage, name: str) -> ShardRecord | None:
    """The record that was written after a shard; a damaged one is none."""
    where = _record_name(name)
    try:
        sealed = parse_json(_Sealed, output.read_bytes(where), f"{output.root}/{where}")
    except (UserError, OSError) as error:
        logger.warning("%s Its shard is made again.", error)
        return None
    if content_hash(sealed.record.to_json()) != sealed.hash:
        logger.warning(
            "%s/%s is not what was written. Its shard is made again.", output.root, where
        )
        return None
    return sealed.record


def is_complete(output: Storage) -> bool:
    """True where a run has written everything and cleaned up behind itself."""
    last = (schema.MANIFEST_FILE, schema.REJECTS_FILE, schema.REPORT_FILE)
    return all(map(output.exists, last)) and not output.list(STATE_DIR)


def _manifest(output: Storage) -> Manifest:
    try:
        return read_manifest(output)
    except UserError as error:
        raise UserError(f"{error} Start again with --overwrite.") from error


def _manifest_records(output: Storage) -> Sequence[ShardRecord]:
    return _manifest(output).shards if output.exists(schema.MANIFEST_FILE) else ()


def forget(output: Storage) -> None:
    """Remove the state of a run whose manifest is written."""
    output.delete(STATE_DIR)


def _record_name(shard_name: str) -> str:
    return f"{RECORDS_DIR}/{Path(shard_name).stem}.json"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
