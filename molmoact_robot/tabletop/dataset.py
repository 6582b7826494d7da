"""Episodes -> a LeRobot dataset, v2.1 or v3.0, with columns of ground truth.

Beside what LeRobot asks for there is `meta/cameras.jsonl`: one line per episode and camera.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from molmoact_data.errors import UserError
from molmoact_data.exporters.lerobot.metadata import DatasetDescription, feature
from molmoact_data.exporters.lerobot.writer import LeRobotWriter
from molmoact_data.files.folders import new_folder
from molmoact_data.pictures.film import write_video
from molmoact_data.schema import IMAGE_TYPE
from molmoact_data.sources.lerobot.files import Version
from molmoact_robot.tabletop.control import ACTION_NAMES, CONTROL_HZ, STATE_NAMES
from molmoact_robot.tabletop.episodes import Episode
from molmoact_robot.tabletop.view import depth_to_u16

CAMERAS_FILE = "meta/cameras.jsonl"
FRONT = "observation.images.front"
WRIST = "observation.images.wrist"
DEPTH = "observation.depth.front"
GRIPPER_PIXEL = "observation.gripper_pixel"
GRIPPER_VISIBLE = "observation.gripper_visible"
SUCCESS = "next.success"


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
    with new_folder(root, overwrite=False) as folder:
        writer: LeRobotWriter | None = None
        lines: list[dict[str, Any]] = []
        for number, episode in enumerate(episodes):
            writer = writer or LeRobotWriter(folder, _description(episode, config), config.version)
            _write_episode(writer, episode, config)
            lines += _camera_lines(number, episode)
        if writer is None:
            raise UserError(f"no episode to write into {root}")
        writer.close()
        (folder / CAMERAS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return writer.rows


def _description(episode: Episode, config: WriteConfig) -> DatasetDescription:
    image_hw = episode.steps[0].observation.front_depth_HW.shape
    return DatasetDescription(CONTROL_HZ, "simulated_panda", features(image_hw, depth=config.depth))


def features(image_hw: Sequence[int], *, depth: bool) -> dict[str, Any]:
    """The `features` of info.json; units are stated where LeRobot leaves them open."""
    size, names = list(image_hw), ["height", "width", "channel"]
    out = {
        key: {**feature("video", [*size, 3], names), "info": _video_info(*size)}
        for key in (FRONT, WRIST)
    }
    if depth:
        unit = {"unit": "0.5 mm along the optical axis", "encoding": "16-bit PNG"}
        out[DEPTH] = {**feature("image", [*size, 1], names), "info": unit}
    out["observation.state"] = _named("float32", STATE_NAMES)
    out["action"] = _named("float32", ACTION_NAMES)
    unit = {"unit": "pixel index of the front camera, unit coordinate = index / (size - 1)"}
    out[GRIPPER_PIXEL] = {**_named("float32", ("column", "row")), "info": unit}
    return {**out, GRIPPER_VISIBLE: feature("bool", [1]), SUCCESS: feature("bool", [1])}


def _named(dtype: str, names: Sequence[str]) -> dict[str, Any]:
    return feature(dtype, [len(names)], {"axes": list(names)})


def _video_info(height: int, width: int) -> dict[str, Any]:
    about = {
        "height": height,
        "width": width,
        "channels": 3,
        "codec": "h264",
        "fps": CONTROL_HZ,
        "pix_fmt": "yuv420p",
        "is_depth_map": False,
    }
    return {**{f"video.{name}": value for name, value in about.items()}, "has_audio": False}


def _write_episode(writer: LeRobotWriter, episode: Episode, config: WriteConfig) -> None:
    count = len(episode.steps)
    time_s = pa.array((np.arange(count) / CONTROL_HZ).astype(np.float32))
    columns = episode_columns(episode, depth=config.depth)
    writer.write(columns, [episode.task.instruction] * count, time_s)
    videos = {
        FRONT: np.stack([s.observation.front_rgb_HWC for s in episode.steps]),
        WRIST: np.stack([s.observation.wrist_rgb_HWC for s in episode.steps]),
    }
    # One thread: same frames, same bytes.
    encoder = {
        "crf": str(config.crf),
        "g": str(config.gop),
        "preset": "slow",
        "threads": "1",
    }
    for key, rgb_THWC in videos.items():
        write_video(writer.video_file(key, rgb_THWC), rgb_THWC, CONTROL_HZ, encoder)
    writer.end_episode({"success": episode.success})


def episode_columns(episode: Episode, *, depth: bool) -> dict[str, pa.Array]:
    """The recorded columns, T rows each, without LeRobot's own indices; depth as PNG bytes."""
    seen = [s.observation for s in episode.steps]
    columns = {
        "observation.state": _lists(np.stack([o.state for o in seen])),
        "action": _lists(np.stack([s.action for s in episode.steps])),
        GRIPPER_PIXEL: _lists(np.stack([o.grip_pixel_2 for o in seen])),
        GRIPPER_VISIBLE: pa.array([o.grip_visible for o in seen]),
        SUCCESS: pa.array([s.success for s in episode.steps]),
    }
    if depth:
        rows = [{"bytes": encode_depth_png(o.front_depth_HW), "path": None} for o in seen]
        columns[DEPTH] = pa.array(rows, IMAGE_TYPE)
    return columns


def encode_depth_png(depth_HW: NDArray[np.float32]) -> bytes:
    """Metres -> 16-bit grey PNG in steps of 0.5 mm."""
    buffer = io.BytesIO()
    Image.fromarray(depth_to_u16(depth_HW)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _lists(values_TD: NDArray[Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_TD.reshape(-1)), values_TD.shape[1])


def _camera_lines(number: int, episode: Episode) -> Sequence[dict[str, Any]]:
    """Front: world to camera. Wrist: it moves with the hand, so its place on the hand."""
    front = {"episode_index": number, "camera": FRONT, **episode.front_camera.to_json()}
    wrist = {"episode_index": number, "camera": WRIST, "on_hand": asdict(episode.look.wrist)}
    return front, wrist
