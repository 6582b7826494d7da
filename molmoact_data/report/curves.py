"""The gripper over the time of a few episodes: whether it opens and closes, when, and between which values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.manifest import DatasetFacts
from molmoact_data.outputs.output import open_parquet
from molmoact_data.pages.charts import line_chart
from molmoact_data.report.data import EpisodeKey, ReportData, fixed_size_rows

NUM_EPISODES = 3
MAX_POINTS = 400
"""Of a line; of longer episodes every second, third, ... frame is drawn."""


@dataclass(frozen=True)
class Curve:
    """One gripper dimension of the action."""

    name: str
    chart: str


def gripper_curves(storage: Storage, data: ReportData) -> list[Curve]:
    """A line chart per gripper dimension, a line per sampled episode: recorded value over frame.

    Empty where the actions have no gripper.
    """
    if data.statistics is None or data.manifest.layout.action_dim is None:
        return []
    grippers = [d for d, spec in enumerate(data.statistics.spec.dimensions) if spec.gripper]
    if not grippers:
        return []
    actions = read_actions(storage, sampled_episodes(data))
    return [Curve(dimension_name(data.manifest.dataset, d), _chart(actions, d)) for d in grippers]


def dimension_name(dataset: DatasetFacts, d: int) -> str:
    """As the source calls it, with its number; only the number where the source has no names."""
    names = dataset.action_names
    return f"{d} · {names[d]}" if d < len(names) else f"dimension {d}"


def sampled_episodes(data: ReportData) -> list[EpisodeKey]:
    """At most `NUM_EPISODES`, evenly spaced over the dataset."""
    episodes = [(shard.name, e) for shard in data.manifest.shards for e, _ in shard.episodes]
    picks = np.linspace(0, len(episodes) - 1, min(NUM_EPISODES, len(episodes))).astype(int)
    return [episodes[i] for i in picks]


def read_actions(
    storage: Storage, wanted: list[EpisodeKey]
) -> dict[EpisodeKey, NDArray[np.float32]]:
    """Recorded actions [T,D] of whole episodes."""
    parts: dict[EpisodeKey, list[NDArray[np.float32]]] = {key: [] for key in wanted}
    for shard in dict.fromkeys(name for name, _ in wanted):
        with open_parquet(storage, shard) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=[schema.EPISODE_INDEX, schema.ACTION])
                episode_N = table[schema.EPISODE_INDEX].to_numpy()
                action_ND = fixed_size_rows(table[schema.ACTION])
                for key in wanted:
                    if key[0] == shard:
                        parts[key].append(action_ND[episode_N == key[1]])
    return {key: np.concatenate(rows) for key, rows in parts.items()}


def _chart(actions: dict[EpisodeKey, NDArray[np.float32]], d: int) -> str:
    lines = {}
    for i, ((_, episode), action_TD) in enumerate(actions.items()):
        step = -(-len(action_TD) // MAX_POINTS)
        points = [(float(t), float(action_TD[t, d])) for t in range(0, len(action_TD), step or 1)]
        name = f"episode {episode}"
        # In a merged output two datasets may both have an episode of this number.
        lines[name if name not in lines else f"{name} ({i + 1})"] = points
    title = f"Gripper, action dimension {d}, over the frames"
    return line_chart(lines, title=title, y="recorded value", x="frame")
