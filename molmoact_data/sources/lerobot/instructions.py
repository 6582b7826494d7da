"""The instruction of every frame, from whichever place a LeRobot dataset keeps its task text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, RejectReason
from molmoact_data.labels.instructions import special_mark, usable_text

TEXT_COLUMNS = ("language_instruction", "task", "instruction")


def frame_instructions(
    num_frames: int,
    task_index: NDArray[np.integer] | None,
    tasks: Mapping[int, Sequence[str]],
    text_columns: Mapping[str, Sequence[str | None]],
    episode_tasks: Sequence[str],
    no_text: Mapping[str, str] = {},
) -> tuple[str, ...]:
    """[T] texts, none of them blank, none with a special token of a model; else `EpisodeRejected`.

    `no_text`: columns that should hold the instruction but hold something else, and what.
    """
    texts = _found(num_frames, task_index, tasks, text_columns, episode_tasks, no_text)
    for text in dict.fromkeys(texts):
        if (mark := special_mark(text)) is not None:
            raise EpisodeRejected(
                RejectReason.INSTRUCTION_HAS_TOKENS,
                f"{text[:80]!r} holds {mark!r}, which a model reads as a special token",
            )
    return texts


def _found(
    num_frames: int,
    task_index: NDArray[np.integer] | None,
    tasks: Mapping[int, Sequence[str]],
    text_columns: Mapping[str, Sequence[str | None]],
    episode_tasks: Sequence[str],
    no_text: Mapping[str, str],
) -> tuple[str, ...]:
    """[T] texts, none of them blank; `EpisodeRejected` where no place has one for every frame.

    The order is LeRobot's own first (`task_index` into the task table), then a text column in the
    rows, then the episode's metadata where that lists a single task. A number to which the table gives
    several texts means the one that the episode's metadata lists; a text that the metadata does not list
    contradicts it, and nobody can tell which of the two is true. The same holds for a text column that
    says something else than the table, unless the metadata lists the table's text and not the column's,
    and for one that says what the metadata does not list where there is no table.
    """
    missing = []
    if task_index is not None:
        chosen = {
            int(number): _text_of_task(int(number), tasks, episode_tasks)
            for number in np.unique(task_index)
        }
        texts = [chosen[int(number)] for number in task_index]
        if all(texts):
            found = tuple(str(text) for text in texts)
            _refuse_other_texts(found, text_columns, episode_tasks)
            return found
        bad = texts.index(None)
        missing.append(f"task {int(task_index[bad])} of row {bad} is not in meta/tasks or is blank")
    whole = [column for column in text_columns.values() if all(map(usable_text, column))]
    agreeing = [column for column in whole if not _unlisted(column, episode_tasks)]
    if agreeing:
        return tuple(str(text) for text in agreeing[0])
    for name, column in text_columns.items():
        _refuse_unlisted(name, column, episode_tasks)
    if len(episode_tasks) == 1:
        return (episode_tasks[0],) * num_frames
    missing += [f"column {name!r} is blank or no UTF-8 in places" for name in text_columns]
    missing += [f"column {name!r} is {kind}, which is no text" for name, kind in no_text.items()]
    missing.append(f"the episode's metadata lists {len(episode_tasks)} tasks")
    raise EpisodeRejected(RejectReason.INSTRUCTION_MISSING, "; ".join(missing))


def _text_of_task(
    number: int, tasks: Mapping[int, Sequence[str]], episode_tasks: Sequence[str]
) -> str | None:
    """The one text that a task's number stands for in this episode; None where the table has none."""
    texts = list({_plain(text): text for text in reversed(tasks.get(number, ()))}.values())[::-1]
    listed = {_plain(text) for text in episode_tasks}
    agreeing = [text for text in texts if _plain(text) in listed] if listed else texts
    if not texts or len(agreeing) == 1:
        return agreeing[0] if texts else None
    shown = " and ".join(map(repr, texts[:2]))
    if agreeing:
        detail = (
            f"task {number} has {len(texts)} texts in meta/tasks, {shown}, and nothing tells which"
        )
    else:
        own = ", ".join(map(repr, episode_tasks[:3]))
        detail = (
            f"the rows' task {number} is {shown} in meta/tasks, the episode's metadata lists {own}"
        )
    raise EpisodeRejected(RejectReason.INSTRUCTION_AMBIGUOUS, detail)


def _refuse_other_texts(
    texts: Sequence[str],
    text_columns: Mapping[str, Sequence[str | None]],
    episode_tasks: Sequence[str],
) -> None:
    """`EpisodeRejected` where a column of the rows contradicts the table, and the metadata does not decide."""
    listed = {_plain(text) for text in episode_tasks}
    for name, column in text_columns.items():
        for of_table, of_row in dict.fromkeys(zip(texts, column, strict=True)):
            if of_row is None or not usable_text(of_row) or _plain(of_row) == _plain(of_table):
                continue
            if not listed or _plain(of_row) in listed:
                raise EpisodeRejected(
                    RejectReason.INSTRUCTION_AMBIGUOUS,
                    f"column {name!r} says {of_row!r} where the row's task is {of_table!r} in meta/tasks, "
                    "and the episode's metadata does not tell which",
                )


def _unlisted(column: Sequence[str | None], episode_tasks: Sequence[str]) -> list[str]:
    """The column's texts that the episode's metadata does not list, where it lists any."""
    listed = {_plain(text) for text in episode_tasks}
    texts = [text for text in dict.fromkeys(column) if text is not None and usable_text(text)]
    return [text for text in texts if listed and _plain(text) not in listed]


def _refuse_unlisted(name: str, column: Sequence[str | None], episode_tasks: Sequence[str]) -> None:
    """`EpisodeRejected` where a column contradicts the episode's metadata: nobody can tell which is true."""
    if texts := _unlisted(column, episode_tasks):
        raise EpisodeRejected(
            RejectReason.INSTRUCTION_AMBIGUOUS,
            f"column {name!r} says {texts[0]!r}, the episode's metadata lists "
            f"{', '.join(map(repr, episode_tasks[:3]))}; make them the same, or remove one of the two",
        )


def _plain(text: str) -> str:
    """Without the differences that make no other instruction."""
    return " ".join(text.lower().split()).rstrip(".")


def text_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns that may hold an instruction, best first."""
    return [
        name for name in TEXT_COLUMNS if name in schema.names and is_text(schema.field(name).type)
    ]


def no_text_columns(schema: pa.Schema) -> dict[str, str]:
    """Columns whose name promises an instruction and whose type breaks the promise, and that type."""
    texts = text_columns(schema)
    names = [name for name in TEXT_COLUMNS if name in schema.names and name not in texts]
    return {name: str(schema.field(name).type) for name in names}


def text_values(column: pa.ChunkedArray) -> list[str | None]:
    """Texts of a column; None for what is null or no Unicode, which Parquet does not check.

    Bytes are UTF-8: writers that do not say so (TensorFlow's) leave the column binary.
    """
    return [_text_or_none(value) for value in column]


def _text_or_none(value: pa.Scalar) -> str | None:
    try:
        return as_text(value.as_py())
    except UnicodeDecodeError:
        return None


def as_text(value: object) -> str | None:
    """A cell's text: a string, or bytes that are UTF-8 without control characters; else None."""
    if not isinstance(value, bytes):
        return value if isinstance(value, str) else None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if all(sign.isprintable() or sign.isspace() for sign in text) else None


def without_views(table: pa.Table) -> pa.Table:
    """The table with Arrow's string and binary views, which it cannot yet filter or sort, as plain ones."""
    fields = [field.with_type(_without_view(field.type)) for field in table.schema]
    return table.cast(pa.schema(fields, table.schema.metadata))


def _without_view(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind):
        return pa.list_(_without_view(kind.value_type))
    return kind


def is_text(kind: pa.DataType) -> bool:
    """True for strings, categorical and binary ones included."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    plain = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return plain or pa.types.is_string_view(kind) or _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    bytes_of_any_length = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return bytes_of_any_length or pa.types.is_binary_view(kind)
