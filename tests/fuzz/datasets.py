"""Broken datasets: LeRobot v2.1 and v3.0, RLDS, and their mapping files."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml
from made_datasets import FRONT, make_dataset, make_v3_dataset, video_path
from made_rlds import make_rlds, shard_path
from made_tfrecord import encode_record
from numbered import number_of, write_numbered

from fuzz.outcomes import Kind, Rows, attempt, judge, read_rows
from fuzz.values import STRANGE, change_bytes, change_json, change_table
from molmoact_data.sources.channels import OWN_MAPPING
from molmoact_data.sources.rlds.tfrecord import masked_crc32c

LENGTHS = (6, 4, 5)
EVERYTHING = {"picture", "action", "state", "instruction", "timestamp"}
BY_COLUMN = {
    "action": {"action"},
    "observation.state": {"state"},
    "timestamp": {"timestamp"},
    "task_index": {"instruction"},
    "task": {"instruction"},
    "tasks": {"instruction"},
}


def v2(root: Path) -> Path:
    make_dataset(root, LENGTHS)
    for episode, length in enumerate(LENGTHS):
        first = sum(LENGTHS[:episode])
        write_numbered(video_path(root, episode), range(first, first + length))
    return root


def v3(root: Path) -> Path:
    make_v3_dataset(root, LENGTHS)
    write_numbered(root / f"videos/{FRONT}/chunk-000/file-000.mp4", range(10))
    write_numbered(root / f"videos/{FRONT}/chunk-000/file-001.mp4", range(10, 15))
    return root


def mapped_v2(root: Path) -> Path:
    """A v2.1 dataset with a mapping file."""
    v2(root)
    mapping = {"action": [{"feature": "action", "stop": 6}, {"feature": "action", "start": 6}]}
    return _with_mapping(root, mapping | {"state": [{"feature": "observation.state"}]})


def mapped_rlds(root: Path) -> Path:
    """An RLDS dataset with a mapping file."""
    make_rlds(root, LENGTHS)
    mapping = {
        "datasets": ["our_lab"], "fps": 10, "action": [{"feature": "action", "stop": 7}], "gripper": "1 = open",
        "instruction": ["language_instruction"], "cameras": ["observation/image"],
        "state": [{"feature": "observation/state"}],
    }  # fmt: skip
    return _with_mapping(root, mapping)


def _with_mapping(root: Path, mapping: dict[str, Any]) -> Path:
    (root / OWN_MAPPING).write_text(yaml.safe_dump(mapping))
    return root


def kind(
    make: Callable[[Path], Path], mutate: Callable[[Path, Random], tuple[str, set[str]]]
) -> Kind:
    """Copies of one sound dataset, each with one mutation, held against the untouched one."""

    @cache
    def sound(place: Path) -> tuple[Path, Rows]:
        root = make(place / f"sound-{make.__name__}")
        rows, rejected = read_rows(root, number_of)
        assert len(rows) == sum(LENGTHS)
        assert not rejected
        return root, rows

    def one(rng: Random, place: Path) -> tuple[str, str, str]:
        root, before = sound(place.parent)
        copy = place / "data"
        shutil.copytree(root, copy)
        done, may_change = mutate(copy, rng)

        def work() -> tuple[str, str]:
            after, rejected = read_rows(copy, number_of)
            return judge(before, after, rejected, may_change)

        return done, *attempt(work)

    return one


def mutate_lerobot(root: Path, rng: Random) -> tuple[str, set[str]]:
    """One change of a file of the dataset."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    metadata = [p for p in files if p.relative_to(root).parts[0] == "meta"]
    path = rng.choice(metadata if rng.random() < 0.6 else files)
    name = path.relative_to(root).as_posix()
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.85:
        return mutate_json_file(path, name, rng)
    if path.suffix == ".parquet" and rng.random() < 0.85:
        touched = change_table(path, rng)
        return f"{name}: columns {sorted(touched)[:3]}", _explained(name, touched)
    others = [p for p in files if p.suffix == path.suffix and p != path]
    if others and rng.random() < 0.3:
        other = rng.choice(others)
        shutil.copy(other, path)
        return f"{name} replaced by {other.relative_to(root)}", set()
    change_bytes(path, rng)
    # Neither H.264 nor Parquet's pages carry checksums: a flipped byte may be another value.
    damaged = {"picture"} if path.suffix == ".mp4" else EVERYTHING - {"picture"}
    gone = {"episode"} if name.startswith("meta/episodes") else set()
    return f"{name}: bytes", damaged | gone


def mutate_json_file(path: Path, name: str, rng: Random) -> tuple[str, set[str]]:
    """One change of JSON, or of one line of it."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = rng.randrange(len(lines))
    changed, place = change_json(json.loads(lines[number]), rng)
    if path.suffix == ".jsonl" and rng.random() < 0.2:
        lines.insert(number, json.dumps(changed))  # the untouched line stays
    else:
        lines[number] = json.dumps(changed)
    path.write_text("\n".join(lines) + "\n")
    return f"{name}: {'.'.join(map(str, place))} in {lines[number][:120]}", _of_json(name)


def _of_json(name: str) -> set[str]:
    return {"instruction"} if name in ("meta/tasks.jsonl", "meta/episodes.jsonl") else set()


def _explained(name: str, touched: set[str]) -> set[str]:
    """What a change of these columns may change in rows. Pictures belong to no column: they are never another."""
    changed = set().union(*(BY_COLUMN.get(column, set()) for column in touched))
    moved = len(touched) > 1  # rows came, went or changed places
    if name.startswith("meta/episodes"):
        return changed | ({"episode"} if moved or "episode_index" in touched else set())
    return changed - ({"action", "state", "timestamp"} if moved else set())


def mutate_rlds(root: Path, rng: Random) -> tuple[str, set[str]]:
    """One change of the metadata, of a file of records, or inside a record whose checksum is right again."""
    how = rng.choice(["features", "features", "info", "bytes", "record", "record"])
    if how in ("features", "info"):
        path = root / ("features.json" if how == "features" else "dataset_info.json")
        done, _ = mutate_json_file(path, path.name, rng)
        return done, {"state", "instruction"} if how == "features" else {"numbers"}
    path = shard_path(root, rng.randrange(2), 2)
    if how == "bytes":
        change_bytes(path, rng)
        return f"{path.name}: bytes", {"numbers"}
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    payload = bytearray(content[12 : 12 + length])
    for _ in range(rng.choice([1, 1, 5])):
        payload[rng.randrange(len(payload))] = rng.randrange(256)
    path.write_bytes(encode_record(bytes(payload)) + content[16 + length :])
    assert masked_crc32c(bytes(payload))
    return f"{path.name}: inside a record", EVERYTHING | {"length"}


def mutate_mapping(root: Path, rng: Random) -> tuple[str, set[str]]:
    """One change of the mapping file, as a value or as text."""
    path = root / OWN_MAPPING
    may_change = EVERYTHING - {"picture"}
    if rng.random() < 0.3:
        change_bytes(path, rng)
        return "mapping: bytes", may_change
    changed, place = change_json(yaml.safe_load(path.read_text()), rng)
    if rng.random() < 0.1:
        changed, place = rng.choice(STRANGE), ()
    path.write_text(yaml.safe_dump(changed))
    return f"mapping: {'.'.join(map(str, place))} in {json.dumps(changed)[:200]}", may_change


KINDS: dict[str, Kind] = {
    "LeRobot v2.1": kind(v2, mutate_lerobot),
    "LeRobot v3.0": kind(v3, mutate_lerobot),
    "RLDS": kind(lambda root: make_rlds(root, LENGTHS), mutate_rlds),
    "YAML, LeRobot": kind(mapped_v2, mutate_mapping),
    "YAML, RLDS": kind(mapped_rlds, mutate_mapping),
}
