"""Cost and size of labels made without a model: normalise, bin, chunk, filter, sub-sample, grid, Arrow.

Usage: python benchmarks/labels.py [--dataset ../shared/data/libero_rollouts_v21] [--json]
Prints microseconds and stored bytes per frame beside the reference's measured 163 us and 1,579 bytes.
The dataset has no points or depth, so both are synthetic: a smooth track with pointing noise, and codes
drawn from a skewed distribution that half-persists between frames.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from molmoact_data.labels.actions import bin_actions, chunk, normalize
from molmoact_data.labels.labels import EpisodeLabels
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.labels.traces import TraceConfig, episode_traces
from molmoact_data.outputs.columns import label_columns
from molmoact_data.outputs.shards import ShardWriter
from molmoact_data.schema import RecordLayout
from molmoact_data.sources.base import EpisodeColumns
from molmoact_data.sources.opening import open_source
from molmoact_data.statistics import ActionSpec, DatasetStatistics, feature_statistics

REFERENCE_US, REFERENCE_BYTES = 163.0, 1579.0
TARGET_US, TARGET_BYTES = 5.0, 250.0
REPEATS = 15


def read_episodes(path: str) -> list[EpisodeColumns]:
    """The numeric part of a dataset."""
    source = open_source(path)
    return [source.read_columns(ref) for ref in source.episodes]


def long_episode(like: EpisodeColumns, num_frames: int) -> EpisodeColumns:
    """One synthetic episode as long as asked, its actions a smooth random walk of the same dimension."""
    rng = np.random.default_rng(0)
    dim = like.action.shape[1]
    walk = np.cumsum(rng.normal(0, 0.05, (num_frames, dim)), axis=0)
    action = np.clip(np.sin(walk), -0.9, 0.9).astype(np.float32)
    action[:, -1] = action[:, -1] > 0
    frames = np.arange(num_frames, dtype=np.int32)
    return EpisodeColumns(
        0, frames, (frames / 20).astype(np.float32), ("a task",) * num_frames, action, None
    )


def synthetic_points(num_frames: int) -> GripperPoints:
    """A smooth track with 2 px of 256 noise, one in twenty points missing, one in twenty wild."""
    rng = np.random.default_rng(num_frames)
    t = np.arange(num_frames) / 30
    xy = np.stack([0.5 + 0.3 * np.sin(t), 0.5 + 0.3 * np.cos(0.7 * t)], axis=1)
    xy += rng.normal(0, 0.008, xy.shape)
    wild = rng.random(num_frames) < 0.05
    xy[wild] = rng.random((wild.sum(), 2))
    xy[rng.random(num_frames) < 0.05] = np.nan
    xy = np.clip(xy, 0, 1).astype(np.float32)[:, None]
    return GripperPoints(xy, (~np.isnan(xy[..., 0])).astype(np.float32))


def synthetic_codes(num_frames: int) -> np.ndarray:
    """[T, 100] codes, perplexity about 60 of 128, half of them as in the frame before."""
    rng = np.random.default_rng(num_frames)
    codes = np.minimum(rng.geometric(0.03, (num_frames, 100)), 128) - 1
    for t in range(1, num_frames):
        same = rng.random(100) < 0.5
        codes[t, same] = codes[t - 1, same]
    return codes.astype(np.uint8)


def make_labels(
    columns: EpisodeColumns, points: GripperPoints, statistics: DatasetStatistics
) -> EpisodeLabels:
    """What is timed: everything from raw numbers to labels."""
    bins, num_valid = chunk(bin_actions(normalize(columns.action, statistics)), 8)
    return EpisodeLabels(
        points=points,
        traces=episode_traces(points, TraceConfig()),
        action_bins=bins,
        num_valid_actions=num_valid,
    )


def measure(episodes: Sequence[EpisodeColumns]) -> dict[str, float]:
    """Best of several passes over all episodes, and the stored size without images."""
    statistics = DatasetStatistics(
        "x",
        feature_statistics(np.concatenate([e.action for e in episodes])),
        ActionSpec.default(episodes[0].action.shape[1]),
        None,
        1,
        1,
    )
    points = [synthetic_points(len(e.action)) for e in episodes]
    frames = sum(len(e.action) for e in episodes)
    label_s, arrow_s = [], []
    for _ in range(REPEATS):
        started = time.perf_counter()
        labels = [make_labels(e, p, statistics) for e, p in zip(episodes, points, strict=True)]
        label_s.append(time.perf_counter() - started)
        started = time.perf_counter()
        tables = [table_of(e, lab, codes=None) for e, lab in zip(episodes, labels, strict=True)]
        arrow_s.append(time.perf_counter() - started)
    del tables
    return {
        "frames": frames,
        "labels_us": min(label_s) / frames * 1e6,
        "arrow_us": min(arrow_s) / frames * 1e6,
        "bytes": stored_bytes(episodes, labels) / frames,
    }


def table_of(columns: EpisodeColumns, labels: EpisodeLabels, codes: np.ndarray | None) -> pa.Table:
    """The columns of one episode, images excluded."""
    layout = RecordLayout(
        cameras=("primary",),
        action_dim=columns.action.shape[1],
        state_dim=None,
        depth_codes=None if codes is None else codes.shape[1],
    )
    if codes is not None:
        limits = np.random.default_rng(0).random((len(codes), 2)).astype(np.float32)
        labels = replace(labels, depth_codes=codes, depth_range=limits)
    return pa.table(
        label_columns(layout, dataset="d", revision="r" * 40, columns=columns, labels=labels)
    )


def stored_bytes(episodes: Sequence[EpisodeColumns], labels: Sequence[EpisodeLabels]) -> int:
    """Bytes of the label columns in the shards that the pipeline writes."""
    tables = [
        table_of(e, lab, synthetic_codes(len(e.action)))
        for e, lab in zip(episodes, labels, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.parquet"
        with ShardWriter(path, tables[0].schema) as writer:
            for table in tables:
                writer.write(table)
        return path.stat().st_size


def main() -> None:
    """Measure real and long episodes, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="../shared/data/libero_rollouts_v21")
    parser.add_argument("--long", type=int, default=20000, help="frames of the synthetic episode")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    episodes = read_episodes(arguments.dataset)
    results = {
        "dataset": measure(episodes),
        "long": measure([long_episode(episodes[0], arguments.long)]),
    }
    if arguments.json:
        print(json.dumps(results))
        return
    for name, r in results.items():
        print(
            f"{name}: {r['frames']} frames, labels {r['labels_us']:.2f} us/frame (target {TARGET_US:g}, "
            f"reference {REFERENCE_US:g}), to Arrow {r['arrow_us']:.2f} us/frame, stored "
            f"{r['bytes']:.0f} bytes/frame without images (target {TARGET_BYTES:g}, reference {REFERENCE_BYTES:g})"
        )


if __name__ == "__main__":
    main()
