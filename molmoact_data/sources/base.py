"""What a source of episodes is: numeric columns on request, frames decoded once and in order.

Letters: T frames of an episode, N frames of a batch, H/W image size, D action, S state dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CameraFeature:
    """One image stream of the dataset, before it has a role."""

    key: str
    height: int
    width: int
    storage: Literal["video", "image"]
    is_depth: bool = False
    """True for recorded depth (16-bit), which is never offered as an RGB camera."""


@dataclass(frozen=True)
class SourceInfo:
    """What the metadata says about the whole dataset, checked against the rows where that is cheap."""

    name: str
    """Hub id or folder name; the `dataset` column and the key of the statistics."""
    revision: str
    """Hub commit, or `sha256:...` over the local metadata and row files."""
    format: str
    """For example `lerobot-v2.1`, `lerobot-v3.0`, `rlds`."""
    fps: float
    cameras: tuple[CameraFeature, ...]
    action_dim: int
    action_names: tuple[str, ...] | None
    state_dim: int | None
    robot_type: str | None = None
    warnings: tuple[str, ...] = ()
    """Metadata that disagrees with the rows, in words; rows are trusted."""
    missing_cameras: tuple[str, ...] = ()
    """Declared cameras of which not one file exists; they are not in `cameras`."""
    columns: tuple[str, ...] = ()
    """Numeric columns that `read_columns(extra=...)` can give."""


@dataclass(frozen=True)
class EpisodeRef:
    """One episode, small enough to travel through a shuffle; `num_frames` is what the metadata declares."""

    episode_index: int
    num_frames: int


@dataclass(frozen=True)
class EpisodeColumns:
    """The numeric part and the text of one episode."""

    episode_index: int
    frame_index: NDArray[np.int32]
    """[T] 0-based within the episode."""
    timestamp_s: NDArray[np.float32]
    """[T] seconds from the episode's start."""
    instructions: tuple[str, ...]
    """[T] never empty."""
    action: NDArray[np.float32]
    """[T, D] as recorded, finite."""
    state: NDArray[np.float32] | None
    """[T, S] as recorded, finite; None where the dataset has no state."""
    extra: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    """Further numeric columns that were asked for, each [T, ...]."""


@dataclass(frozen=True)
class CameraBatch:
    """N consecutive frames of one camera."""

    rgb_NHWC: NDArray[np.uint8]
    """[N,H,W,3]; recorded depth arrives as [N,H,W] uint16 or float32 instead."""
    encoded: tuple[bytes, ...] | None
    """The source's own JPEG or PNG bytes, where it stores images; None for video."""


class EpisodeSource(Protocol):
    """A dataset of episodes. Instances are cheap to pickle: paths and metadata, no open files."""

    info: SourceInfo
    episodes: Sequence[EpisodeRef]

    def read_columns(self, ref: EpisodeRef, extra: Sequence[str] = ()) -> EpisodeColumns:
        """Rows of one episode without touching images. Raises `EpisodeRejected`."""
        ...

    def iter_frames(
        self, ref: EpisodeRef, camera_keys: Sequence[str], batch_size: int
    ) -> Iterator[dict[str, CameraBatch]]:
        """Decode the cameras once, sequentially, `batch_size` frames at a time, in frame order.

        Every batch holds all cameras for the same frames; exactly T frames in all, or `EpisodeRejected`.
        """
        ...
