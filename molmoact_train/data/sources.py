"""Where rows come from: our own output folders, and rows like the published mixtures.

A source knows how many usable rows it has and reads any of them by number; it decides nothing at random.
Sources are cheap to pickle: files are opened where they are read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.statistics import DatasetStatistics
from molmoact_data.text.prompts import SampleKind
from molmoact_train.data.conversations import CONVERSATIONS, ConversationSource
from molmoact_train.data.rows import ParquetRows

MIN_TRACE_POINTS = 2
"""A trace of one point cannot be drawn, so nothing is asked about it."""
_HELD_OUT_STREAM = 4


@dataclass(frozen=True)
class RobotRow:
    """One frame of our record, as training needs it."""

    where: str
    """Dataset, episode and frame, for messages."""
    images: tuple[bytes, ...]
    """Encoded RGB per camera; labels belong to the first."""
    instruction: str
    depth_codes: tuple[int, ...] | None
    traces: list[list[list[int]]] | None
    """Per arm [x, y] points of 0..255; None where there is no usable trace."""
    action_bins: NDArray[np.int16] | None
    """[H, D] bins 1..256."""


def possible_kinds(*, depth: bool, trace: bool, action: bool) -> tuple[SampleKind, ...]:
    """What can truthfully be asked about a frame with these labels."""
    needs: dict[SampleKind, bool] = {
        "reasoning": depth and trace and action,
        "trajectory": trace and action,
        "depth": depth,
        "trace": trace,
    }
    return tuple(kind for kind, met in needs.items() if met)


class ShardSource:
    """One output folder of `molmoact preprocess`."""

    def __init__(
        self,
        folder: Path,
        *,
        max_images: int,
        kinds: Sequence[SampleKind],
        held_out_fraction: float = 0.0,
        held_out: bool = False,
        seed: int = 0,
        max_samples: int | None = None,
    ) -> None:
        """Open and check a folder.

        `kinds` are those that training draws; rows that allow none of them are left out and counted. With
        `held_out_fraction`, whole episodes are set aside: `held_out=True` reads those, False the others.
        Raises `UserError` where the folder is not finished or does not match its manifest.
        """
        self.folder = folder
        self.kinds = tuple(kinds)
        self.manifest = _read_manifest(folder)
        self.statistics = _read_statistics(folder, self.manifest)
        self._groups, self.layout = _open_shards(folder, self.manifest)
        self.name = str(self.manifest["dataset"]["name"])
        self.cameras = self.layout.cameras[:max_images]
        labels = _label_table(folder, self.manifest, self.layout)
        episodes = _column(labels, schema.EPISODE_INDEX)
        self.episodes = _choose_episodes(
            np.unique(episodes), held_out_fraction, held_out=held_out, seed=seed
        )
        in_part = np.isin(episodes, self.episodes)
        usable = _usable(labels, self.layout, self.kinds)
        self.rows = np.flatnonzero(in_part & usable)[:max_samples]
        self.left_out: Mapping[str, int] = Counter(
            ["no action column"] * int((in_part & ~usable).sum())
            if self.layout.action_dim is None and {"depth", "trace"}.isdisjoint(self.kinds)
            else _trace_reasons(labels, np.flatnonzero(in_part & ~usable))
        )

    @property
    def size(self) -> int:
        """Usable rows."""
        return len(self.rows)

    @property
    def action_dim(self) -> int | None:
        return self.layout.action_dim

    def row(self, index: int) -> RobotRow:
        """Usable row number `index`."""
        values = self._groups.read(int(self.rows[index]), self._columns())
        return RobotRow(
            where=f"{self.folder}: episode {values[schema.EPISODE_INDEX]} "
            f"frame {values[schema.FRAME_INDEX]}",
            images=tuple(values[schema.image_column(role)]["bytes"] for role in self.cameras),
            instruction=values[schema.INSTRUCTION],
            depth_codes=_tuple(values.get(schema.DEPTH_CODES)),
            traces=values[schema.TRACE] if _trace_is_usable(values) else None,
            action_bins=_bins(values.get(schema.ACTION_BINS)),
        )

    def recorded_actions(self, index: int) -> NDArray[np.float32]:
        """The recorded actions [h, D] from this row on, as far as the chunk and the episode reach."""
        first = int(self.rows[index])
        columns = [schema.NUM_VALID_ACTIONS, schema.ACTION]
        steps = self._groups.read(first, columns)[schema.NUM_VALID_ACTIONS]
        chunk = [self._groups.read(first + step, columns)[schema.ACTION] for step in range(steps)]
        return np.asarray(chunk, dtype=np.float32)

    def _columns(self) -> list[str]:
        images = [schema.image_column(role) for role in self.cameras]
        labels = [schema.DEPTH_CODES, schema.TRACE, schema.TRACE_REJECT_REASON, schema.ACTION_BINS]
        present = self.layout.arrow_schema().names
        key = [schema.EPISODE_INDEX, schema.FRAME_INDEX, schema.INSTRUCTION]
        return key + images + [name for name in labels if name in present]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / schema.MANIFEST_FILE
    if not path.exists():
        raise UserError(
            f"{folder} has no {schema.MANIFEST_FILE}, which is written last: the preprocessing run is "
            "unfinished or this is another folder. Run `molmoact preprocess ... --resume`."
        )
    manifest = json.loads(path.read_text())
    version = str(manifest.get("schema_version"))
    if version.partition(".")[0] != schema.SCHEMA_VERSION.partition(".")[0]:
        raise UserError(
            f"{folder} has schema version {version}, this program reads {schema.SCHEMA_VERSION}; "
            "preprocess the dataset again or use the version that wrote it."
        )
    return manifest


def _read_statistics(folder: Path, manifest: Mapping[str, Any]) -> DatasetStatistics | None:
    path = folder / schema.STATISTICS_FILE
    expected = manifest["statistics_sha256"]
    if not path.exists():
        return None
    statistics = DatasetStatistics.from_json(json.loads(path.read_text()))
    if expected is not None and statistics.sha256() != expected:
        raise UserError(
            f"{path} does not match {folder / schema.MANIFEST_FILE}: the action tokens of the shards were "
            "made with other statistics. Restore the file, or run `molmoact retokenize`."
        )
    return statistics


def _shards(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [shard for shard in manifest["shards"] if shard["rows"] > 0]


def _open_shards(
    folder: Path, manifest: Mapping[str, Any]
) -> tuple[ParquetRows, schema.RecordLayout]:
    groups, layout = ParquetRows(), None
    for shard in _shards(manifest):
        path = folder / shard["name"]
        rows = groups.add_file(path)
        if (rows, path.stat().st_size) != (shard["rows"], shard["num_bytes"]):
            raise UserError(
                f"{path} has {rows} rows in {path.stat().st_size} bytes, the manifest says "
                f"{shard['rows']} in {shard['num_bytes']}: shard and manifest are of different runs."
            )
        found = schema.RecordLayout.from_arrow_schema(pq.read_schema(path))
        if layout is not None and found != layout:
            raise UserError(f"{path} has other columns than the shards before it: {found}.")
        layout = found
    if layout is None:
        raise UserError(f"{folder} holds no rows: every episode was rejected (see rejects.jsonl).")
    return groups, layout


def _label_table(
    folder: Path, manifest: Mapping[str, Any], layout: schema.RecordLayout
) -> pa.Table:
    """The small columns that decide what may be asked, of all rows."""
    columns = [schema.EPISODE_INDEX]
    if layout.num_arms is not None:
        columns += [schema.TRACE, schema.TRACE_REJECT_REASON]
    shards = [folder / shard["name"] for shard in _shards(manifest)]
    return pa.concat_tables([pq.read_table(path, columns=columns) for path in shards])


def _column(table: pa.Table, name: str) -> NDArray[Any]:
    return table[name].to_numpy()


def _usable(
    labels: pa.Table, layout: schema.RecordLayout, kinds: Sequence[SampleKind]
) -> NDArray[np.bool_]:
    """Which rows allow at least one of the kinds."""
    depth, action = layout.depth_codes is not None, layout.action_dim is not None
    with_trace = bool(set(possible_kinds(depth=depth, trace=True, action=action)) & set(kinds))
    without = bool(set(possible_kinds(depth=depth, trace=False, action=action)) & set(kinds))
    traced = np.zeros(labels.num_rows, dtype=bool)
    if layout.num_arms is not None:
        accepted = pc.is_null(labels[schema.TRACE_REJECT_REASON]).to_numpy()
        traced = accepted & (_shortest_arm(labels[schema.TRACE]) >= MIN_TRACE_POINTS)
    return np.where(traced, with_trace, without)


def _shortest_arm(traces: pa.ChunkedArray) -> NDArray[np.int64]:
    """Points of the arm with the fewest, per row; 0 where there is no arm."""
    column = traces.combine_chunks()
    points = pc.list_value_length(pc.list_flatten(column)).fill_null(0).to_numpy()
    parents = pc.list_parent_indices(column).to_numpy()
    shortest = np.full(len(column), np.iinfo(np.int64).max)
    np.minimum.at(shortest, parents, points)
    return np.where(shortest == np.iinfo(np.int64).max, 0, shortest)


def _trace_reasons(labels: pa.Table, rows: NDArray[np.int64]) -> list[str]:
    if schema.TRACE_REJECT_REASON not in labels.column_names:
        return ["no trace column"] * len(rows)
    reasons = labels[schema.TRACE_REJECT_REASON].take(pa.array(rows)).to_pylist()
    return [reason or f"fewer than {MIN_TRACE_POINTS} trace points" for reason in reasons]


def _trace_is_usable(values: Mapping[str, Any]) -> bool:
    arms = values.get(schema.TRACE)
    if not arms or values[schema.TRACE_REJECT_REASON] is not None:
        return False
    return min(map(len, arms)) >= MIN_TRACE_POINTS


def _choose_episodes(
    episodes: NDArray[np.int64], fraction: float, *, held_out: bool, seed: int
) -> NDArray[np.int64]:
    """A fixed share of the episodes, chosen by seed alone; never all of them."""
    count = min(round(fraction * len(episodes)), len(episodes) - 1)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, _HELD_OUT_STREAM])))
    order = rng.permutation(episodes)
    return np.sort(order[:count] if held_out else order[count:])


def _tuple(values: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def _bins(values: Sequence[Sequence[int]] | None) -> NDArray[np.int16] | None:
    return None if values is None else np.asarray(values, dtype=np.int16)


Source = ShardSource | ConversationSource


def open_source(
    path: str,
    *,
    max_images: int,
    kinds: Sequence[SampleKind],
    held_out_fraction: float = 0.0,
    held_out: bool = False,
    seed: int = 0,
    max_samples: int | None = None,
) -> Source:
    """The source at a path: our output folder if it has a manifest or our columns, else conversations."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"--data {path}: no such folder.")
    has_rows = (folder / "state.json").exists() or any(folder.rglob("*.parquet"))
    ours = (folder / schema.MANIFEST_FILE).exists() or (folder / schema.STATISTICS_FILE).exists()
    if ours or ((folder / schema.DATA_DIR).is_dir() and not _has_conversations(folder)):
        return ShardSource(
            folder,
            max_images=max_images,
            kinds=kinds,
            held_out_fraction=held_out_fraction,
            held_out=held_out,
            seed=seed,
            max_samples=max_samples,
        )
    if not has_rows:
        raise UserError(
            f"--data {path}: the folder holds neither a manifest nor Parquet or Arrow rows."
        )
    return ConversationSource(folder, max_images=max_images, max_samples=max_samples)


def _has_conversations(folder: Path) -> bool:
    first = next(iter(sorted(folder.rglob("*.parquet"))), None)
    return first is not None and CONVERSATIONS in pq.read_schema(first).names
