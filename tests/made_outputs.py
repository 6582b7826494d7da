"""Finished outputs for tests of what happens after preprocessing: real code, fake teachers, no video."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from molmoact_data import schema
from molmoact_data.files.storage import Storage
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.outputs.shards import plan_shards
from molmoact_data.sources.base import (
    CameraBatch,
    CameraFeature,
    EpisodeColumns,
    EpisodeRef,
    SourceInfo,
)
from molmoact_data.statistics import ActionSpec, DatasetStatistics, feature_statistics

HEIGHT, WIDTH = 48, 64
CAMERAS = {"primary": "observation.images.front", "wrist": "observation.images.wrist"}


@dataclass(frozen=True)
class DotSource:
    """Episodes of a bright dot that moves over a dark, noisy picture; everything follows from the seed."""

    lengths: Sequence[int] = (12, 9, 7, 5)
    first_episode: int = 0
    name: str = "dots"
    action_dim: int = 7
    info: SourceInfo = field(init=False)
    episodes: Sequence[EpisodeRef] = field(init=False)

    def __post_init__(self) -> None:
        cameras = tuple(CameraFeature(key, HEIGHT, WIDTH, "image") for key in CAMERAS.values())
        info = SourceInfo(self.name, "rev-1", "fake", 10.0, cameras, self.action_dim, None, 3)
        start = self.first_episode
        refs = [EpisodeRef(start + i, length) for i, length in enumerate(self.lengths)]
        object.__setattr__(self, "info", info)
        object.__setattr__(self, "episodes", refs)

    def read_columns(self, ref: EpisodeRef, extra: Sequence[str] = ()) -> EpisodeColumns:
        rng = np.random.default_rng([7, len(self.name), ref.episode_index])
        n = ref.num_frames
        action = rng.normal(size=(n, self.action_dim)).astype(np.float32)
        action[:, -1] = rng.integers(0, 2, n)
        return EpisodeColumns(
            episode_index=ref.episode_index,
            frame_index=np.arange(n, dtype=np.int32),
            timestamp_s=(np.arange(n) / 10).astype(np.float32),
            instructions=(f"move the dot of episode {ref.episode_index}",) * n,
            action=action,
            state=rng.normal(size=(n, 3)).astype(np.float32),
        )

    def frames(self, ref: EpisodeRef, camera: str) -> np.ndarray:
        """uint8 [T,H,W,3]; the dot's column is 8 + 4t."""
        rng = np.random.default_rng([9, len(camera), ref.episode_index])
        rgb = rng.integers(0, 60, (ref.num_frames, HEIGHT, WIDTH, 3)).astype(np.uint8)
        for t in range(ref.num_frames):
            rgb[t, 20 + t, 8 + 4 * t] = 255
        return rgb

    def iter_frames(
        self, ref: EpisodeRef, camera_keys: Sequence[str], batch_size: int
    ) -> Iterator[dict[str, CameraBatch]]:
        whole = {key: self.frames(ref, key) for key in camera_keys}
        for start in range(0, ref.num_frames, batch_size):
            part = slice(start, start + batch_size)
            yield {key: CameraBatch(rgb[part], None) for key, rgb in whole.items()}


class FakeDepth:
    def describe(self) -> dict[str, str]:
        return {"name": "fake-depth", "revision": "1", "licence": "CC0-1.0"}

    def estimate(self, rgb_NHWC: np.ndarray) -> np.ndarray:
        return rgb_NHWC.mean(axis=3).astype(np.float32)


class FakeTokenizer:
    codebook_size = 128
    grid_hw = (10, 10)

    def describe(self) -> dict[str, str]:
        return {"name": "fake-codes", "revision": "1", "licence": "CC0-1.0", "range": "signed"}

    def encode(self, depth_u8_NHW: np.ndarray) -> np.ndarray:
        return depth_u8_NHW[:, 4:44:4, 4:44:4].reshape(len(depth_u8_NHW), 100).astype(np.int64) // 2


class BrightestPixel:
    num_arms = 1

    def describe(self) -> dict[str, str]:
        return {"name": "brightest", "revision": "1", "licence": "CC0-1.0"}

    def point(self, rgb_NHWC: np.ndarray, prompt: str) -> GripperPoints:
        flat = rgb_NHWC.astype(int).sum(axis=3).reshape(len(rgb_NHWC), -1).argmax(axis=1)
        y, x = np.unravel_index(flat, rgb_NHWC.shape[1:3])
        xy = np.stack([x / (WIDTH - 1), y / (HEIGHT - 1)], axis=1).astype(np.float32)
        return GripperPoints(xy[:, None], np.ones((len(xy), 1), np.float32))


def source_statistics(source: DotSource, key: str = "dots") -> DatasetStatistics:
    columns = [source.read_columns(ref) for ref in source.episodes]
    actions = np.concatenate([c.action for c in columns])
    return DatasetStatistics(
        key=key,
        action=feature_statistics(actions),
        spec=ActionSpec.default(source.action_dim),
        state=feature_statistics(np.concatenate([c.state for c in columns])),
        num_transitions=len(actions),
        num_trajectories=len(columns),
    )


def write_output(
    root: Path | str,
    source: DotSource | None = None,
    statistics: DatasetStatistics | None = None,
    teachers: Any = None,
    frames_per_shard: int = 15,
    **labels: Any,
) -> Path | str:
    """A complete output at `root`: `write_output(path, source=..., action_bins=...)`."""
    from molmoact_data.teachers.choice import Teachers
    from pipelines.config import LabelConfig
    from pipelines.job import Job
    from pipelines.shards import manifest
    from pipelines.shards.build import build_shard

    source = source or DotSource()
    statistics = statistics or source_statistics(source)
    statistics = replace(statistics, num_bins=labels.get("action_bins", statistics.num_bins))
    teachers = teachers or Teachers(FakeDepth(), FakeTokenizer(), BrightestPixel())
    job = Job(
        dataset_path="none",
        revision=None,
        source=source.info,
        cameras=CAMERAS,
        labels=LabelConfig(vqvae="fake", batch_size=8, **labels),
        statistics=statistics,
        layout=schema.RecordLayout(
            tuple(CAMERAS),
            7,
            source.info.state_dim,
            action_chunk_size=labels.get("action_chunk_size", 8),
            depth_buffer=labels.get("depth_buffer", "none") != "none",
        ),
        output=Storage(str(root)),
        teachers=teachers.describe(),
    )
    specs = plan_shards(source.episodes, frames_per_shard, job.config_hash)
    records = [build_shard(job, spec, source, teachers, lambda _: None) for spec in specs]
    content = json.dumps(statistics.to_json(), indent=1) + "\n"
    job.output.write_bytes(schema.STATISTICS_FILE, content.encode())
    manifest.write(job, records)
    return root
