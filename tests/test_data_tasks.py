"""An instruction is the text that is meant, or the episode is rejected: never the last line of a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_datasets import make_dataset, make_v3_dataset, rows_path

from molmoact_data.errors import EpisodeRejected, RejectReason
from molmoact_data.sources.base import EpisodeSource
from molmoact_data.sources.opening import open_source

LENGTHS = (6, 4, 5)
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
RED, WIPE = "put the red cube in the bowl", "wipe the table"
MISSING, AMBIGUOUS = RejectReason.INSTRUCTION_MISSING, RejectReason.INSTRUCTION_AMBIGUOUS


@pytest.fixture(params=["v2.1", "v3.0"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make = make_dataset if request.param == "v2.1" else make_v3_dataset
    return make(tmp_path / "data", LENGTHS)


def is_v3(root: Path) -> bool:
    return (root / "meta/tasks.parquet").exists()


def write_tasks(root: Path, lines: list[tuple[int, Any]]) -> None:
    if is_v3(root):
        texts = pa.array([text for _, text in lines], pa.string())
        pq.write_table(
            pa.table({"task_index": [n for n, _ in lines], "task": texts}),
            root / "meta/tasks.parquet",
        )
        return
    rows = [json.dumps({"task_index": n, "task": text}) + "\n" for n, text in lines]
    (root / "meta/tasks.jsonl").write_text("".join(rows))


def list_tasks(root: Path, tasks: list[list[str]]) -> None:
    """What the episodes' own metadata says."""
    if is_v3(root):
        table = pq.read_table(root / EPISODES).to_pylist()
        for row, texts in zip(table, tasks, strict=True):
            row["tasks"] = texts
        schema = pq.read_schema(root / EPISODES)
        at = schema.get_field_index("tasks")
        schema = schema.set(at, pa.field("tasks", pa.list_(pa.string())))
        pq.write_table(pa.Table.from_pylist(table, schema), root / EPISODES)
        return
    lines = [
        json.dumps({"episode_index": e, "tasks": texts, "length": n}) + "\n"
        for e, (texts, n) in enumerate(zip(tasks, LENGTHS, strict=True))
    ]
    (root / "meta/episodes.jsonl").write_text("".join(lines))


def instructions(source: EpisodeSource) -> list[str | RejectReason]:
    return [_instruction(source, ref) for ref in source.episodes]


def _instruction(source: EpisodeSource, ref: Any) -> str | RejectReason:
    try:
        texts = source.read_columns(ref).instructions
    except EpisodeRejected as rejected:
        return rejected.reason
    (text,) = set(texts)
    return text


def test_two_texts_of_one_number_are_told_apart_by_the_episodes_own(root: Path) -> None:
    for lines in ([(0, RED), (0, WIPE)], [(0, WIPE), (0, RED)], [(0, RED), (0, RED), (0, WIPE)]):
        write_tasks(root, lines)
        list_tasks(root, [[RED], [WIPE], [RED]])
        assert instructions(open_source(root)) == [RED, WIPE, RED]
    list_tasks(root, [[RED, WIPE], [], [WIPE]])
    assert instructions(open_source(root)) == [AMBIGUOUS, AMBIGUOUS, WIPE]


def test_the_same_text_twice_is_no_ambiguity(root: Path) -> None:
    write_tasks(root, [(0, RED), (0, RED), (0, RED.upper() + ".")])
    list_tasks(root, [[], [RED], [RED + "."]])
    assert instructions(open_source(root)) == [RED] * 3


def test_an_episode_whose_own_text_contradicts_its_rows_is_rejected(root: Path) -> None:
    write_tasks(root, [(0, RED), (1, WIPE)])
    list_tasks(root, [[RED], [WIPE], [RED, WIPE]])
    source = open_source(root)
    assert instructions(source) == [RED, AMBIGUOUS, RED]
    with pytest.raises(
        EpisodeRejected, match=f"task 0 is '{RED}' in meta/tasks, .* lists '{WIPE}'"
    ):
        source.read_columns(source.episodes[1])


def add_text_column(root: Path, name: str, texts: list[list[str | None]]) -> None:
    """A column of the rows; `texts` are repeated over the rows of each episode in turn."""
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        seen = {e: iter(texts[e] * LENGTHS[e]) for e in range(len(LENGTHS))}
        column = [next(seen[e]) for e in table["episode_index"].to_pylist()]
        pq.write_table(table.append_column(name, pa.array(column, pa.string())), path)


@pytest.mark.parametrize("name", ["task", "language_instruction", "instruction"])
def test_a_text_column_that_contradicts_the_table_is_rejected(root: Path, name: str) -> None:
    write_tasks(root, [(0, RED)])
    list_tasks(root, [[], [], []])
    add_text_column(root, name, [[WIPE], [RED.upper() + "."], [RED, None, "", WIPE]])
    source = open_source(root)
    assert instructions(source) == [AMBIGUOUS, RED, AMBIGUOUS]
    with pytest.raises(EpisodeRejected, match=f"'{name}' says '{WIPE}' .* is '{RED}' in meta/ta"):
        source.read_columns(source.episodes[0])


def test_the_episodes_own_list_decides_between_table_and_column(root: Path) -> None:
    write_tasks(root, [(0, RED)])
    list_tasks(root, [[RED], [RED, WIPE], [WIPE]])
    add_text_column(root, "task", [[WIPE], [WIPE], [WIPE]])
    assert instructions(open_source(root)) == [RED, AMBIGUOUS, AMBIGUOUS]


def without_numbers(root: Path, name: str, column: Callable[[int], pa.Array]) -> None:
    """No `task_index` in the rows; `column` makes what stands there instead from the number of rows."""
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path).drop_columns(["task_index"])
        pq.write_table(table.append_column(name, column(len(table))), path)


@pytest.mark.parametrize("blank", [WIPE, None])
@pytest.mark.parametrize("name", ["task", "language_instruction"])
def test_without_numbers_a_text_that_the_episode_does_not_list_is_rejected(
    root: Path, name: str, blank: str | None
) -> None:
    list_tasks(root, [[RED], [WIPE.upper() + "."], [RED, WIPE]])
    without_numbers(root, name, lambda rows: pa.array([WIPE, blank] * rows)[:rows])
    source = open_source(root)
    third = MISSING if blank is None else WIPE
    second = WIPE if blank else WIPE.upper() + "."
    assert instructions(source) == [AMBIGUOUS, second, third]
    with pytest.raises(EpisodeRejected, match=f"'{name}' says '{WIPE}', .* lists '{RED}'; make"):
        source.read_columns(source.episodes[0])


def test_of_two_text_columns_the_one_that_the_episode_lists_is_read(root: Path) -> None:
    list_tasks(root, [[RED]] * 3)
    without_numbers(root, "task", lambda rows: pa.array([RED] * rows))
    add_text_column(root, "language_instruction", [[WIPE]] * 3)
    assert instructions(open_source(root)) == [RED] * 3


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes_are_a_text_where_they_are_utf_8(root: Path, kind: pa.DataType) -> None:
    list_tasks(root, [[], [], []])
    without_numbers(root, "task", lambda rows: pa.array([f"{RED} \u2192".encode()] * rows, kind))
    assert instructions(open_source(root)) == [f"{RED} \u2192"] * 3


@pytest.mark.parametrize(
    ("cell", "kind", "said"),
    [
        (b"caf\xe9", pa.binary(), "'task' is blank or no UTF-8"),
        (b"\x80\x03pickled\x00", pa.binary(), "'task' is blank or no UTF-8"),
        (b"\x0a\x04wipe\x00", pa.binary(), "'task' is blank or no UTF-8"),
        (b"wipe", pa.binary(4), r"'task' is fixed_size_binary\[4\], which is no text"),
        (3, pa.int64(), "'task' is int64, which is no text"),
        ([WIPE], pa.list_(pa.string()), "'task' is list<element: string>, which is no text"),
    ],
)
def test_a_column_that_holds_no_text_is_named(
    root: Path, cell: Any, kind: pa.DataType, said: str
) -> None:
    list_tasks(root, [[], [], []])
    without_numbers(root, "task", lambda rows: pa.array([cell] * rows, kind))
    source = open_source(root)
    with pytest.raises(EpisodeRejected, match=said) as caught:
        source.read_columns(source.episodes[0])
    assert caught.value.reason is MISSING


def test_a_column_without_texts_contradicts_nothing(root: Path) -> None:
    write_tasks(root, [(0, RED)])
    list_tasks(root, [[], [], []])
    add_text_column(root, "task", [[None], ["", "nan"], [None, RED]])
    assert instructions(open_source(root)) == [RED] * 3


@pytest.mark.parametrize(
    "value", [None, "", " ", "nan", "None", "n/a", "undefined", "-1", "True", "..."]
)
def test_what_is_no_text_never_becomes_an_instruction(root: Path, value: Any) -> None:
    write_tasks(root, [(0, value)])
    list_tasks(root, [[], [RED], []])
    assert instructions(open_source(root)) == [MISSING, RED, MISSING]


@pytest.mark.parametrize("value", [float("nan"), -1, True, 3.5])
def test_json_that_is_no_text_never_becomes_an_instruction(tmp_path: Path, value: Any) -> None:
    root = make_dataset(tmp_path / "data", LENGTHS)
    write_tasks(root, [(0, value)])
    list_tasks(root, [[], [RED], []])
    assert instructions(open_source(root)) == [MISSING, RED, MISSING]


@pytest.mark.parametrize(
    "mark",
    [
        "<|im_end|>",
        "<|endoftext|>",
        "<im_patch>",
        "<DEPTH_START>",
        "<DEPTH_3>",
        "|<EXTRA_TOKENS_7>|",
        "<action_12>",
        "<low_res_im_start>",
        "<|image|>",
    ],
)
def test_a_special_token_in_an_instruction_is_refused_by_name(root: Path, mark: str) -> None:
    write_tasks(root, [(0, f"pick{mark}up")])
    list_tasks(root, [[], [], []])
    source = open_source(root)
    assert instructions(source) == [RejectReason.INSTRUCTION_HAS_TOKENS] * 3
    with pytest.raises(EpisodeRejected, match="special token") as caught:
        source.read_columns(source.episodes[0])
    assert mark.strip("|") in caught.value.detail


@pytest.mark.parametrize(
    "text",
    ["if a < b_c and d > e then stop", "put it at <here>", "größer als <5 cm>", "把方块推到左边"],
)
def test_angle_brackets_of_people_are_text(root: Path, text: str) -> None:
    write_tasks(root, [(0, text)])
    list_tasks(root, [[], [], []])
    assert instructions(open_source(root)) == [text] * 3


@pytest.mark.parametrize("kind", [pa.float64(), pa.bool_(), pa.int64(), pa.float32()])
def test_task_numbers_that_are_none_are_not_rounded_to_one(
    tmp_path: Path, kind: pa.DataType
) -> None:
    root = make_dataset(tmp_path / "data", LENGTHS)
    write_tasks(root, [(0, RED), (1, WIPE)])
    list_tasks(root, [[], [], []])
    values: dict[pa.DataType, list[Any]] = {
        pa.float64(): [0.5, float("nan"), 1.0],
        pa.bool_(): [True, True, True],
        pa.int64(): [-1, 7, 1],
        pa.float32(): [1e30, -1.0, 1.0],
    }
    for episode, value in enumerate(values[kind]):
        table = pq.read_table(rows_path(root, episode))
        at = table.column_names.index("task_index")
        column = pa.array(np.full(len(table), value)).cast(kind)
        pq.write_table(table.set_column(at, "task_index", column), rows_path(root, episode))
    last = MISSING if kind == pa.bool_() else WIPE
    assert instructions(open_source(root)) == [MISSING, MISSING, last]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
)
@pytest.mark.parametrize("name", ["task", "__index_level_0__", "instruction of the day"])
def test_every_kind_of_text_column_is_text(tmp_path: Path, kind: pa.DataType, name: str) -> None:
    root = make_v3_dataset(tmp_path / "data", LENGTHS)
    list_tasks(root, [[], [], []])
    texts = pa.array([RED], pa.string())
    texts = (
        texts.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else texts.cast(kind)
    )
    pq.write_table(pa.table({"task_index": [0], name: texts}), root / "meta/tasks.parquet")
    assert instructions(open_source(root)) == [RED] * 3
