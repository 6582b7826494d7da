"""One change of a JSON value, a table or a file's bytes, drawn from a seeded generator.

Every change says which places it touched, so that a row that came out differently can be explained, or not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.5, 10**30, -(10**30), 1e308, math.nan, math.inf, 2**31, 2**63,
    "", " ", "x", "nan", "0", "1", "-1", "../../etc/passwd", "/etc/passwd", "\u2028", "a\0b", "{episode_index!r}",
    [], {}, [[]], [1], ["x"], [None], {"x": 1}, [10**30],
]  # fmt: skip
DEEP = "[" * 100_000

Path_ = tuple[str | int, ...]


def paths_of(value: Any, here: Path_ = ()) -> list[Path_]:
    """Every place in a JSON value, the whole included."""
    found = [here]
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in items:
        found += paths_of(child, (*here, key))
    return found


def change_json(value: Any, rng: Random) -> tuple[Any, Path_]:
    """The value with one place replaced, removed, doubled or renamed, and that place."""
    place = rng.choice(paths_of(value)[1:] or [()])
    if not place:
        return rng.choice(STRANGE), place
    value = json.loads(json.dumps(value))
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    last = place[-1]
    how = rng.choice(["replace", "replace", "replace", "remove", "rename", "double", "wrap"])
    if how == "replace":
        parent[last] = rng.choice(STRANGE)
    elif how == "remove":
        del parent[last]
    elif how == "wrap":
        parent[last] = rng.choice([[parent[last]], {"x": parent[last]}, str(parent[last])])
    elif isinstance(parent, list):
        parent.insert(last, parent[last])
    elif how == "rename":
        parent[f"{last}x"] = parent.pop(last)
    else:
        parent[last] = rng.choice([parent[k] for k in parent])
    return value, place


def change_field(value: dict[str, Any], rng: Random) -> tuple[Any, Path_]:
    """As `change_json`, but every field at the top is drawn as often as any other, however much is in it."""
    name = rng.choice(sorted(value))
    if rng.random() < 0.3 or not isinstance(value[name], dict | list):
        changed, place = change_json({name: value[name]}, rng)
        return {**{k: v for k, v in value.items() if k != name}, **changed}, place
    changed, place = change_json(value[name], rng)
    return {**value, name: changed}, (name, *place)


def change_bytes(path: Path, rng: Random) -> None:
    """Cut off, emptied, some bytes changed, something else, or gone."""
    content = bytearray(path.read_bytes())
    how = rng.choice(
        ["cut", "empty", "flip", "flip", "flip", "other", "gone", "deep", "grow", "folder"]
    )
    if how == "gone" or how == "folder":
        path.unlink()
        if how == "folder":
            path.mkdir()
        return
    if how == "cut":
        content = content[: rng.randrange(len(content) + 1)]
    elif how == "empty":
        content = bytearray()
    elif how == "flip":
        for _ in range(rng.choice([1, 1, 3, 20]) if content else 0):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif how == "other":
        content = bytearray(
            rng.choice([b"version https://git-lfs.github.com/spec/v1\n", b"PAR1", b"\xff\xfe{}"])
        )
    elif how == "deep":
        content = bytearray(DEEP.encode())
    else:
        content += bytes(rng.randrange(256) for _ in range(rng.choice([1, 100])))
    path.write_bytes(bytes(content))


Change = Callable[[pa.Table, str, Random], pa.Table]


def change_table(path: Path, rng: Random) -> set[str]:
    """One change of a Parquet table, written back; the columns it touched (all of them where rows moved)."""
    table = pq.read_table(path)
    name = rng.choice(table.column_names)
    change = rng.choice(list(COLUMN_CHANGES) + list(ROW_CHANGES))
    pq.write_table(change(table, name, rng), path)
    return set(table.column_names) if change in ROW_CHANGES else {name}


def _replaced(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _one_value(table: pa.Table, name: str, rng: Random) -> pa.Table:
    values = table[name].to_pylist()
    row = rng.randrange(len(values))
    strange = rng.choice([None, math.nan, math.inf, -1, 0, 1, 7, 2**31, 1e30, "nan", "x", True])
    old = values[row]
    values[row] = [strange, *old[1:]] if isinstance(old, list) and rng.random() < 0.7 else strange
    try:
        return _replaced(table, name, pa.array(values, table.schema.field(name).type))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return _replaced(table, name, pa.array([None] * len(values), table.schema.field(name).type))


def _other_type(table: pa.Table, name: str, rng: Random) -> pa.Table:
    values = [str(v) for v in table[name].to_pylist()]
    kinds: list[Callable[[], pa.Array]] = [
        lambda: pa.array(values),
        lambda: pa.array(values, pa.string_view()),
        lambda: pa.array([v.encode() for v in values]),
        lambda: pa.array([{"x": 1}] * len(values)),
        lambda: pa.array([[1.0] * (i % 3) for i in range(len(values))]),
        lambda: pa.nulls(len(values)),
        lambda: pa.array([i % 2 == 0 for i in range(len(values))]),
        lambda: pc.cast(pa.array(range(len(values))), pa.decimal128(30, 2)),
        lambda: (
            pa.array([b"\xff\xfe" for _ in values]).view(pa.binary()).cast(pa.string(), safe=False)
        ),
        lambda: pa.array(range(len(values)), pa.float64()),
        lambda: pa.array([2**40 + i for i in range(len(values))], pa.timestamp("ns")),
        lambda: pa.array(values).dictionary_encode(),
    ]
    return _replaced(table, name, rng.choice(kinds)())


def _without(table: pa.Table, name: str, _: Random) -> pa.Table:
    return table.drop_columns([name]) if table.num_columns > 1 else table


def _renamed(table: pa.Table, name: str, _: Random) -> pa.Table:
    return table.rename_columns([f"{n}x" if n == name else n for n in table.column_names])


def _doubled(table: pa.Table, name: str, _: Random) -> pa.Table:
    return table.append_column(name, table[name])


def _scaled(table: pa.Table, name: str, rng: Random) -> pa.Table:
    kind = table.schema.field(name).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return table
    factor = rng.choice([1e3, 1e6, 1e9, 0.5, -1.0])
    return _replaced(table, name, pa.array([(v or 0) * factor for v in table[name].to_pylist()]))


def _shifted(table: pa.Table, name: str, rng: Random) -> pa.Table:
    kind = table.schema.field(name).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return table
    by = (
        rng.choice([0.1, 0.5, 1.0, 1.7e9]) if pa.types.is_floating(kind) else rng.choice([1, -1, 3])
    )
    row = rng.choice([None, rng.randrange(len(table))])
    values = [
        (v or 0) + (by if row in (None, i) else 0) for i, v in enumerate(table[name].to_pylist())
    ]
    return _replaced(
        table, name, pa.array(values, kind if pa.types.is_floating(kind) else pa.int64())
    )


def _row_lost(table: pa.Table, _: str, rng: Random) -> pa.Table:
    row = rng.randrange(len(table))
    return pa.concat_tables([table.slice(0, row), table.slice(row + 1)])


def _row_twice(table: pa.Table, _: str, rng: Random) -> pa.Table:
    row = rng.randrange(len(table))
    return pa.concat_tables([table.slice(0, row + 1), table.slice(row)])


def _rows_swapped(table: pa.Table, _: str, rng: Random) -> pa.Table:
    order = list(range(len(table)))
    i, j = rng.randrange(len(table)), rng.randrange(len(table))
    order[i], order[j] = order[j], order[i]
    return table.take(order)


def _no_rows(table: pa.Table, _: str, __: Random) -> pa.Table:
    return table.slice(0, 0)


COLUMN_CHANGES: tuple[Change, ...] = (
    _one_value, _one_value, _one_value, _other_type, _without, _renamed, _doubled, _scaled, _shifted, _shifted
)  # fmt: skip
ROW_CHANGES: tuple[Change, ...] = (_row_lost, _row_twice, _rows_swapped, _no_rows)
