"""What a run remembers on disk so that it can be resumed: the plan, and one record per finished shard.

Lives in `OUT/_state` while the run is under way. The manifest, written last, holds the same records,
so the folder is removed when the run is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.shards import ShardRecord, ShardSpec

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
_SHARD_NAME = re.compile(rf"{schema.DATA_DIR}/episodes--?\d+--?\d+-[0-9a-f]+\.parquet")


def claim_output(
    output: Storage, *, resume: bool, overwrite: bool, inputs: Sequence[str] = ()
) -> None:
    """Make the output folder ours, or say which flag resolves it.

    Deletes only what a run writes, and only where a run has been: never an input, nor a folder whose
    `data/` or `manifest.json` belong to something else.
    """
    refuse_inputs(output, inputs)
    if not output.is_remote and Path(output.root).is_file():
        raise UserError(f"{output.root} is a file. Choose another --output-path.")
    taken = bool(output.list())
    if taken and not (resume or overwrite):
        raise UserError(
            f"{output.root} is not empty. Add --resume to continue the run that is there, "
            "--overwrite to replace it, or choose another --output-path."
        )
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
    if not output.exists(schema.MANIFEST_FILE):
        return False
    try:
        manifest = json.loads(output.read_bytes(schema.MANIFEST_FILE))
    except ValueError:
        return False
    return isinstance(manifest, dict) and {"fingerprint", "shards"} <= set(manifest)


def _delete_run(output: Storage) -> None:
    """The marks of a run go last, so that a killed deletion can be repeated."""
    for name in output.list(schema.DATA_DIR):
        if _SHARD_NAME.fullmatch(name):
            output.delete(name)
    output.delete_empty(schema.DATA_DIR)
    for name in OURS:
        if name != schema.DATA_DIR:
            output.delete(name)


def remember_plan(output: Storage, fingerprint: dict[str, Any], specs: Sequence[ShardSpec]) -> None:
    """Write the plan before any work, or hold it against the plan of the run being resumed."""
    plan = {"fingerprint": fingerprint, "shards": [spec.name for spec in specs]}
    earlier = _earlier_plan(output)
    if earlier is None:
        output.write_bytes(PLAN_FILE, _json(plan))
    elif earlier != plan:
        changed = ", ".join(differences(earlier, plan)) or "the list of shards"
        raise UserError(
            f"{output.root} was made with another configuration; different: {changed}. "
            "Resume with the same settings, or start again with --overwrite."
        )


def _earlier_plan(output: Storage) -> dict[str, Any] | None:
    if output.exists(PLAN_FILE):
        return json.loads(output.read_bytes(PLAN_FILE))
    if output.exists(schema.MANIFEST_FILE):
        manifest = json.loads(output.read_bytes(schema.MANIFEST_FILE))
        names = [shard["name"] for shard in manifest["shards"]]
        return {"fingerprint": manifest["fingerprint"], "shards": names}
    return None


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Dotted names of the leaves that differ between two pieces of plain data."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [d for k in keys for d in differences(before.get(k), after.get(k), f"{path}.{k}")]
    return [] if before == after else [path.strip(".") or "everything"]


def write_record(output: Storage, record: ShardRecord) -> None:
    """Say that a shard is complete; written after the shard itself."""
    output.write_bytes(_record_name(record.name), _json(record.to_json()))


def finished_records(output: Storage, specs: Sequence[ShardSpec]) -> dict[str, ShardRecord]:
    """Records of the planned shards that are complete and whose file is still there."""
    known = _manifest_records(output)
    for spec in specs:
        if spec.name not in known and output.exists(_record_name(spec.name)):
            data = json.loads(output.read_bytes(_record_name(spec.name)))
            known[spec.name] = ShardRecord.from_json(data)
    planned = {spec.name for spec in specs}
    return {
        name: record
        for name, record in known.items()
        if name in planned and (record.rows == 0 or output.exists(name))
    }


def _manifest_records(output: Storage) -> dict[str, ShardRecord]:
    if not output.exists(schema.MANIFEST_FILE):
        return {}
    manifest = json.loads(output.read_bytes(schema.MANIFEST_FILE))
    return {shard["name"]: ShardRecord.from_json(shard) for shard in manifest["shards"]}


def forget(output: Storage) -> None:
    """Remove the state of a run whose manifest is written."""
    output.delete(STATE_DIR)


def _record_name(shard_name: str) -> str:
    return f"{RECORDS_DIR}/{Path(shard_name).stem}.json"


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
