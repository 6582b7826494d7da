"""LeRobot metadata of v2.0, v2.1 and v3.0 as one table, and where each episode's files are.

v2.x: `meta/episodes.jsonl`, `meta/tasks.jsonl`, one Parquet and one mp4 per episode.
v3.0: `meta/episodes/**.parquet`, `meta/tasks.parquet`, many episodes per Parquet and per mp4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from molmoact_data.episodes.base import CameraFeature
from molmoact_data.episodes.storage import Folder
from molmoact_data.errors import UserError

SUPPORTED_VERSIONS = ("v2.0", "v2.1", "v3.0")
INFO_FILE = "meta/info.json"
_V2_DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_V2_VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_V3_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_V3_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


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
    tasks: Mapping[int, str]
    episodes: pa.Table
    data_path: str
    video_path: str

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
        """Relative path of the Parquet file with the episode's rows."""
        if not self.is_v3:
            return self.data_path.format(**self._v2_names(episode_index))
        return self.data_path.format(
            chunk_index=self._value(episode_index, "data/chunk_index"),
            file_index=self._value(episode_index, "data/file_index"),
        )

    def video_span(self, episode_index: int, key: str) -> VideoSpan:
        """Relative path and time span of the episode's video."""
        if not self.is_v3:
            names = self._v2_names(episode_index)
            return VideoSpan(self.video_path.format(video_key=key, **names), 0.0, None)
        field = f"videos/{key}"
        path = self.video_path.format(
            video_key=key,
            chunk_index=self._value(episode_index, f"{field}/chunk_index"),
            file_index=self._value(episode_index, f"{field}/file_index"),
        )
        start = self._value(episode_index, f"{field}/from_timestamp")
        return VideoSpan(path, start, self._value(episode_index, f"{field}/to_timestamp"))

    def episode_tasks(self, episode_index: int) -> tuple[str, ...]:
        """Task texts that the episode's own metadata lists, without blanks."""
        if "tasks" not in self.episodes.column_names:
            return ()
        texts = self._value(episode_index, "tasks") or ()
        texts = (texts,) if isinstance(texts, str) else texts
        return tuple(text for text in texts if isinstance(text, str) and text.strip())

    def _v2_names(self, episode_index: int) -> dict[str, int]:
        chunk = episode_index // int(self.info.get("chunks_size") or 1000)
        return {"episode_chunk": chunk, "episode_index": episode_index}

    def _value(self, episode_index: int, column: str) -> Any:
        row = int(np.searchsorted(self.episode_index, episode_index))
        return self.episodes[column][row].as_py()


def read_metadata(folder: Folder) -> LeRobotMetadata:
    """Read and check `meta/`. Raises `UserError` where it is not metadata that we know."""
    info = read_info(folder)
    version = info["codebase_version"]
    if version == "v3.0":
        episodes, data_path, video_path = _v3_episodes(folder), _V3_DATA_PATH, _V3_VIDEO_PATH
    else:
        data_path = info.get("data_path") or _V2_DATA_PATH
        episodes, video_path = _v2_episodes(folder, data_path), _V2_VIDEO_PATH
    if not len(episodes):
        raise UserError(f"dataset {folder.name!r} has no episodes: neither metadata nor rows")
    return LeRobotMetadata(
        version=version,
        info=info,
        tasks=_v3_tasks(folder) if version == "v3.0" else _v2_tasks(folder),
        episodes=episodes.sort_by("episode_index"),
        data_path=info.get("data_path") or data_path,
        video_path=info.get("video_path") or video_path,
    )


def read_info(folder: Folder) -> dict[str, Any]:
    """`meta/info.json`, with the keys everything else needs."""
    info = _json_object(folder.fetch(INFO_FILE))
    for key in ("codebase_version", "features"):
        if key not in info:
            raise UserError(f"{INFO_FILE} of {folder.name!r} has no {key!r}: not a LeRobot dataset")
    version = str(info["codebase_version"])
    info["codebase_version"] = version if version.startswith("v") else f"v{version}"
    if info["codebase_version"] not in SUPPORTED_VERSIONS:
        raise UserError(
            f"dataset {folder.name!r} is LeRobot {version}; {', '.join(SUPPORTED_VERSIONS)} can be read. "
            "LeRobot's own converters bring older datasets up"
        )
    return info


def declared_cameras(features: Mapping[str, Any]) -> tuple[CameraFeature, ...]:
    """Image and video features, recorded depth included, in declared order."""
    return tuple(
        CameraFeature(key, *_height_width(feature), feature["dtype"], _is_depth(key, feature))
        for key, feature in features.items()
        if feature.get("dtype") in ("video", "image")
    )


def _height_width(feature: Mapping[str, Any]) -> tuple[int, int]:
    """Shapes are written as HWC or CHW; the channel axis is named, or is the short one."""
    shape = [int(n) for n in feature.get("shape") or (0, 0, 0)]
    names = [str(n).lower() for n in feature.get("names") or ()]
    if len(names) == len(shape) == 3 and {"height", "width"} <= set(names):
        return shape[names.index("height")], shape[names.index("width")]
    if len(shape) == 2:
        return shape[0], shape[1]
    return (shape[1], shape[2]) if shape[0] <= 4 else (shape[0], shape[1])


def _is_depth(key: str, feature: Mapping[str, Any]) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    flags = [info.get(name) for name in ("video.is_depth_map", "is_depth_map")]
    return True in flags or "depth" in re.split(r"[^a-z]+", key.lower())


def _v2_episodes(folder: Folder, data_path: str) -> pa.Table:
    """Declared episodes, and those that only have a Parquet file: rows count more than metadata."""
    rows = _json_lines(folder, "meta/episodes.jsonl")
    declared: dict[int, tuple[int, list[str]]] = {}
    for row in rows:
        tasks = row.get("tasks") or []
        texts = [tasks] if isinstance(tasks, str) else [t for t in tasks if isinstance(t, str)]
        declared.setdefault(int(row["episode_index"]), (int(row.get("length") or 0), texts))
    for path in folder.listing(data_path.partition("/")[0], ".parquet"):
        number = re.search(r"(\d+)\.parquet$", path)
        if number and int(number[1]) not in declared:
            declared[int(number[1])] = (pq.read_metadata(folder.fetch(path)).num_rows, [])
    return pa.table(
        {
            "episode_index": pa.array(declared, pa.int64()),
            "length": pa.array([length for length, _ in declared.values()], pa.int64()),
            "tasks": pa.array([texts for _, texts in declared.values()], pa.list_(pa.string())),
        }
    )


def _v2_tasks(folder: Folder) -> dict[int, str]:
    rows = _json_lines(folder, "meta/tasks.jsonl")
    return {int(row["task_index"]): str(row.get("task") or "") for row in rows}


def _v3_episodes(folder: Folder) -> pa.Table:
    paths = folder.listing("meta/episodes", ".parquet")
    if not paths:
        raise UserError(
            f"dataset {folder.name!r} says v3.0 but has no meta/episodes/**.parquet, which tells "
            "where each episode's rows and frames are"
        )
    tables = [_without_statistics(folder.fetch(path)) for path in paths]
    return pa.concat_tables(tables, promote_options="permissive").combine_chunks()


def _without_statistics(path: Path) -> pa.Table:
    names = _parquet_schema(path).names
    return pq.read_table(path, columns=[n for n in names if not n.startswith("stats/")])


def _v3_tasks(folder: Folder) -> dict[int, str]:
    """The text is a pandas index: a column named `task`, `__index_level_0__`, or anything."""
    if not folder.exists("meta/tasks.parquet"):
        return {}
    path = folder.fetch("meta/tasks.parquet")
    schema = _parquet_schema(path)
    texts = [
        f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)
    ]
    if "task_index" not in schema.names or not texts:
        raise UserError(
            f"{path.name} of {folder.name!r} needs `task_index` and a text column, has {schema.names}"
        )
    text = next((n for n in ("task", "__index_level_0__") if n in texts), texts[0])
    table = pq.read_table(path, columns=["task_index", text])
    indices, tasks = table["task_index"].to_pylist(), table[text].to_pylist()
    return {int(i): task or "" for i, task in zip(indices, tasks, strict=True)}


def _parquet_schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"metadata file {path} cannot be read as Parquet: {error}") from error


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"metadata file {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"metadata file {path} must hold one JSON object")
    return content


def _json_lines(folder: Folder, path: str) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; none where the file does not exist."""
    if not folder.exists(path):
        return []
    rows = []
    lines = folder.fetch(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path} of {folder.name!r}, line {number} is not JSON: {error}"
            ) from error
    return rows
