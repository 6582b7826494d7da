"""Rendered frames on disk: one folder per shard, one plain `.npy` per array, so that they memory-map.

| file | dtype, shape | meaning |
|---|---|---|
| `rgb.npy` | uint8 [N,H,W,3] | after the sensor model |
| `depth.npy` | uint16 [N,H,W] | steps of 0.5 mm along the optical axis |
| `grip_pixel.npy` | float32 [N,2] | pixel index (column, row); unit coordinate = index / (size - 1) |
| `grip_visible.npy` | bool [N] | in the frame, hidden by nothing but the gripper and its load |
| `is_wrist.npy` | bool [N] | seen by the wrist camera, otherwise the front camera |
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molmoact_robot.tabletop.frames import Frame, FrameConfig, random_frames
from molmoact_robot.tabletop.view import depth_to_u16


@dataclass(frozen=True)
class FrameArrays:
    """One shard or several together; the arrays of the table above, possibly memory-mapped."""

    rgb: NDArray[np.uint8]
    depth: NDArray[np.uint16]
    grip_pixel: NDArray[np.float32]
    grip_visible: NDArray[np.bool_]
    is_wrist: NDArray[np.bool_]


def shard_path(root: Path, split: str, number: int) -> Path:
    return root / split / f"shard_{number:05d}"


def stack_frames(frames: Sequence[Frame]) -> FrameArrays:
    return FrameArrays(
        rgb=np.stack([f.rgb_HWC for f in frames]),
        depth=np.stack([depth_to_u16(f.depth_HW) for f in frames]),
        grip_pixel=np.stack([f.grip_pixel_2 for f in frames]).astype(np.float32),
        grip_visible=np.array([f.grip_visible for f in frames]),
        is_wrist=np.array([f.camera == "wrist" for f in frames]),
    )


def write_shard(arrays: FrameArrays, path: Path) -> None:
    """A folder appears under its own name only when it is complete."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    for name, array in vars(arrays).items():
        np.save(partial / f"{name}.npy", array)
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)


def read_shard(path: Path) -> FrameArrays:
    """Memory-mapped; the inverse of `write_shard`."""
    names = FrameArrays.__dataclass_fields__
    return FrameArrays(**{n: np.load(path / f"{n}.npy", mmap_mode="r") for n in names})


def render_shard(root: Path, number: int, *, seed: int, count: int, config: FrameConfig) -> Path:
    path = shard_path(root, config.split, number)
    write_shard(stack_frames(list(random_frames(seed, count, config))), path)
    return path
