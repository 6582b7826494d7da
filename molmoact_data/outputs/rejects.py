"""`rejects.jsonl`: one line per rejected episode, with its dataset, which the records of a merged output do not say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.storage import Storage
from molmoact_data.files.typed import parse_json
from molmoact_data.outputs.shards import ShardRecord


@dataclass(frozen=True)
class RejectLine:
    """Which episode of which dataset is missing, and why."""

    dataset: str
    episode_index: int
    reason: str
    detail: str


def rejects_of(dataset: str, records: Sequence[ShardRecord]) -> list[RejectLine]:
    """The rejects of one dataset, in episode order."""
    rejects = (reject for record in records for reject in record.rejects)
    ordered = sorted(rejects, key=lambda reject: reject.episode_index)
    return [RejectLine(dataset, r.episode_index, r.reason, r.detail) for r in ordered]


def to_jsonl(rejects: Sequence[RejectLine]) -> bytes:
    """The content of the file; empty where nothing was rejected."""
    return "".join(json.dumps(asdict(reject)) + "\n" for reject in rejects).encode()


def read_rejects(storage: Storage, records: Sequence[ShardRecord]) -> list[RejectLine]:
    """The file of an output whose shards are `records`. Raises `UserError` where it tells of other episodes."""
    where = f"{storage.root}/{schema.REJECTS_FILE}"
    try:
        lines = storage.read_bytes(schema.REJECTS_FILE).splitlines()
    except FileNotFoundError as error:
        raise UserError(
            f"{where} is missing, which every finished run writes: the folder is incomplete. Copy it again."
        ) from error
    found = [
        parse_json(RejectLine, line, f"{where}, line {number}")
        for number, line in enumerate(lines, 1)
    ]
    listed = Counter((reject.episode_index, reject.reason) for reject in found)
    expected = Counter((r.episode_index, r.reason) for record in records for r in record.rejects)
    if listed != expected:
        raise UserError(
            f"{where} lists {listed.total()} rejects, the shards have {expected.total()} or other ones: file and "
            "manifest are of different runs."
        )
    return found
