"""LeRobot metadata of v2.0, v2.1 and v3.0 as one table, and where each episode's files are.

v2.x: `meta/episodes.jsonl`, `meta/tasks.jsonl`, one Parquet and one mp4 per episode.
v3.0: `meta/episodes/**.parquet`, `meta/tasks.parquet`, many episodes per Parquet and per mp4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from molmoact_data.errors import UserError, first_line
from molmoact_data.files.inputs import Folder
from molmoact_data.labels.instructions import usable_text
from molmoact_data.sources.lerobot import files
from molmoact_data.sources.lerobot.info import (
    LARGEST_INDEX,
    declared_cameras,
    integer,
    json_lines,
    path_template,
    read_info,
)
from molmoact_data.sources.lerobot.instructions import (
    as_text,
    is_text,
    text_values,
    without_views,
)
from molmoact_data.sources.video.spans import SharedFile

_SPAN = ("from_timestamp", "to_timestamp")


@dataclass(frozen=True)
class VideoSpan:
    """Where in which file an episode's video is; `end_s` None = to the end of the file."""

    path: str
    start_s: float
    end_s: float | None


@dataclass(frozen=True)
class LeRobotMetadata:
    """What the metadata declares. `episodes` has one row per episode, sorted by `episode_index`."""

    version: str
    info: Mapping[str, Any]
    tasks: Mapping[int, tuple[str, ...]]
    """Texts by `task_index`: several where the table contradicts itself, none where it is no text."""
    episodes: pa.Table
    data_path: str
    video_path: str
    _kept: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_v3(self) -> bool:
        """True where files are shared between episodes."""
        return self.version == "v3.0"

    @property
    def features(self) -> Mapping[str, Any]:
        """Declared features by key."""
        return self.info["features"]

    @cached_property
    def episode_index(self) -> NDArray[np.int64]:
        """[E] ascending."""
        return self.episodes["episode_index"].to_numpy()

    def data_file(self, episode_index: int) -> str:
        """Relative path of the Parquet file with the episode's rows.

        Raises `FileNotFoundError` where the metadata does not say, like `video_span`.
        """
        if not self.is_v3:
            return self.data_path.format(**self._v2_names(episode_index))
        return self.data_path.format(**self._v3_names(episode_index, "data"))

    def declared_length(self, episode_index: int) -> int | None:
        """Rows by the metadata; None where it does not say."""
        return self._value(episode_index, "length") or None

    def video_span(self, episode_index: int, key: str) -> VideoSpan:
        """Relative path and time span of the episode's video."""
        if not self.is_v3:
            names = self._v2_names(episode_index)
            return VideoSpan(self.video_path.format(video_key=key, **names), 0.0, None)
        field = f"videos/{key}"
        names = self._v3_names(episode_index, field)
        start, end = (self._value(episode_index, f"{field}/{name}") for name in _SPAN)
        if start is None:
            raise FileNotFoundError(f"the metadata has no {field}/{_SPAN[0]}")
        return VideoSpan(self.video_path.format(video_key=key, **names), start, end)

    def shared_file(self, episode_index: int, key: str) -> SharedFile | None:
        """All episodes in the video file of this one; None in v2.x, where a file is an episode."""
        if not self.is_v3:
            return None
        row = int(np.searchsorted(self.episode_index, episode_index))
        numbers = [self._numbers(f"videos/{key}/{name}") for name in files.FILE_IN_CHUNK]
        here = np.flatnonzero((numbers[0] == numbers[0][row]) & (numbers[1] == numbers[1][row]))
        start_s, end_s = (self._numbers(f"videos/{key}/{name}")[here] for name in _SPAN)
        episodes = self.episode_index[here]
        placed = self.episode_index[~np.isnan(numbers[0] + numbers[1])]
        at_end = int(episodes[-1]) == self.episode_index[-1]
        last = (self.info.get("total_episodes") or 0) - 1 if at_end else self.episode_index[-1]
        return SharedFile(
            episodes=episodes,
            start_s=start_s,
            end_s=end_s,
            lengths=self._numbers("length")[here],
            gap_before=~np.isin(episodes - 1, placed) & (episodes > 0),
            gap_after=bool(episodes[-1] < last and episodes[-1] + 1 not in placed),
        )

    def _numbers(self, column: str) -> NDArray[np.float64]:
        """[E] of the table; NaN where it does not say."""
        if column not in self._kept:
            missing = np.full(len(self.episodes), np.nan)
            there = column in self.episodes.column_names
            kept = self.episodes[column].cast(pa.float64()).to_numpy() if there else missing
            self._kept[column] = kept
        return self._kept[column]

    def episode_tasks(self, episode_index: int) -> tuple[str, ...]:
        """Task texts that the episode's own metadata lists, without blanks."""
        texts = self._value(episode_index, "tasks") or ()
        texts = texts if isinstance(texts, list) else [texts]
        return tuple(text for text in map(as_text, texts) if text and usable_text(text))

    def _v2_names(self, episode_index: int) -> dict[str, int]:
        chunk = episode_index // (int(self.info.get("chunks_size") or 0) or 1000)
        return {"episode_chunk": chunk, "episode_index": episode_index}

    def _v3_names(self, episode_index: int, field: str) -> dict[str, int]:
        names = {
            name: self._value(episode_index, f"{field}/{name}") for name in files.FILE_IN_CHUNK
        }
        for name, value in names.items():
            if value is None:
                raise FileNotFoundError(f"the metadata has no {field}/{name}")
        return names

    def _value(self, episode_index: int, column: str) -> Any:
        """None where the column is missing or null."""
        if column not in self.episodes.column_names:
            return None
        row = int(np.searchsorted(self.episode_index, episode_index))
        return self.episodes[column][row].as_py()


def read_metadata(folder: Folder) -> LeRobotMetadata:
    """Read and check `meta/`. Raises `UserError` where it is not metadata that we know."""
    info = read_info(folder)
    version = info["codebase_version"]
    is_v3 = version == "v3.0"
    data_path = path_template(folder, info, "data_path", files.data_template(version))
    video_path = path_template(folder, info, "video_path", files.video_template(version))
    episodes = _v3_episodes(folder, info) if is_v3 else _v2_episodes(folder, data_path)
    if not len(episodes):
        raise UserError(f"dataset {folder.name!r} has no episodes: neither metadata nor rows")
    return LeRobotMetadata(
        version=version,
        info=info,
        tasks=_v3_tasks(folder) if is_v3 else _v2_tasks(folder),
        episodes=episodes.sort_by("episode_index"),
        data_path=data_path,
        video_path=video_path,
    )


def _v2_episodes(folder: Folder, data_path: str) -> pa.Table:
    """Declared episodes, and those that only have a Parquet file: rows count more than metadata."""
    declared: dict[int, tuple[int, list[str]]] = {}
    for where, row in json_lines(folder, files.V2_EPISODES_FILE):
        length = integer(row, "length", where) if row.get("length") is not None else 0
        episode, entry = integer(row, "episode_index", where), (length, _texts(row))
        if declared.setdefault(episode, entry) != entry:
            raise UserError(
                f"{where} lists episode {episode} again, with another length or other tasks"
            )
    for path in folder.listing(data_path.partition("/")[0], ".parquet"):
        number = re.search(r"(\d+)\.parquet$", path)
        if number and len(number[1]) < 10 and int(number[1]) not in declared:
            declared[int(number[1])] = (_num_rows(folder.fetch(path)), [])
    return pa.table(
        {
            "episode_index": pa.array(declared, pa.int64()),
            "length": pa.array([length for length, _ in declared.values()], pa.int64()),
            "tasks": pa.array([texts for _, texts in declared.values()], pa.list_(pa.string())),
        }
    )


def _texts(row: Mapping[str, Any]) -> list[str]:
    tasks = row.get("tasks")
    listed = tasks if isinstance(tasks, list) else [tasks]
    return [text for text in listed if isinstance(text, str)]


def _num_rows(path: Path) -> int:
    """0 where the file is damaged: its episode is rejected, by name, when its turn comes."""
    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError):
        return 0


def _v2_tasks(folder: Folder) -> dict[int, tuple[str, ...]]:
    rows = json_lines(folder, files.V2_TASKS_FILE)
    return _texts_by_number(
        (integer(row, "task_index", where, -LARGEST_INDEX), row.get("task")) for where, row in rows
    )


def _texts_by_number(rows: Iterable[tuple[int | None, object]]) -> dict[int, tuple[str, ...]]:
    """Every text that a number has, in order, each once."""
    texts: dict[int, dict[str, None]] = {}
    for number, value in rows:
        if number is not None and (text := usable_text(value)) is not None:
            texts.setdefault(number, {})[text] = None
    return {number: tuple(found) for number, found in texts.items()}


def _v3_episodes(folder: Folder, info: Mapping[str, Any]) -> pa.Table:
    paths = folder.listing(files.V3_EPISODES_FOLDER, ".parquet")
    if not paths:
        raise UserError(
            f"dataset {folder.name!r} says v3.0 but has no {files.V3_EPISODES_FOLDER}/**.parquet, which tells "
            "where each episode's rows and frames are"
        )
    tables = [_read_table(folder.fetch(path)) for path in paths]
    where = f"{files.V3_EPISODES_FOLDER} of {folder.name!r}"
    try:
        table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise UserError(f"the files of {where} do not fit together: {error}") from error
    return _typed_episodes(table, where, [c.key for c in declared_cameras(info["features"])])


def _typed_episodes(table: pa.Table, where: str, cameras: Sequence[str]) -> pa.Table:
    """Whole numbers and seconds in the types that the lookups rely on; every episode once."""
    types = {"episode_index": pa.int64(), "length": pa.int64()}
    types |= {f"data/{name}": pa.int64() for name in files.FILE_IN_CHUNK}
    for name in types:
        if name not in table.column_names:
            raise UserError(f"{where} has no column {name!r}, has {table.column_names}")
    types |= {f"videos/{key}/{name}": pa.int64() for key in cameras for name in files.FILE_IN_CHUNK}
    types |= {f"videos/{key}/{name}": pa.float64() for key in cameras for name in _SPAN}
    for name, kind in types.items():
        if name in table.column_names:
            column = _cast(table[name], kind, f"{where}, column {name!r},")
            table = table.set_column(table.column_names.index(name), name, column)
    for name in ("episode_index", "length", *(n for n in types if n.endswith("_index"))):
        if name in table.column_names:
            _refuse_beyond(table[name], f"{where}, column {name!r},")
    counts = pc.value_counts(table["episode_index"]).to_pylist()
    wrong = [c["values"] for c in counts if c["values"] is None or c["counts"] > 1]
    if wrong:
        what = "an episode without a number" if wrong[0] is None else f"episode {wrong[0]} twice"
        raise UserError(f"{where} lists {what}; each must be there once, with its number")
    return table


def _cast(column: pa.ChunkedArray, kind: pa.DataType, where: str) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except pa.ArrowException as error:
        raise UserError(f"{where} must be {kind}, is {column.type}: {first_line(error)}") from error


def _refuse_beyond(column: pa.ChunkedArray, where: str) -> None:
    """Numbers of episodes, rows and files are from 0 to int32's largest."""
    found = pc.min_max(column).as_py()
    for value in (found["min"], found["max"]):
        if value is not None and not 0 <= value <= LARGEST_INDEX:
            raise UserError(f"{where} holds {value}; it must be from 0 to {LARGEST_INDEX}")


def _read_table(path: Path, skip: str = "stats/") -> pa.Table:
    """A metadata table, every column of which has a name of its own. Raises `UserError`."""
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise UserError(f"metadata file {path}: several columns are named {twice!r}")
            wanted = [name for name in names if not name.startswith(skip)]
            return without_views(file.read(columns=wanted, use_threads=False))
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"metadata file {path} cannot be read as Parquet: {first_line(error)}"
        ) from error


def _v3_tasks(folder: Folder) -> dict[int, tuple[str, ...]]:
    """The text is a pandas index: a column named `task`, `__index_level_0__`, or anything."""
    if not folder.exists(files.V3_TASKS_FILE):
        return {}
    path = folder.fetch(files.V3_TASKS_FILE)
    table = _read_table(path)
    texts = [field.name for field in table.schema if is_text(field.type)]
    if "task_index" not in table.column_names or not texts:
        raise UserError(
            f"{path.name} of {folder.name!r} needs `task_index` and a text column, has "
            f"{table.column_names}"
        )
    text = next((n for n in ("task", "__index_level_0__") if n in texts), texts[0])
    column = _cast(table["task_index"], pa.int64(), f"{path.name} of {folder.name!r}, task_index")
    return _texts_by_number(zip(column.to_pylist(), text_values(table[text]), strict=True))
