"""Episodes -> a LeRobot dataset, v2.1 or v3.0, with ground-truth columns.

Written by hand (pyarrow and PyAV) so that it needs no LeRobot; LeRobot reads it (tested).
Beside what LeRobot asks for there is `meta/cameras.jsonl`: one line per episode and camera.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from molmoact_data.errors import UserError
from molmoact_robot.tabletop import lerobot_meta as meta
from molmoact_robot.tabletop.control import CONTROL_HZ
from molmoact_robot.tabletop.episodes import Episode
from molmoact_robot.tabletop.view import depth_to_u16

CAMERAS_FILE = "meta/cameras.jsonl"
Version = Literal["v2.1", "v3.0"]


@dataclass(frozen=True)
class WriteConfig:
    """Form of the dataset on disk."""

    version: Version = "v3.0"
    depth: bool = True
    """Store `observation.depth.front` (about 7 kB per frame at 256x256)."""
    crf: int = 23
    """H.264 quality, smaller is better."""
    gop: int = 30
    """Frames between key frames."""


def write_dataset(root: Path, episodes: Iterable[Episode], config: WriteConfig) -> int:
    """Write into `root`, which must not exist, one episode in memory at a time; returns the frames written."""
    if root.exists():
        raise UserError(
            f"{root} exists; datasets are never overwritten. Remove it or choose another"
        )
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    records: list[meta.EpisodeRecord] = []
    cameras: list[dict[str, Any]] = []
    for number, episode in enumerate(episodes):
        first = sum(r.length for r in records)
        task_index = meta.task_number(records, episode.task.instruction)
        record = _write_episode(partial, number, first, task_index, episode, config)
        records.append(record)
        cameras += _camera_lines(number, episode)
    image_hw = episode.steps[0].observation.front_depth_HW.shape
    meta.write(partial, records, meta.features(image_hw, depth=config.depth), config.version)
    lines = (json.dumps(line) + "\n" for line in cameras)
    (partial / CAMERAS_FILE).write_text("".join(lines))
    partial.rename(root)
    return sum(r.length for r in records)


def _write_episode(
    root: Path, number: int, first: int, task_index: int, episode: Episode, config: WriteConfig
) -> meta.EpisodeRecord:
    columns = episode_columns(episode, depth=config.depth)
    count = len(episode.steps)
    frame_index = np.arange(count)
    columns["timestamp"] = (frame_index / CONTROL_HZ).astype(np.float32)
    columns["frame_index"] = frame_index
    columns["episode_index"] = np.full(count, number)
    columns["index"] = first + frame_index
    columns["task_index"] = np.full(count, task_index)
    path = root / meta.data_path(config.version, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(_table(columns), path, compression="zstd", compression_level=9)
    videos = {
        meta.FRONT: np.stack([s.observation.front_rgb_HWC for s in episode.steps]),
        meta.WRIST: np.stack([s.observation.wrist_rgb_HWC for s in episode.steps]),
    }
    for key, frames in videos.items():
        path = root / meta.video_path(config.version, key, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_h264(path, frames, crf=config.crf, gop=config.gop)
    numeric = {k: v for k, v in columns.items() if k != meta.DEPTH}
    return meta.EpisodeRecord(
        index=number,
        length=count,
        first_frame=first,
        instruction=episode.task.instruction,
        task_index=task_index,
        success=episode.success,
        statistics=meta.statistics(numeric, videos),
    )


def episode_columns(episode: Episode, *, depth: bool) -> dict[str, Any]:
    """The recorded columns [T, ...], without LeRobot's own indices; depth as PNG bytes."""
    seen = [s.observation for s in episode.steps]
    columns: dict[str, Any] = {
        "observation.state": np.stack([o.state for o in seen]),
        "action": np.stack([s.action for s in episode.steps]),
        meta.GRIPPER_PIXEL: np.stack([o.grip_pixel_2 for o in seen]),
        meta.GRIPPER_VISIBLE: np.array([o.grip_visible for o in seen]),
        meta.SUCCESS: np.array([s.success for s in episode.steps]),
    }
    if depth:
        columns[meta.DEPTH] = [encode_depth_png(o.front_depth_HW) for o in seen]
    return columns


def encode_depth_png(depth_HW: NDArray[np.float32]) -> bytes:
    """Metres -> 16-bit grey PNG in steps of 0.5 mm."""
    buffer = io.BytesIO()
    Image.fromarray(depth_to_u16(depth_HW)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_h264(path: Path, rgb_THWC: NDArray[np.uint8], *, crf: int, gop: int) -> None:
    """yuv420p mp4 at the control rate, one thread: same frames, same bytes."""
    _, height, width, _ = rgb_THWC.shape
    options = {"crf": str(crf), "g": str(gop), "preset": "slow", "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=CONTROL_HZ, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for rgb in rgb_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))


def _table(columns: dict[str, Any]) -> pa.Table:
    arrays = {k: _arrow(v) for k, v in columns.items() if k != meta.DEPTH}
    if meta.DEPTH in columns:
        rows = [{"bytes": png, "path": None} for png in columns[meta.DEPTH]]
        arrays[meta.DEPTH] = pa.array(rows, meta.IMAGE_TYPE)
    return pa.table(arrays)


def _arrow(values: NDArray[Any]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(values.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _camera_lines(number: int, episode: Episode) -> Sequence[dict[str, Any]]:
    """Front: world to camera. Wrist: it moves with the hand, so its place on the hand."""
    front = {"episode_index": number, "camera": meta.FRONT, **episode.front_camera.to_json()}
    wrist = {"episode_index": number, "camera": meta.WRIST, "on_hand": asdict(episode.look.wrist)}
    return front, wrist
