"""Small LeRobot datasets made on the spot, so that tests can break them in any way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from molmoact_data.sources.base import EpisodeSource

FRONT = "observation.images.front"
WRIST = "observation.images.wrist"
FPS = 10


def moving_square(num_frames: int, seed: int, size: int = 64) -> NDArray[np.uint8]:
    """RGB [T,size,size,3]: a bright square that wanders over a fixed texture."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
    frames = np.repeat(texture[None], num_frames, axis=0)
    for t, (x, y) in enumerate(square_path(num_frames, seed, size)):
        frames[t, y : y + 8, x : x + 8] = (250, 220, 40)
    return frames


def square_path(num_frames: int, seed: int, size: int = 64) -> NDArray[np.int64]:
    """Top-left corner (x, y) of the square in every frame [T,2]."""
    phase = np.linspace(0, 2, num_frames) + seed
    xy = np.stack([np.sin(phase), np.cos(1.3 * phase)], axis=1)
    return ((xy + 1) / 2 * (size - 9)).astype(np.int64)


def write_video(path: Path, rgb_NHWC: NDArray[np.uint8]) -> None:
    """H.264 as LeRobot stores it, short key-frame distance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=FPS, options={"g": "8", "crf": "20"})
        stream.height, stream.width = rgb_NHWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for rgb in rgb_NHWC:
            for packet in stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def video_path(root: Path, episode: int, camera: str = FRONT) -> Path:
    """Where the video of one episode is."""
    return root / f"videos/chunk-000/{camera}/episode_{episode:06d}.mp4"


def rows_path(root: Path, episode: int) -> Path:
    """Where the rows of one episode are."""
    return root / f"data/chunk-000/episode_{episode:06d}.parquet"


def episode_rows(
    episode: int, num_frames: int, action_dim: int, first_index: int, size: int = 64
) -> pa.Table:
    """Rows as LeRobot v2.1 stores them, with the true square centre as `gripper_xy` in pixels."""
    rng = np.random.default_rng(1000 + episode)
    action = np.cumsum(rng.normal(0, 0.1, (num_frames, action_dim)), axis=0).astype(np.float32)
    action[:, -1] = (np.arange(num_frames) > num_frames // 2).astype(np.float32)
    centre = (square_path(num_frames, episode, size) + 3.5).astype(np.float32)
    return pa.table(
        {
            "action": pa.array(list(action), pa.list_(pa.float32())),
            "observation.state": pa.array(list(action[:, :3]), pa.list_(pa.float32())),
            "gripper_xy": pa.array(list(centre), pa.list_(pa.float32())),
            "timestamp": pa.array(np.arange(num_frames) / FPS, pa.float32()),
            "frame_index": pa.array(np.arange(num_frames), pa.int64()),
            "episode_index": pa.array(np.full(num_frames, episode), pa.int64()),
            "index": pa.array(first_index + np.arange(num_frames), pa.int64()),
            "task_index": pa.array(np.zeros(num_frames), pa.int64()),
        }
    )


def make_dataset(
    root: Path,
    lengths: Sequence[int] = (24, 17, 30),
    cameras: Sequence[str] = (FRONT,),
    action_dim: int = 7,
    size: int = 64,
) -> Path:
    """A sound dataset in `root`; returns `root`."""
    meta = root / "meta"
    meta.mkdir(parents=True)
    for episode, length in enumerate(lengths):
        rows = episode_rows(episode, length, action_dim, sum(lengths[:episode]), size)
        rows_path(root, episode).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, rows_path(root, episode))
        for number, camera in enumerate(cameras):
            frames = moving_square(length, episode + 100 * number, size)
            write_video(video_path(root, episode, camera), frames)
    (meta / "info.json").write_text(json.dumps(_info(lengths, cameras, action_dim, size), indent=2))
    task = "push the yellow square"
    (meta / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": task}) + "\n")
    (meta / "episodes.jsonl").write_text(
        "".join(
            json.dumps({"episode_index": i, "tasks": [task], "length": n}) + "\n"
            for i, n in enumerate(lengths)
        )
    )
    return root


def make_v3_dataset(
    root: Path, lengths: Sequence[int] = (24, 17, 30), per_file: int = 2, size: int = 64
) -> Path:
    """The episodes of `make_dataset` as v3.0: `per_file` of them in every Parquet and every mp4."""
    episodes = []
    for file, first in enumerate(range(0, len(lengths), per_file)):
        here = range(first, min(first + per_file, len(lengths)))
        rows = [episode_rows(e, lengths[e], 7, sum(lengths[:e]), size) for e in here]
        data = root / f"data/chunk-000/file-{file:03d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(rows), data)
        frames = np.concatenate([moving_square(lengths[e], e, size) for e in here])
        write_video(root / f"videos/{FRONT}/chunk-000/file-{file:03d}.mp4", frames)
        at = 0
        for e in here:
            where = {"chunk_index": 0, "file_index": file}
            span = {"from_timestamp": at / FPS, "to_timestamp": (at + lengths[e]) / FPS}
            episodes.append(
                {"episode_index": e, "length": lengths[e], "tasks": ["push the yellow square"]}
                | {f"data/{k}": v for k, v in where.items()}
                | {f"videos/{FRONT}/{k}": v for k, v in (where | span).items()}
            )
            at += lengths[e]
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(episodes), root / "meta/episodes/chunk-000/file-000.parquet"
    )
    tasks = pa.table({"task_index": [0], "task": ["push the yellow square"]})
    pq.write_table(tasks, root / "meta/tasks.parquet")
    info = _info(lengths, (FRONT,), 7, size)
    info |= {"codebase_version": "v3.0"}
    del info["data_path"], info["video_path"]
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def _info(lengths: Sequence[int], cameras: Sequence[str], action_dim: int, size: int) -> dict:
    def numeric(shape: int, dtype: str = "float32") -> dict:
        return {"dtype": dtype, "shape": [shape], "names": None}

    features = {camera: _camera_feature(size) for camera in cameras}
    features |= {
        "action": numeric(action_dim),
        "observation.state": numeric(3),
        "gripper_xy": numeric(2),
        "timestamp": numeric(1),
        **{k: numeric(1, "int64") for k in ("frame_index", "episode_index", "index", "task_index")},
    }
    return {
        "codebase_version": "v2.1",
        "robot_type": "square_pusher",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 1,
        "total_videos": len(lengths) * len(cameras),
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }


def _camera_feature(size: int) -> dict:
    return {
        "dtype": "video",
        "shape": [size, size, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": size,
            "video.width": size,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": FPS,
            "video.channels": 3,
            "has_audio": False,
        },
    }


def everything(source: EpisodeSource, keys: list[str]) -> list[Any]:
    """Rows and pixels of every episode, as plain values that can be compared."""
    found: list[Any] = []
    for ref in source.episodes:
        columns = source.read_columns(ref)
        found.append((ref, columns.action.tolist(), columns.timestamp_s.tolist()))
        for batch in source.iter_frames(ref, keys, 8):
            found += [(batch[k].rgb_NHWC.tobytes(), batch[k].encoded) for k in keys]
    return found
