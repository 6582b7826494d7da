"""Write a LeRobot dataset, v3.0 or v2.1, episode after episode, in bounded memory and without LeRobot.

Images are stored as their own encoded bytes; videos are named, and made or linked by whoever has them. v3.0 puts
episodes together in files of about 100 MB; videos are one file per episode and camera in both layouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from molmoact_data.exporters.lerobot.metadata import (
    FILE_MB,
    DatasetDescription,
    EpisodeRecord,
    feature,
    write_metadata,
)
from molmoact_data.exporters.lerobot.statistics import FeatureStatistics
from molmoact_data.schema import IMAGE_TYPE
from molmoact_data.sources.lerobot import files
from molmoact_data.sources.lerobot.files import Version

TIMESTAMP, FRAME_INDEX, EPISODE_INDEX = "timestamp", "frame_index", "episode_index"
INDEX, TASK_INDEX = "index", "task_index"
BOOKKEEPING: Mapping[str, str] = {
    TIMESTAMP: "float32",
    FRAME_INDEX: "int64",
    EPISODE_INDEX: "int64",
    INDEX: "int64",
    TASK_INDEX: "int64",
}


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


class LeRobotWriter:
    """Rows in, a whole dataset folder out; `close` writes `meta/`, last."""

    def __init__(
        self, folder: Path, description: DatasetDescription, version: Version = "v3.0"
    ) -> None:
        self._folder = folder
        self._description = description
        self._version = version
        bookkeeping = {name: feature(dtype, [1]) for name, dtype in BOOKKEEPING.items()}
        self.features = {**description.features, **bookkeeping}
        stored = {k: v for k, v in self.features.items() if v["dtype"] != "video"}
        self._schema = pa.schema([(name, arrow_type(entry)) for name, entry in stored.items()])
        self._tasks: dict[str, int] = {}
        self._episodes: list[EpisodeRecord] = []
        self._statistics = FeatureStatistics(self.features)
        self._rows = 0
        self._num_files = 0
        self._writer: pq.ParquetWriter | None = None
        self._path = folder
        self._begin_episode()

    def _begin_episode(self) -> None:
        self._first_row = self._rows
        self._episode_tasks: list[str] = []
        self._cameras: list[str] = []

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
        first = self._rows - self._first_row
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
        self._episode_tasks += [t for t in dict.fromkeys(tasks) if t not in self._episode_tasks]
        self._rows += rows

    def video_file(self, camera: str, rgb_THWC: NDArray[np.uint8] | None = None) -> Path:
        """Where the frames of the current episode belong, for the caller to make or link.

        `rgb_THWC`, uint8, are the frames where they are at hand: the metadata then have their statistics.
        """
        path = self._folder / files.video_path(self._version, camera, len(self._episodes))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._cameras.append(camera)
        if rgb_THWC is not None:
            self._statistics.add_frames(camera, rgb_THWC)
        return path

    def end_episode(self, facts: Mapping[str, Any] | None = None) -> None:
        """The episode is complete; the next row belongs to another one. `facts` = more columns of its metadata."""
        statistics = None
        if self._version == "v2.1":
            statistics = self._statistics.to_json()
            self._statistics = FeatureStatistics(self.features)
        self._episodes.append(
            EpisodeRecord(
                index=len(self._episodes),
                tasks=self._episode_tasks,
                first_row=self._first_row,
                length=self._rows - self._first_row,
                data_file=self._num_files - 1,
                cameras=self._cameras,
                facts=facts or {},
                statistics=statistics,
            )
        )
        self._begin_episode()
        if self._version == "v2.1" or self._path.stat().st_size >= FILE_MB * 2**20:
            self._close_file()

    def close(self) -> None:
        """Write everything under `meta/`."""
        self._close_file()
        write_metadata(
            self._folder,
            self._version,
            self._description,
            features=self.features,
            tasks=self._tasks,
            episodes=self._episodes,
            statistics=self._statistics.to_json(),
        )

    def _open_file(self) -> None:
        self._path = self._folder / files.data_path(self._version, self._num_files)
        self._num_files += 1
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._path, self._schema, compression="snappy")

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
