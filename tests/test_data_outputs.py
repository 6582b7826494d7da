"""An output whose parts do not belong together is refused by everyone who reads labels from it, in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.output import Output
from molmoact_data.outputs.rejects import RejectLine, read_rejects, to_jsonl
from molmoact_data.outputs.shards import Reject, ShardRecord

Change = Callable[[dict[str, Any]], Any]


def edited(out: Path, change: Change, name: str = schema.MANIFEST_FILE) -> Path:
    content = json.loads((out / name).read_text())
    change(content)
    (out / name).write_text(json.dumps(content))
    return out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["fingerprint"]["labels"].update(action_bins=128), "config_hash"),
        (lambda m: m["fingerprint"]["labels"].update(line_length=4), "config_hash"),
        (lambda m: m.update(fingerprint={"labels": float("nan")}), "config_hash"),
        (lambda m: m.update(config_hash="0" * 64), "config_hash"),
        (lambda m: m.update(statistics_sha256="0" * 64), "does not match"),
        (lambda m: m["cameras"].pop("wrist"), "not those of the layout"),
        (lambda m: m["shards"][0]["quality"].update(calls=-1), "calls is a sum of counts"),
    ],
)
def test_settings_that_are_not_those_of_the_shards(
    make_output: Callable[..., Path], change: Change, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Output.open(edited(make_output(), change))


def test_statistics_that_are_gone_or_others(make_output: Callable[..., Path]) -> None:
    out = edited(
        make_output(),
        lambda s: s["dots"]["action"]["q99"].__setitem__(0, 9.0),
        schema.STATISTICS_FILE,
    )
    with pytest.raises(UserError, match="does not match"):
        Output.open(out)
    (out / schema.STATISTICS_FILE).unlink()
    with pytest.raises(UserError, match="is missing"):
        Output.open(out)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["layout"].update(num_arms=2),
        lambda m: m["layout"].update(codebook_size=200),
        lambda m: m["layout"].update(action_chunk_size=4),
        lambda m: m["shards"][0].update(num_bytes=1),
    ],
)
def test_a_shard_that_is_not_the_one_of_the_manifest(
    make_output: Callable[..., Path], change: Change
) -> None:
    with pytest.raises(UserError, match="different runs"):
        next(Output.open(edited(make_output(), change)).rows())


def test_rejects_come_back_and_others_are_refused(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    rejects = [
        RejectLine("cups", 3, "video_missing", "no x.mp4"),
        RejectLine("b", 4, "x", "\u2028"),
    ]
    records = [
        ShardRecord(
            "s", 0, 0, None, (), tuple(Reject(r.episode_index, r.reason, "") for r in rejects)
        )
    ]
    storage.write_bytes(schema.REJECTS_FILE, to_jsonl(rejects))
    assert read_rejects(storage, records) == rejects
    for content in (b"", b"\xff\n", b"[]\n", to_jsonl(rejects[:1]), to_jsonl(rejects) * 2):
        storage.write_bytes(schema.REJECTS_FILE, content)
        with pytest.raises(UserError, match=schema.REJECTS_FILE):
            read_rejects(storage, records)
    (tmp_path / schema.REJECTS_FILE).unlink()
    with pytest.raises(UserError, match="is missing"):
        read_rejects(storage, records)
