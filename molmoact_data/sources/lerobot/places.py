"""Where the rows of v3.0's episodes really are, counted in the row files, against where the metadata has them.

Converters and re-sharding uploads leave an episode table that names the wrong file, or the first of two.
Rows are trusted: the files are asked, and what differs from the table is used and said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from molmoact_data.files.inputs import Folder
from molmoact_data.sources.lerobot.metadata import LeRobotMetadata

EPISODE_INDEX = "episode_index"
SPAN = ("dataset_from_index", "dataset_to_index")
"""Columns of the episode table: first row in the whole dataset, and the one after the last."""
RowCounts = Mapping[str, Mapping[int, int]]
"""Row file -> episode -> rows of it in that file."""


def count_rows(folder: Folder, paths: Sequence[str]) -> dict[str, dict[int, int]]:
    """Rows of every episode in every file. A damaged file is left out: its episodes are rejected later."""
    counted = {path: _count_in_file(folder, path) for path in paths}
    return {path: counts for path, counts in counted.items() if counts is not None}


def rows_elsewhere(metadata: LeRobotMetadata, counts: RowCounts) -> dict[int, tuple[str, ...]]:
    """Files of the episodes that the table's file does not hold as declared, where others hold rows of it.

    An episode whose named file has as many rows as declared stays there, whatever else holds its number.
    """
    found: dict[int, list[str]] = {}
    for path in sorted(counts):
        for episode in counts[path]:
            found.setdefault(episode, []).append(path)
    elsewhere = {}
    for episode in metadata.episode_index.tolist():
        named = _named_file(metadata, episode)
        there = counts.get(named, {}).get(episode, 0) if named is not None else 0
        files = found.get(episode, [])
        if there != metadata.declared_length(episode) and files not in ([], [named]):
            elsewhere[episode] = tuple(files)
    return elsewhere


def warnings_of(metadata: LeRobotMetadata, elsewhere: Mapping[int, Sequence[str]]) -> list[str]:
    """One line for all of them."""
    if not elsewhere:
        return []
    episode, files = next(iter(elsewhere.items()))
    named = _named_file(metadata, episode) or "no file"
    return [
        f"the rows of {len(elsewhere)} episodes are not where the metadata says; first: episode {episode} "
        f"is in {', '.join(files)}, the metadata names {named}"
    ]


def span_warnings(metadata: LeRobotMetadata) -> list[str]:
    """One line where the episode table's row spans are not as long as its episodes; the rows decide."""
    table = metadata.episodes
    if not {*SPAN, "length"} <= {*table.column_names}:
        return []
    columns = [table[name].to_pylist() for name in (EPISODE_INDEX, *SPAN, "length")]
    differ = [
        row
        for row in zip(*columns, strict=True)
        if all(isinstance(value, int | float) for value in row) and row[2] - row[1] != row[3]
    ]
    if not differ:
        return []
    episode, first, end, length = differ[0]
    return [
        f"{SPAN[0]} and {SPAN[1]} of {len(differ)} episodes contradict their length; first: episode {episode} "
        f"is rows {first}..{end}, and {length} long; the rows' own {EPISODE_INDEX} decides"
    ]


def _named_file(metadata: LeRobotMetadata, episode: int) -> str | None:
    with suppress(FileNotFoundError):
        return metadata.data_file(episode)
    return None


def _count_in_file(folder: Folder, path: str) -> dict[int, int] | None:
    try:
        file = pq.ParquetFile(folder.fetch(path))
        with file:
            names = file.schema_arrow.names
            if names.count(EPISODE_INDEX) != 1:
                return None
            column = file.read(columns=[EPISODE_INDEX])[EPISODE_INDEX]
    except (pa.ArrowException, OSError):
        return None
    if not pa.types.is_integer(column.type):
        return None
    counted = pc.value_counts(column.drop_null()).to_pylist()
    return {entry["values"]: entry["counts"] for entry in counted}
