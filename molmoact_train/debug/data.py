"""A small dataset in our own record layout, made of nothing: for the tests and for trying a training set-up.

A white square moves over a dark picture. Where it is decides every label: the trace is its way from now on, the
action its step, and the depth codes are high around it. So a model can learn all of it from the pixels.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from molmoact_data import schema
from molmoact_data.config import content_hash
from molmoact_data.labels import actions
from molmoact_data.labels.depth_memory import DepthMemory, buffered
from molmoact_data.labels.labels import EpisodeLabels
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.labels.traces import TraceConfig, episode_traces
from molmoact_data.outputs.columns import label_columns
from molmoact_data.outputs.manifest import DatasetFacts, Manifest
from molmoact_data.outputs.shards import ShardRecord, ShardWriter, file_sha256
from molmoact_data.sources.base import EpisodeColumns
from molmoact_data.statistics import (
    DEFAULT_NUM_BINS,
    ActionSpec,
    DatasetStatistics,
    feature_statistics,
)

NAME = "debug/square"


def write_debug_dataset(
    folder: Path,
    *,
    episodes: int = 3,
    frames: int = 6,
    cameras: tuple[str, ...] = ("front", "wrist"),
    action_dim: int = 7,
    size: int = 96,
    chunk_size: int = 4,
    state_dim: int | None = None,
    name: str = NAME,
    num_bins: int = DEFAULT_NUM_BINS,
    depth_buffer: bool = False,
    seed: int = 0,
) -> Path:
    """Write one shard of `episodes` x `frames` rows, with statistics and manifest; returns the folder."""
    rng = np.random.default_rng(seed)
    paths = [_path(rng, frames) for _ in range(episodes)]
    moves = [_actions(path, action_dim) for path in paths]
    states = [None if state_dim is None else _state(path, state_dim) for path in paths]
    statistics = DatasetStatistics(
        key=name,
        action=feature_statistics(np.concatenate(moves)),
        spec=ActionSpec.default(action_dim),
        state=None
        if state_dim is None
        else feature_statistics(np.concatenate([s for s in states if s is not None])),
        num_transitions=episodes * frames,
        num_trajectories=episodes,
        num_bins=num_bins,
    )
    layout = schema.RecordLayout(
        cameras=cameras,
        action_dim=action_dim,
        state_dim=state_dim,
        action_chunk_size=chunk_size,
        depth_buffer=depth_buffer,
    )
    shard = f"{schema.DATA_DIR}/episodes-{0:06d}-{episodes - 1:06d}.parquet"
    (folder / schema.DATA_DIR).mkdir(parents=True, exist_ok=True)
    metadata = {schema.META_STATISTICS_HASH: statistics.sha256().encode()}
    with ShardWriter(folder / shard, layout.arrow_schema(metadata)) as writer:
        for index, (path, move, state) in enumerate(zip(paths, moves, states, strict=True)):
            writer.write(_rows(layout, index, path, move, state, statistics, size))
    record = ShardRecord(
        name=shard,
        rows=episodes * frames,
        num_bytes=(folder / shard).stat().st_size,
        sha256=file_sha256(folder / shard),
        episodes=tuple((i, frames) for i in range(episodes)),
    )
    (folder / schema.STATISTICS_FILE).write_text(json.dumps(statistics.to_json(), indent=1))
    fingerprint = {"labels": {"action_bins": num_bins}}
    manifest = Manifest(
        config_hash=content_hash(fingerprint),
        fingerprint=fingerprint,
        statistics_sha256=statistics.sha256(),
        dataset=DatasetFacts(name, "1", "debug", None, None),
        cameras={role: role for role in cameras},
        layout=layout,
        teachers={},
    )
    (folder / schema.MANIFEST_FILE).write_bytes(manifest.with_shards([record]).to_bytes())
    return folder


def _path(rng: np.random.Generator, frames: int) -> NDArray[np.float32]:
    """Unit coordinates [T, 2] on a straight line within the picture."""
    start, end = rng.uniform(0.1, 0.9, (2, 2))
    share = np.linspace(0, 1, frames)[:, None]
    return (start + share * (end - start)).astype(np.float32)


def _actions(path_T2: NDArray[np.float32], action_dim: int) -> NDArray[np.float32]:
    """[T, D]: the next step in x and y, zeros, and a gripper that closes half way."""
    step = np.diff(path_T2, axis=0, append=path_T2[-1:])
    move = np.zeros((len(path_T2), action_dim), dtype=np.float32)
    move[:, :2] = step
    move[:, -1] = np.arange(len(path_T2)) < len(path_T2) / 2
    return move


def _state(path_T2: NDArray[np.float32], state_dim: int) -> NDArray[np.float32]:
    """[T, S]: x and y of the square in turn, so that no dimension is constant."""
    return np.resize(path_T2.T, (state_dim, len(path_T2))).T.astype(np.float32)


def _rows(
    layout: schema.RecordLayout,
    episode: int,
    path_T2: NDArray[np.float32],
    move_TD: NDArray[np.float32],
    state_TS: NDArray[np.float32] | None,
    statistics: DatasetStatistics,
    size: int,
) -> pa.Table:
    num = len(path_T2)
    points = GripperPoints(path_T2[:, None], np.ones((num, 1), dtype=np.float32))
    bins_THD, valid_T = actions.chunk(
        actions.bin_actions(actions.normalize(move_TD, statistics), statistics.num_bins),
        layout.action_chunk_size,
    )
    columns = EpisodeColumns(
        episode_index=episode,
        frame_index=np.arange(num, dtype=np.int32),
        timestamp_s=(np.arange(num) / 10).astype(np.float32),
        instructions=("move the square",) * num,
        action=move_TD,
        state=state_TS,
    )
    codes_TG = np.stack([_codes(xy, layout.depth_codes or 0) for xy in path_T2])
    memory = DepthMemory("pil", black_forgets=True)
    labels = EpisodeLabels(
        depth_codes=codes_TG,
        depth_range=np.tile(np.array([0, 1], dtype=np.float32), (num, 1)),
        depth_buffer=buffered(
            memory, np.stack([_picture(xy, size, 0) for xy in path_T2]), codes_TG
        ),
        points=points,
        traces=episode_traces(points, TraceConfig(filter=False)),
        action_bins=bins_THD,
        num_valid_actions=valid_T,
    )
    arrays = label_columns(
        layout, dataset=statistics.key, revision="1", columns=columns, labels=labels
    )
    for shift, role in enumerate(layout.cameras):
        pictures = [_png(xy, size, shift) for xy in path_T2]
        arrays[schema.image_column(role)] = pa.StructArray.from_arrays(
            [pa.array(pictures, pa.binary()), pa.nulls(num, pa.string())],
            fields=list(schema.IMAGE_TYPE),
        )
    order = layout.arrow_schema()
    return pa.Table.from_arrays(
        [arrays[n].cast(order.field(n).type) for n in order.names], schema=order
    )


def _codes(xy: NDArray[np.float32], count: int) -> NDArray[np.int16]:
    """Codes falling with the distance from the square, row-major over a square grid."""
    side = round(count**0.5)
    rows, cols = np.mgrid[:side, :side] / max(side - 1, 1)
    distance = np.hypot(cols - xy[0], rows - xy[1]).ravel()
    return np.clip(127 - 90 * distance, 0, 127).astype(np.int16)


def _picture(xy: NDArray[np.float32], size: int, shift: int) -> NDArray[np.uint8]:
    """RGB [size, size, 3]: a dark picture with a white square at `xy`."""
    picture = np.full((size, size, 3), 20 + 40 * shift, dtype=np.uint8)
    x, y = np.rint(xy * (size - 1)).astype(int)
    half = size // 12
    picture[max(0, y - half) : y + half, max(0, x - half) : x + half] = 255
    return picture


def _png(xy: NDArray[np.float32], size: int, shift: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(_picture(xy, size, shift)).save(out, format="PNG")
    return out.getvalue()
