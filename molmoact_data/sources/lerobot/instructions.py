"""The instruction of every frame, from whichever place a LeRobot dataset keeps its task text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, RejectReason

TEXT_COLUMNS = ("language_instruction", "task", "instruction")


def frame_instructions(
    num_frames: int,
    task_index: NDArray[np.integer] | None,
    tasks: Mapping[int, str],
    text_columns: Mapping[str, Sequence[str | None]],
    episode_tasks: Sequence[str],
) -> tuple[str, ...]:
    """[T] texts, none of them blank; `EpisodeRejected` where no place has one for every frame.

    The order is LeRobot's own first (`task_index` into the task table), then a text column in the
    rows, then the episode's metadata where that lists a single task.
    """
    missing = []
    if task_index is not None:
        texts = [tasks.get(int(index), "") for index in task_index]
        if all(text.strip() for text in texts):
            return tuple(texts)
        bad = next(i for i, text in enumerate(texts) if not text.strip())
        missing.append(f"task {int(task_index[bad])} of row {bad} is not in meta/tasks or is blank")
    for name, column in text_columns.items():
        if all(text and text.strip() for text in column):
            return tuple(str(text) for text in column)
        missing.append(f"column {name!r} is blank in places")
    if len(episode_tasks) == 1:
        return (episode_tasks[0],) * num_frames
    missing.append(f"the episode's metadata lists {len(episode_tasks)} tasks")
    raise EpisodeRejected(RejectReason.INSTRUCTION_MISSING, "; ".join(missing))


def text_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns that may hold an instruction, best first."""
    return [
        name for name in TEXT_COLUMNS if name in schema.names and is_text(schema.field(name).type)
    ]


def is_text(kind: pa.DataType) -> bool:
    """True for strings, categorical ones included."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
