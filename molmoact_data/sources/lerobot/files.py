"""Where LeRobot keeps what, in both layouts: the names that the reader looks for and our writer makes.

v2.1 has one Parquet file per episode and one video per episode and camera; its metadata are JSON lines.
v3.0 puts many episodes into a file; its metadata are Parquet tables.
"""

from __future__ import annotations

from typing import Literal

Version = Literal["v2.1", "v3.0"]
CHUNK_SIZE = 1000
"""Files in one folder `chunk-NNN`."""

INFO_FILE = "meta/info.json"
STATISTICS_FILE = "meta/stats.json"

V2_DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
V2_EPISODES_FILE = "meta/episodes.jsonl"
V2_TASKS_FILE = "meta/tasks.jsonl"
V2_STATISTICS_FILE = "meta/episodes_stats.jsonl"

V3_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
V3_EPISODES_FOLDER = "meta/episodes"
V3_TASKS_FILE = "meta/tasks.parquet"

FILE_IN_CHUNK = ("chunk_index", "file_index")
"""Keys of the place of a v3.0 file."""


def data_template(version: str) -> str:
    """Path of the rows: of an episode in v2.x, of many in v3.0."""
    return V3_DATA_PATH if version == "v3.0" else V2_DATA_PATH


def video_template(version: str) -> str:
    """Path of one camera's frames."""
    return V3_VIDEO_PATH if version == "v3.0" else V2_VIDEO_PATH


def data_path(version: str, number: int) -> str:
    """Of file `number` (v3.0) or episode `number` (v2.1), from 0."""
    return data_template(version).format(**_place(number))


def video_path(version: str, camera: str, number: int) -> str:
    """Of file `number` (v3.0) or episode `number` (v2.1), from 0."""
    return video_template(version).format(video_key=camera, **_place(number))


def file_in_chunk(number: int) -> dict[str, int]:
    """The place of file `number`, by `FILE_IN_CHUNK`."""
    return dict(zip(FILE_IN_CHUNK, divmod(number, CHUNK_SIZE), strict=True))


def _place(number: int) -> dict[str, int]:
    return {
        "episode_chunk": number // CHUNK_SIZE,
        "episode_index": number,
        **file_in_chunk(number),
    }
