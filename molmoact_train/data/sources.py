"""Where rows come from: our own output folders, and rows like the published mixtures.

A source knows how many usable rows it has and reads any of them by number; it decides nothing at random.
Sources are cheap to pickle: files are opened where they are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.labels.traces import MIN_USABLE_POINTS, is_usable
from molmoact_data.outputs.columns import usable_traces
from molmoact_data.outputs.output import Output
from molmoact_data.outputs.rows import ParquetRows, padded_chunk
from molmoact_data.statistics import DatasetStatistics
from molmoact_train.data.base import Part, RobotRow
from molmoact_train.data.conversations import CONVERSATIONS, ConversationSource
from molmoact_train.data.split import SourceOptions, chosen_episodes


class ShardSource:
    """One output folder of `molmoact preprocess`."""

    def __init__(self, folder: str | Path, options: SourceOptions) -> None:
        """Open and check a folder or URL. Raises `UserError` where it is unfinished or unlike its manifest."""
        self.folder = folder
        self.options = options
        self.output = Output.open(folder)
        self.statistics = _with_bins(self.output)
        self.layout = self.output.layout
        self._groups = _open_shards(self.output)
        self.name = self.output.name
        self.cameras = self.layout.cameras[: options.max_images]
        labels = _label_table(self.output, self.layout)
        episodes = _column(labels, schema.EPISODE_INDEX)
        self.episodes = chosen_episodes(np.unique(episodes), options)
        in_part = np.isin(episodes, self.episodes)
        usable = _usable(labels, self.layout, options.needs)
        self.rows = np.flatnonzero(in_part & usable)[: options.max_samples]
        self.left_out: Mapping[str, int] = Counter(
            _reasons(labels, self.layout, options.needs, np.flatnonzero(in_part & ~usable))
        )

    @property
    def size(self) -> int:
        """Usable rows."""
        return len(self.rows)

    @property
    def statistics_key(self) -> str | None:
        """The entry of `norm_stats` that its actions belong to."""
        return None if self.statistics is None else self.statistics.key

    @property
    def action_dim(self) -> int | None:
        return self.layout.action_dim

    def row(self, index: int) -> RobotRow:
        """Usable row number `index`."""
        number, columns = int(self.rows[index]), self._columns()
        values = self._groups.read(number, columns)
        following = None
        if self.layout.action_dim is not None:
            steps = values[schema.NUM_VALID_ACTIONS]
            following = self._groups.read_column(number, steps, schema.ACTION, columns)
        return robot_row(
            values, self.cameras, where=str(self.folder), following=following,
            statistics=self.statistics,
        )  # fmt: skip

    def _columns(self) -> list[str]:
        present = self.layout.arrow_schema().names
        return [schema.EPISODE_INDEX, schema.FRAME_INDEX, schema.INSTRUCTION] + [
            name for name in (*map(schema.image_column, self.cameras), *_LABELS) if name in present
        ]


_LABELS = (
    schema.DEPTH_CODES, schema.BUFFER_CODES, schema.TRACE, schema.TRACE_REJECT_REASON, schema.ACTION_BINS,
    schema.ACTION, schema.NUM_VALID_ACTIONS, schema.STATE,
)  # fmt: skip


def robot_row(
    values: Mapping[str, Any],
    cameras: Sequence[str],
    *,
    where: str = "",
    following: Sequence[Sequence[float]] | None = None,
    statistics: DatasetStatistics | None = None,
) -> RobotRow:
    """One row of the record, as plain Python values by column -> what training reads of it.

    `following` are the recorded actions [h][D] of this row and the next ones, 1 <= h <= H of them within the
    episode; without it the row has no raw chunk.
    """
    bins, state = values.get(schema.ACTION_BINS), values.get(schema.STATE)
    bins_HD = None if bins is None else np.asarray(bins, dtype=np.int16)
    chunk = None
    if following is not None and bins_HD is not None:
        chunk = padded_chunk(following, len(bins_HD))
    arms = values.get(schema.TRACE)
    usable = is_usable(arms, values.get(schema.TRACE_REJECT_REASON))
    codes, buffer = values.get(schema.DEPTH_CODES), values.get(schema.BUFFER_CODES)
    return RobotRow(
        where=f"{where}{': ' if where else ''}episode {values[schema.EPISODE_INDEX]} "
        f"frame {values[schema.FRAME_INDEX]}",
        images=tuple(values[schema.image_column(role)]["bytes"] for role in cameras),
        instruction=values[schema.INSTRUCTION],
        depth_codes=None if codes is None else tuple(codes),
        traces=arms if usable else None,
        action_bins=bins_HD,
        actions_HD=chunk,
        num_valid=0 if following is None else len(following),
        state=None if state is None else np.asarray(state, dtype=np.float32),
        buffer_codes=None if buffer is None else tuple(buffer),
        statistics=statistics,
    )


def _with_bins(output: Output) -> DatasetStatistics | None:
    """The statistics with the number of bins that the shards were written with."""
    if output.statistics is None or output.layout.action_dim is None:
        return output.statistics
    return replace(output.statistics, num_bins=output.num_bins)


def _open_shards(output: Output) -> ParquetRows:
    """All shards, each with the rows, bytes and columns that the manifest says."""
    if not output.shards:
        raise UserError(
            f"{output.storage.root} holds no rows: every episode was rejected (see rejects.jsonl)."
        )
    return ParquetRows.of(output)


def _label_table(output: Output, layout: schema.RecordLayout) -> pa.Table:
    """The small columns that decide what may be asked, of all rows."""
    columns = [schema.EPISODE_INDEX]
    if layout.num_arms is not None:
        columns += [schema.TRACE, schema.TRACE_REJECT_REASON]
    tables = []
    for shard in output.shards:
        with output.open_shard(shard) as file:
            tables.append(file.read(columns=columns))
    return pa.concat_tables(tables)


def _column(table: pa.Table, name: str) -> NDArray[Any]:
    return table[name].to_numpy()


def _parts(layout: schema.RecordLayout, *, traced: bool) -> frozenset[Part]:
    """The labels of a row of this layout, with or without a usable trace."""
    found: dict[Part, bool] = {
        "depth": layout.depth_codes is not None,
        "trace": traced,
        "action": layout.action_dim is not None,
        "state": layout.state_dim is not None,
    }
    return frozenset(part for part, there in found.items() if there)


def _usable(
    labels: pa.Table, layout: schema.RecordLayout, needs: Mapping[str, frozenset[Part]]
) -> NDArray[np.bool_]:
    """Which rows allow at least one of the questions."""
    with_trace, without = (
        any(needed <= _parts(layout, traced=traced) for needed in needs.values())
        for traced in (True, False)
    )
    traced_T = np.zeros(labels.num_rows, dtype=bool)
    if layout.num_arms is not None:
        traced_T = usable_traces(labels[schema.TRACE], labels[schema.TRACE_REJECT_REASON])
    return np.where(traced_T, with_trace, without)


def _reasons(
    labels: pa.Table,
    layout: schema.RecordLayout,
    needs: Mapping[str, frozenset[Part]],
    rows: NDArray[np.int64],
) -> list[str]:
    """Why each of these rows is left out, in words: a column that every question needs, or its trace."""
    always = frozenset.intersection(*needs.values()) if needs else frozenset()
    for part in sorted(always - {"trace"}):
        if part not in _parts(layout, traced=True):
            return [f"no {part} column"] * len(rows)
    if schema.TRACE_REJECT_REASON not in labels.column_names:
        return ["no trace column"] * len(rows)
    reasons = labels[schema.TRACE_REJECT_REASON].take(pa.array(rows)).to_pylist()
    return [reason or f"fewer than {MIN_USABLE_POINTS} trace points" for reason in reasons]


Source = ShardSource | ConversationSource


def check_data_folder(path: str) -> None:
    """Raises `UserError` where nothing is; a URL is looked at when it is opened."""
    if "://" not in path and not Path(path).is_dir():
        raise UserError(f"--data {path}: no such folder.")


def open_source(path: str, options: SourceOptions) -> Source:
    """The source at a path or URL: our output if it has a manifest or our columns, else conversations."""
    if "://" in path:
        return ShardSource(path, options)
    check_data_folder(path)
    folder = Path(path)
    has_rows = (folder / "state.json").exists() or any(folder.rglob("*.parquet"))
    ours = (folder / schema.MANIFEST_FILE).exists() or (folder / schema.STATISTICS_FILE).exists()
    if ours or ((folder / schema.DATA_DIR).is_dir() and not _has_conversations(folder)):
        return ShardSource(folder, options)
    if not has_rows:
        raise UserError(
            f"--data {path}: the folder holds neither a manifest nor Parquet or Arrow rows."
        )
    return ConversationSource(folder, options)


def _has_conversations(folder: Path) -> bool:
    first = next(iter(sorted(folder.rglob("*.parquet"))), None)
    return first is not None and CONVERSATIONS in pq.read_schema(first).names
