"""The metadata files of a LeRobot dataset, v2.1 and v3.0: what the reader in `sources/lerobot` reads back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from molmoact_data.sources.lerobot import files
from molmoact_data.sources.lerobot.files import Version

FILE_MB = 100
"""A data file of v3.0 that is larger gets no further episode."""
Features = Mapping[str, Mapping[str, Any]]
"""Feature -> dtype, shape, names, and whatever else `info.json` shall say of it."""


@dataclass(frozen=True)
class DatasetDescription:
    """What `meta/info.json` says besides counts."""

    fps: float
    robot_type: str | None
    features: Features
    """Without the bookkeeping columns, which are added."""
    extra_info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EpisodeRecord:
    """What the metadata say of one episode."""

    index: int
    tasks: Sequence[str]
    first_row: int
    """Number of its first row in the whole dataset."""
    length: int
    """Rows."""
    data_file: int
    """Number of the v3.0 file with its rows."""
    cameras: Sequence[str] = ()
    """Whose frames are in a video file of this episode alone."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further columns, `success` for one."""
    statistics: Mapping[str, Any] | None = None
    """v2.1: feature -> numbers."""


def feature(dtype: str, shape: Sequence[int], names: Any = None) -> dict[str, Any]:
    """One entry of `features`."""
    return {"dtype": dtype, "shape": list(shape), "names": names}


def write_metadata(
    folder: Path,
    version: Version,
    description: DatasetDescription,
    *,
    features: Features,
    tasks: Mapping[str, int],
    episodes: Sequence[EpisodeRecord],
    statistics: Mapping[str, Any],
) -> None:
    """Everything under `meta/`. `features` are all of them, `tasks` text -> number, `statistics` those of all rows
    (v3.0; v2.1 takes those of every episode)."""
    (folder / files.INFO_FILE).parent.mkdir(parents=True, exist_ok=True)
    if version == "v3.0":
        _write_v3(folder, description.fps, tasks, episodes, statistics)
    else:
        _write_v2(folder, tasks, episodes)
    content = info(version, description, features, len(tasks), episodes)
    (folder / files.INFO_FILE).write_text(json.dumps(content, indent=4))


def info(
    version: Version,
    description: DatasetDescription,
    features: Features,
    num_tasks: int,
    episodes: Sequence[EpisodeRecord],
) -> dict[str, Any]:
    """The content of `meta/info.json`."""
    videos = [key for key, entry in features.items() if entry["dtype"] == "video"]
    v2_counts = {
        "total_videos": len(episodes) * len(videos),
        "total_chunks": -(-len(episodes) // files.CHUNK_SIZE),
    }
    v3_sizes = {"data_files_size_in_mb": FILE_MB, "video_files_size_in_mb": 200}
    return {
        "codebase_version": version,
        "robot_type": description.robot_type,
        "total_episodes": len(episodes),
        "total_frames": sum(episode.length for episode in episodes),
        "total_tasks": num_tasks,
        "chunks_size": files.CHUNK_SIZE,
        **(v3_sizes if version == "v3.0" else v2_counts),
        "fps": _rate(description.fps),
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": files.data_template(version),
        "video_path": files.video_template(version) if videos else None,
        "features": features,
        **description.extra_info,
    }


def _rate(fps: float) -> float:
    """A whole number where it is one, as LeRobot writes it; 29.97 stays, or every time would be off."""
    return int(fps) if fps == int(fps) else fps


def _write_v2(folder: Path, tasks: Mapping[str, int], episodes: Sequence[EpisodeRecord]) -> None:
    lines = {
        files.V2_EPISODES_FILE: [_declared(episode) for episode in episodes],
        files.V2_TASKS_FILE: [{"task_index": i, "task": text} for text, i in tasks.items()],
        files.V2_STATISTICS_FILE: [
            {"episode_index": episode.index, "stats": episode.statistics} for episode in episodes
        ],
    }
    for name, rows in lines.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_v3(
    folder: Path,
    fps: float,
    tasks: Mapping[str, int],
    episodes: Sequence[EpisodeRecord],
    statistics: Mapping[str, Any],
) -> None:
    path = folder / files.V3_EPISODES_FOLDER / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([_v3_row(episode, fps) for episode in episodes]), path)
    pq.write_table(_v3_tasks(tasks), folder / files.V3_TASKS_FILE)
    (folder / files.STATISTICS_FILE).write_text(json.dumps(statistics, indent=4))


def _declared(episode: EpisodeRecord) -> dict[str, Any]:
    return {
        "episode_index": episode.index,
        "tasks": list(episode.tasks),
        "length": episode.length,
        **episode.facts,
    }


def _v3_row(episode: EpisodeRecord, fps: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        **_declared(episode),
        **{f"data/{k}": n for k, n in files.file_in_chunk(episode.data_file).items()},
        "dataset_from_index": episode.first_row,
        "dataset_to_index": episode.first_row + episode.length,
        **{f"meta/episodes/{k}": n for k, n in files.file_in_chunk(0).items()},
    }
    for key in episode.cameras:
        row |= {f"videos/{key}/{k}": n for k, n in files.file_in_chunk(episode.index).items()}
        row[f"videos/{key}/from_timestamp"] = 0.0
        row[f"videos/{key}/to_timestamp"] = episode.length / fps
    return row


def _v3_tasks(tasks: Mapping[str, int]) -> pa.Table:
    """LeRobot looks tasks up by the pandas index of this table."""
    texts, numbers = pa.array(tasks, pa.string()), pa.array(tasks.values(), pa.int64())
    pandas = {
        "index_columns": ["task"],
        "columns": [_pandas_column("task_index", "int64"), _pandas_column("task", "str")],
        "column_indexes": [],
    }
    table = pa.table({"task_index": numbers, "task": texts})
    return table.replace_schema_metadata({b"pandas": json.dumps(pandas).encode()})


def _pandas_column(name: str, kind: str) -> dict[str, Any]:
    numpy_type = "object" if kind == "str" else kind
    pandas_type = "unicode" if kind == "str" else kind
    return {
        "name": name,
        "field_name": name,
        "pandas_type": pandas_type,
        "numpy_type": numpy_type,
        "metadata": None,
    }
