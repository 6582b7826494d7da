"""The dataset around the three companion columns: an extended copy of a v3.0 source, or a v3.0 made of another.

Videos are linked, not copied.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.exporters.lerobot.metadata import DatasetDescription, feature
from molmoact_data.exporters.lerobot.statistics import FeatureStatistics
from molmoact_data.exporters.lerobot.writer import EPISODE_INDEX, LeRobotWriter
from molmoact_data.labels.depth_memory import BufferedCodes
from molmoact_data.pictures.images import encode_png
from molmoact_data.sources.base import EpisodeRef, EpisodeSource
from molmoact_data.sources.lerobot import files
from molmoact_data.sources.lerobot.source import LeRobotSource

CODES = 100
FRAMES_PER_BATCH = 64
STATE_KEY = "observation.state"


@dataclass(frozen=True)
class CompanionColumns:
    """The three columns of some consecutive frames."""

    codes_TG: NDArray[np.integer]
    buffered: BufferedCodes

    def columns(self) -> dict[str, pa.Array]:
        """As Arrow lists."""
        codes, mask = pa.list_(pa.int16(), CODES), pa.list_(pa.bool_(), CODES)
        return {
            schema.DEPTH_CODES: pa.array(self.codes_TG.tolist(), codes),
            schema.BUFFER_CODES: pa.array(self.buffered.buffer_TG.tolist(), codes),
            schema.DEPTH_UPDATED_MASK: pa.array(self.buffered.updated_TG.tolist(), mask),
        }


EpisodeColumnsOf = Callable[[EpisodeRef], Iterator[CompanionColumns]]


def companion_features() -> dict[str, Any]:
    """The three more features of `info.json`."""
    return {
        schema.DEPTH_CODES: feature("int16", [CODES]),
        schema.BUFFER_CODES: feature("int16", [CODES]),
        schema.DEPTH_UPDATED_MASK: feature("bool", [CODES]),
    }


def extend_v3(
    root: Path, folder: Path, columns_of: EpisodeColumnsOf, extra_info: Mapping[str, Any]
) -> int:
    """Copy `meta/` and `data/` with three more columns; link `videos/`. Numbers get exact quantiles."""
    shutil.copytree(root / "meta", folder / "meta")
    if (root / "videos").is_dir():
        os.symlink((root / "videos").resolve(), folder / "videos", target_is_directory=True)
    info = json.loads((root / files.INFO_FILE).read_text())
    info["features"] |= companion_features()
    info |= extra_info
    numeric = {k: v for k, v in info["features"].items() if v["dtype"] not in ("image", "video")}
    statistics, rows = FeatureStatistics(numeric), 0
    for path in sorted((root / "data").rglob("*.parquet")):
        rows += _extend_file(path, folder / path.relative_to(root), columns_of, statistics)
    _replace_statistics(folder / files.STATISTICS_FILE, statistics)
    (folder / files.INFO_FILE).write_text(json.dumps(info, indent=4))
    return rows


def _replace_statistics(path: Path, exact: FeatureStatistics) -> None:
    """Exact numbers over those of the source, which may be estimates; what it says of pictures stays."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | exact.to_json(), indent=4))


def _extend_file(
    path: Path, target: Path, columns_of: EpisodeColumnsOf, statistics: FeatureStatistics
) -> int:
    """One data file, row group by row group; its episodes are consecutive."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetFile(path) as file:
        episodes = file.read(columns=[EPISODE_INDEX])[EPISODE_INDEX].to_pylist()
        counts: dict[int, int] = {}
        for episode in episodes:
            counts[episode] = counts.get(episode, 0) + 1
        rows = _RowStream(
            part.columns() for e, n in counts.items() for part in columns_of(EpisodeRef(e, n))
        )
        writer: pq.ParquetWriter | None = None
        for batch in file.iter_batches(batch_size=4096):
            table = pa.Table.from_batches([batch])
            ours = [name for name in companion_features() if name in table.column_names]
            table = table.drop_columns(ours)
            for name, array in rows.take(table.num_rows).items():
                table = table.append_column(name, array)
            writer = writer or pq.ParquetWriter(target, table.schema)
            writer.write_table(table)
            statistics.add(table)
        if writer is not None:
            writer.close()
    return len(episodes)


class _RowStream:
    """Batches of columns, taken in portions of any size."""

    def __init__(self, parts: Iterator[dict[str, pa.Array]]) -> None:
        self._parts = parts
        self._rest: pa.Table | None = None

    def take(self, rows: int) -> dict[str, pa.Array]:
        """The next `rows` rows. Raises `UserError` where frames run out before rows do."""
        waiting = [] if self._rest is None else [self._rest]
        have = sum(table.num_rows for table in waiting)
        while have < rows:
            part = next(self._parts, None)
            if part is None:
                raise UserError("the video has fewer frames than the data file has rows.")
            waiting.append(pa.table(part))
            have += waiting[-1].num_rows
        table = pa.concat_tables(waiting).combine_chunks()
        self._rest = table.slice(rows)
        taken = table.slice(0, rows).combine_chunks()
        return {name: taken[name] for name in taken.column_names}


def convert_to_v3(
    source: EpisodeSource,
    folder: Path,
    columns_of: EpisodeColumnsOf,
    extra_info: Mapping[str, Any],
    cameras: Collection[str],
) -> int:
    """Rows of a v2.x or RLDS source as v3.0, one v3.0 video file per linked episode video.

    Of stored images those of `cameras` are kept: others may be placeholders in some episodes.
    """
    features = {**_source_features(source, cameras), **companion_features()}
    info = DatasetDescription(source.info.fps, source.info.robot_type, features, extra_info)
    writer = LeRobotWriter(folder, info)
    for ref in source.episodes:
        _write_episode(source, ref, columns_of, writer, _stored_images(source, cameras))
        _link_videos(source, ref, writer)
        writer.end_episode()
    writer.close()
    return writer.rows


def _stored_images(source: EpisodeSource, cameras: Collection[str]) -> list[str]:
    stored = [c.key for c in source.info.cameras if c.storage == "image" and not c.is_depth]
    return [key for key in stored if key in cameras]


def _source_features(source: EpisodeSource, cameras: Collection[str]) -> dict[str, Any]:
    features: dict[str, Any] = {"action": feature("float32", [source.info.action_dim])}
    if source.info.state_dim is not None:
        features[STATE_KEY] = feature("float32", [source.info.state_dim])
    for camera in source.info.cameras:
        if camera.key in cameras or (camera.storage == "video" and not camera.is_depth):
            shape, names = [camera.height, camera.width, 3], ["height", "width", "channels"]
            features[camera.key] = feature(camera.storage, shape, names)
    return features


def _write_episode(
    source: EpisodeSource,
    ref: EpisodeRef,
    columns_of: EpisodeColumnsOf,
    writer: LeRobotWriter,
    stored: list[str],
) -> None:
    numbers = source.read_columns(ref)
    start = 0
    images = _images(source, ref, stored)
    for part in columns_of(ref):
        rows = slice(start, start + len(part.codes_TG))
        columns = {
            "action": _lists(numbers.action[rows]),
            **({} if numbers.state is None else {STATE_KEY: _lists(numbers.state[rows])}),
            **part.columns(),
            **(next(images) if stored else {}),
        }
        timestamps = pa.array(numbers.timestamp_s[rows])
        writer.write(columns, list(numbers.instructions[rows]), timestamps)
        start = rows.stop


def _images(
    source: EpisodeSource, ref: EpisodeRef, keys: list[str]
) -> Iterator[dict[str, pa.Array]]:
    """The stored images in the batches in which the companion columns come; own bytes where there are any."""
    if not keys:
        return
    for batch in source.iter_frames(ref, keys, FRAMES_PER_BATCH):
        columns = {}
        for key in keys:
            frames = batch[key]
            encoded = frames.encoded or [encode_png(rgb) for rgb in frames.rgb_NHWC]
            columns[key] = pa.array(
                [{"bytes": image, "path": None} for image in encoded], schema.IMAGE_TYPE
            )
        yield columns


def _lists(values_TD: Any) -> pa.Array:
    if values_TD.shape[1] == 1:
        return pa.array(values_TD[:, 0])
    flat = pa.array(values_TD.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values_TD.shape[1])


def _link_videos(source: EpisodeSource, ref: EpisodeRef, writer: LeRobotWriter) -> None:
    """A v2.x dataset has one video per episode and camera; each becomes a v3.0 file of one episode."""
    for camera in source.info.cameras:
        if camera.storage == "video" and not camera.is_depth:
            assert isinstance(source, LeRobotSource), "no other source keeps videos in files"
            original = source.video_file(ref, camera.key)
            os.symlink(original.resolve(), writer.video_file(camera.key))
