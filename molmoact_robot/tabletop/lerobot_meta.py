"""LeRobot's metadata files, both layouts: features, paths, episodes, tasks, statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from molmoact_robot.tabletop.control import ACTION_NAMES, CONTROL_HZ, STATE_NAMES

FRONT = "observation.images.front"
WRIST = "observation.images.wrist"
DEPTH = "observation.depth.front"
GRIPPER_PIXEL = "observation.gripper_pixel"
GRIPPER_VISIBLE = "observation.gripper_visible"
SUCCESS = "next.success"
CAMERAS = (FRONT, WRIST)
CHUNK_SIZE = 1000
IMAGE_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
Json = dict[str, Any]


@dataclass(frozen=True)
class EpisodeRecord:
    """What the metadata says about one written episode."""

    index: int
    length: int
    first_frame: int
    instruction: str
    task_index: int
    success: bool
    statistics: Json
    """Feature -> min, max, mean, std, count."""


def task_number(records: Sequence[EpisodeRecord], instruction: str) -> int:
    """Tasks are numbered in order of first appearance."""
    known = {r.instruction: r.task_index for r in records}
    return known.get(instruction, len(known))


def data_path(version: str, number: int) -> str:
    chunk, inside = divmod(number, CHUNK_SIZE)
    if version == "v2.1":
        return f"data/chunk-{chunk:03d}/episode_{number:06d}.parquet"
    return f"data/chunk-{chunk:03d}/file-{inside:03d}.parquet"


def video_path(version: str, key: str, number: int) -> str:
    chunk, inside = divmod(number, CHUNK_SIZE)
    if version == "v2.1":
        return f"videos/chunk-{chunk:03d}/{key}/episode_{number:06d}.mp4"
    return f"videos/{key}/chunk-{chunk:03d}/file-{inside:03d}.mp4"


def features(image_hw: Sequence[int], *, depth: bool) -> Json:
    """The `features` of info.json; units are stated where LeRobot leaves them open."""
    height, width = image_hw
    out: Json = {key: _video_feature(height, width) for key in CAMERAS}
    if depth:
        out[DEPTH] = {
            "dtype": "image",
            "shape": [height, width, 1],
            "names": ["height", "width", "channel"],
            "info": {"unit": "0.5 mm along the optical axis", "encoding": "16-bit PNG"},
        }
    out["observation.state"] = _array_feature("float32", STATE_NAMES)
    out["action"] = _array_feature("float32", ACTION_NAMES)
    out[GRIPPER_PIXEL] = {
        **_array_feature("float32", ("column", "row")),
        "info": {"unit": "pixel index of the front camera, unit coordinate = index / (size - 1)"},
    }
    scalars = {GRIPPER_VISIBLE: "bool", SUCCESS: "bool", "timestamp": "float32"}
    integers = ("frame_index", "episode_index", "index", "task_index")
    for name, dtype in {**scalars, **dict.fromkeys(integers, "int64")}.items():
        out[name] = {"dtype": dtype, "shape": [1], "names": None}
    return out


def _video_feature(height: int, width: int) -> Json:
    about = {"height": height, "width": width, "channels": 3, "codec": "h264"}
    details: Json = {f"video.{k}": v for k, v in about.items()}
    details |= {"video.fps": CONTROL_HZ, "video.pix_fmt": "yuv420p", "video.is_depth_map": False}
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channel"],
        "info": {**details, "has_audio": False},
    }


def _array_feature(dtype: str, names: Sequence[str]) -> Json:
    return {"dtype": dtype, "shape": [len(names)], "names": {"axes": list(names)}}


def statistics(numeric: Mapping[str, NDArray[Any]], videos: Mapping[str, NDArray[Any]]) -> Json:
    """Per-episode statistics as LeRobot stores them; images in 0..1 per channel [3,1,1]."""
    out = {name: _statistics(values) for name, values in numeric.items()}
    for key, frames_THWC in videos.items():
        out[key] = _image_statistics(frames_THWC)
    return out


def write(root: Path, records: Sequence[EpisodeRecord], features: Json, version: str) -> None:
    (root / "meta").mkdir(parents=True, exist_ok=True)
    _write_json(root / "meta/info.json", info(records, features, version))
    if version == "v2.1":
        _write_v21(root, records)
    else:
        _write_v30(root, records)


def info(records: Sequence[EpisodeRecord], features: Json, version: str) -> Json:
    chunks = -(-len(records) // CHUNK_SIZE)
    out: Json = {
        "codebase_version": version,
        "robot_type": "simulated_panda",
        "total_episodes": len(records),
        "total_frames": sum(r.length for r in records),
        "total_tasks": len({r.task_index for r in records}),
        "chunks_size": CHUNK_SIZE,
        "fps": CONTROL_HZ,
        "splits": {"train": f"0:{len(records)}"},
    }
    if version == "v2.1":
        out["total_videos"], out["total_chunks"] = len(records) * len(CAMERAS), chunks
        where, name = "chunk-{episode_chunk:03d}", "episode_{episode_index:06d}"
        out["data_path"] = f"data/{where}/{name}.parquet"
        out["video_path"] = f"videos/{where}/{{video_key}}/{name}.mp4"
    else:
        where = "chunk-{chunk_index:03d}/file-{file_index:03d}"
        out["data_path"] = f"data/{where}.parquet"
        out["video_path"] = f"videos/{{video_key}}/{where}.mp4"
    return {**out, "features": features}


def _write_v21(root: Path, records: Sequence[EpisodeRecord]) -> None:
    episodes = [
        {
            "episode_index": r.index,
            "tasks": [r.instruction],
            "length": r.length,
            "success": r.success,
        }
        for r in records
    ]
    _write_jsonl(root / "meta/episodes.jsonl", episodes)
    tasks = [{"task_index": i, "task": t} for i, t in _tasks(records)]
    _write_jsonl(root / "meta/tasks.jsonl", tasks)
    stats = [{"episode_index": r.index, "stats": r.statistics} for r in records]
    _write_jsonl(root / "meta/episodes_stats.jsonl", stats)


def _write_v30(root: Path, records: Sequence[EpisodeRecord]) -> None:
    """One data file and one video file per episode, so every video starts at 0."""
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([_episode_row(r) for r in records]), path)
    names = pa.array([t for _, t in _tasks(records)], pa.string())
    numbers = pa.array([i for i, _ in _tasks(records)], pa.int64())
    table = pa.table({"task_index": numbers, "__index_level_0__": names})
    table = table.replace_schema_metadata({"pandas": json.dumps(_pandas_index())})
    pq.write_table(table, root / "meta/tasks.parquet")
    _write_json(root / "meta/stats.json", _merge([r.statistics for r in records]))


def _pandas_index() -> Json:
    """LeRobot reads tasks as a pandas frame whose index is the text; this is how parquet says so."""
    text, number = {"pandas_type": "unicode", "numpy_type": "object"}, {"pandas_type": "int64"}
    number["numpy_type"] = "int64"
    index = {"name": None, "field_name": "__index_level_0__", "metadata": None, **text}
    column = {"name": "task_index", "field_name": "task_index", "metadata": None, **number}
    return {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [{"name": None, "field_name": None, "metadata": None, **text}],
        "columns": [column, index],
    }


def _episode_row(record: EpisodeRecord) -> Json:
    chunk, inside = divmod(record.index, CHUNK_SIZE)
    row: Json = {
        "episode_index": record.index,
        "tasks": [record.instruction],
        "length": record.length,
        "success": record.success,
        "dataset_from_index": record.first_frame,
        "dataset_to_index": record.first_frame + record.length,
        "data/chunk_index": chunk,
        "data/file_index": inside,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }
    for key in CAMERAS:
        row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"] = chunk, inside
        row[f"videos/{key}/from_timestamp"] = 0.0
        row[f"videos/{key}/to_timestamp"] = record.length / CONTROL_HZ
    for feature, numbers in record.statistics.items():
        row.update({f"stats/{feature}/{name}": value for name, value in numbers.items()})
    return row


def _tasks(records: Sequence[EpisodeRecord]) -> list[tuple[int, str]]:
    return sorted({(r.task_index, r.instruction) for r in records})


def _statistics(values: NDArray[Any]) -> Json:
    rows = values.reshape(len(values), -1).astype(np.float64)
    numbers = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    return {**{k: v.tolist() for k, v in numbers.items()}, "count": [len(rows)]}


def _image_statistics(frames_THWC: NDArray[Any]) -> Json:
    pixels = _statistics(frames_THWC.reshape(-1, 3) / 255.0)
    shaped = {k: np.reshape(pixels[k], (3, 1, 1)).tolist() for k in ("min", "max", "mean", "std")}
    return {**shaped, "count": [len(frames_THWC)]}


def _merge(parts: Sequence[Json]) -> Json:
    """Statistics of all episodes together; variances add around the common mean."""
    merged: Json = {}
    for feature in parts[0]:
        of = {n: np.array([p[feature][n] for p in parts]) for n in ("min", "max", "mean", "std")}
        count = np.array([p[feature]["count"][0] for p in parts])
        weight = (count / count.sum()).reshape(-1, *(1,) * (of["mean"].ndim - 1))
        mean = (weight * of["mean"]).sum(0)
        variance = (weight * (of["std"] ** 2 + (of["mean"] - mean) ** 2)).sum(0)
        numbers = {"min": of["min"].min(0), "max": of["max"].max(0), "mean": mean}
        numbers["std"] = np.sqrt(variance)
        merged[feature] = {k: v.tolist() for k, v in numbers.items()}
        merged[feature]["count"] = [int(count.sum())]
    return merged


def _write_json(path: Path, content: Json) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_jsonl(path: Path, rows: Sequence[Json]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
