"""Write a LeRobot v3.0 dataset, episode after episode, in bounded memory and without LeRobot.

Images are stored as their own encoded bytes; videos are named, never made. Statistics are exact
quantiles for numbers, and of every tenth frame for images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from molmoact_data.outputs.columns import fixed_array
from molmoact_data.outputs.measuring import lerobot_statistics
from molmoact_data.pictures.images import decode_image
from molmoact_data.schema import IMAGE_TYPE

VERSION = "v3.0"
CHUNK_SIZE = 1000
FILE_MB = 100
IMAGE_STATISTICS_EVERY = 10
TIMESTAMP, FRAME_INDEX, EPISODE_INDEX = "timestamp", "frame_index", "episode_index"
INDEX, TASK_INDEX = "index", "task_index"
BOOKKEEPING: Mapping[str, str] = {
    TIMESTAMP: "float32",
    FRAME_INDEX: "int64",
    EPISODE_INDEX: "int64",
    INDEX: "int64",
    TASK_INDEX: "int64",
}
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"


@dataclass(frozen=True)
class VideoSlice:
    """Where one episode lies in a video file."""

    chunk_index: int
    file_index: int
    from_s: float
    to_s: float


@dataclass(frozen=True)
class DatasetDescription:
    """What `meta/info.json` says besides counts."""

    fps: float
    robot_type: str | None
    features: Mapping[str, Mapping[str, Any]]
    """Feature -> dtype, shape, names; without the bookkeeping columns, which are added."""
    extra_info: Mapping[str, Any] = field(default_factory=dict)


def feature(dtype: str, shape: Sequence[int], names: Any = None) -> dict[str, Any]:
    """One entry of `features`."""
    return {"dtype": dtype, "shape": list(shape), "names": names}


def arrow_type(entry: Mapping[str, Any]) -> pa.DataType:
    """How LeRobot's loader expects a feature to be stored."""
    if entry["dtype"] == "image":
        return IMAGE_TYPE
    kind = {"float32": pa.float32(), "float64": pa.float64(), "bool": pa.bool_()}.get(
        entry["dtype"]
    ) or pa.type_for_alias(entry["dtype"])
    shape = tuple(entry["shape"])
    if shape == (1,):
        return kind
    if len(shape) == 1:
        return pa.list_(kind, shape[0])
    for _ in shape:
        kind = pa.list_(kind)
    return kind


class LeRobotV3Writer:
    """Rows in, a whole dataset folder out; `close` writes `meta/`, last."""

    def __init__(self, folder: Path, description: DatasetDescription) -> None:
        self._folder = folder
        self._description = description
        bookkeeping = {name: feature(dtype, [1]) for name, dtype in BOOKKEEPING.items()}
        self.features = {**description.features, **bookkeeping}
        stored = {k: v for k, v in self.features.items() if v["dtype"] != "video"}
        self._schema = pa.schema([(name, arrow_type(entry)) for name, entry in stored.items()])
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._statistics = FeatureStatistics(self.features)
        self._rows = 0
        self._file_index = -1
        self._writer: pq.ParquetWriter | None = None
        self._path = folder
        self._start_row = 0
        self._start_tasks: list[str] = []

    @property
    def rows(self) -> int:
        """Rows written."""
        return self._rows

    def write(
        self, columns: Mapping[str, pa.Array], tasks: Sequence[str], timestamp_s: pa.Array
    ) -> None:
        """The next rows of the current episode; `tasks` has one text per row."""
        rows = len(tasks)
        if self._writer is None:
            self._open_file()
        assert self._writer is not None
        first = self._rows - self._start_row
        numbers = np.arange(rows, dtype=np.int64)
        indices = [self._tasks.setdefault(task, len(self._tasks)) for task in tasks]
        known = {
            **columns,
            TIMESTAMP: timestamp_s,
            FRAME_INDEX: pa.array(numbers + first),
            EPISODE_INDEX: pa.array(np.full(rows, len(self._episodes), np.int64)),
            INDEX: pa.array(numbers + self._rows),
            TASK_INDEX: pa.array(indices, pa.int64()),
        }
        table = pa.Table.from_arrays(
            [known[name].cast(self._schema.field(name).type) for name in self._schema.names],
            schema=self._schema,
        )
        self._writer.write_table(table)
        self._statistics.add(table)
        self._start_tasks += [t for t in dict.fromkeys(tasks) if t not in self._start_tasks]
        self._rows += rows

    def end_episode(self, videos: Mapping[str, VideoSlice] | None = None) -> None:
        """The episode is complete; the next row belongs to another one."""
        place = {"data/chunk_index": self._file_index // CHUNK_SIZE}
        place["data/file_index"] = self._file_index % CHUNK_SIZE
        entry: dict[str, Any] = {
            "episode_index": len(self._episodes),
            "tasks": self._start_tasks,
            "length": self._rows - self._start_row,
            **place,
            "dataset_from_index": self._start_row,
            "dataset_to_index": self._rows,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for key, video in (videos or {}).items():
            entry[f"videos/{key}/chunk_index"] = video.chunk_index
            entry[f"videos/{key}/file_index"] = video.file_index
            entry[f"videos/{key}/from_timestamp"] = video.from_s
            entry[f"videos/{key}/to_timestamp"] = video.to_s
        self._episodes.append(entry)
        self._start_row, self._start_tasks = self._rows, []
        if self._path.stat().st_size >= FILE_MB * 2**20:
            self._close_file()

    def close(self) -> None:
        """Write everything under `meta/`."""
        self._close_file()
        (self._folder / EPISODES_PATH).parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._episodes), self._folder / EPISODES_PATH)
        self._write_tasks()
        statistics = json.dumps(self._statistics.to_json(), indent=4)
        (self._folder / "meta" / "stats.json").write_text(statistics)
        info = json.dumps(self._info(), indent=4)
        (self._folder / "meta" / "info.json").write_text(info)

    def _write_tasks(self) -> None:
        """LeRobot looks tasks up by the pandas index of this table."""
        tasks = pa.array(self._tasks, pa.string())
        table = pa.table({"task_index": pa.array(self._tasks.values(), pa.int64()), "task": tasks})
        pandas = {
            "index_columns": ["task"],
            "columns": [_pandas_column("task_index", "int64"), _pandas_column("task", "str")],
            "column_indexes": [],
        }
        metadata = {b"pandas": json.dumps(pandas).encode()}
        pq.write_table(
            table.replace_schema_metadata(metadata), self._folder / "meta" / "tasks.parquet"
        )

    def _info(self) -> dict[str, Any]:
        has_video = any(entry["dtype"] == "video" for entry in self.features.values())
        return {
            "codebase_version": VERSION,
            "robot_type": self._description.robot_type,
            "total_episodes": len(self._episodes),
            "total_frames": self._rows,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_SIZE,
            "data_files_size_in_mb": FILE_MB,
            "video_files_size_in_mb": 200,
            "fps": int(self._description.fps),
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if has_video else None,
            "features": self.features,
            **self._description.extra_info,
        }

    def _open_file(self) -> None:
        self._file_index += 1
        name = DATA_PATH.format(
            chunk_index=self._file_index // CHUNK_SIZE, file_index=self._file_index % CHUNK_SIZE
        )
        self._path = self._folder / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._path, self._schema, compression="snappy")

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


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


class FeatureStatistics:
    """Numbers are kept (4 to 8 bytes each) because quantiles need them; images only as running sums."""

    def __init__(self, features: Mapping[str, Mapping[str, Any]]) -> None:
        numeric = [k for k, v in features.items() if v["dtype"] not in ("image", "video", "string")]
        self._values: dict[str, list[NDArray[Any]]] = {name: [] for name in numeric}
        self._images = {k: _ImageSums() for k, v in features.items() if v["dtype"] == "image"}
        self._seen = 0

    def add(self, table: pa.Table) -> None:
        """The next rows."""
        for name, parts in self._values.items():
            rows = _as_rows(table[name])
            # NaN means "not found": a quantile over the rest is what a normaliser wants.
            finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
            parts.append(rows[finite])
        first = -self._seen % IMAGE_STATISTICS_EVERY
        for name, sums in self._images.items():
            for row in range(first, table.num_rows, IMAGE_STATISTICS_EVERY):
                sums.add(decode_image(table[name][row].as_py()["bytes"]))
        self._seen += table.num_rows

    def to_json(self) -> dict[str, Any]:
        """The content of `meta/stats.json`."""
        values = {name: np.concatenate(parts) for name, parts in self._values.items()}
        numeric = {name: lerobot_statistics(rows) for name, rows in values.items() if len(rows)}
        return numeric | {name: sums.to_json() for name, sums in self._images.items()}


def _as_rows(column: pa.ChunkedArray) -> NDArray[Any]:
    array = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        return fixed_array(array)
    while pa.types.is_list(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False).reshape(len(column), -1)


class _ImageSums:
    """Per-channel minimum, maximum, mean and deviation of values in 0..1."""

    def __init__(self) -> None:
        self.count = 0
        self.frames = 0
        self.low, self.high = np.full(3, np.inf), np.full(3, -np.inf)
        self.sum, self.square = np.zeros(3), np.zeros(3)

    def add(self, rgb_HWC: NDArray[np.uint8]) -> None:
        pixels = rgb_HWC.reshape(-1, 3).astype(np.float64) / 255
        self.count += len(pixels)
        self.frames += 1
        self.low = np.minimum(self.low, pixels.min(axis=0))
        self.high = np.maximum(self.high, pixels.max(axis=0))
        self.sum += pixels.sum(axis=0)
        self.square += np.square(pixels).sum(axis=0)

    def to_json(self) -> dict[str, Any]:
        mean = self.sum / self.count
        deviation = np.sqrt(np.maximum(self.square / self.count - mean**2, 0))
        values = {"min": self.low, "max": self.high, "mean": mean, "std": deviation}
        return {k: v.reshape(3, 1, 1).tolist() for k, v in values.items()} | {
            "count": [self.frames]
        }
