"""Statistics first: one pass over the numeric columns of the whole dataset, before any video is decoded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, UserError
from molmoact_data.labels.actions import observe_gripper
from molmoact_data.sources.base import EpisodeRef, EpisodeSource
from molmoact_data.statistics import (
    ActionSpec,
    DatasetStatistics,
    DimensionSpec,
    feature_statistics,
)


@dataclass(frozen=True)
class NumericEpisode:
    """The numbers of one episode, or why they cannot be used."""

    episode_index: int
    action_TD: NDArray[np.float32] | None
    state_TS: NDArray[np.float32] | None
    reject: str | None


def read_numeric(source: EpisodeSource, ref: EpisodeRef) -> NumericEpisode:
    """Actions and state of one episode; a bad episode is reported, and left out of the statistics."""
    try:
        columns = source.read_columns(ref)
    except EpisodeRejected as verdict:
        return NumericEpisode(ref.episode_index, None, None, str(verdict))
    return NumericEpisode(ref.episode_index, columns.action, columns.state, None)


Gripper = Literal["keep", "invert"]
OBSERVED = "gripper_observed"
"""Key in our entry of `dataset_statistics.json`; other readers ignore it."""


def action_spec(action_dim: int, gripper: Mapping[int, Gripper]) -> ActionSpec:
    """The per-dimension convention: the named dimensions are grippers, the others are scaled.

    Nothing named: the default of this action dimension.
    """
    if not gripper:
        return ActionSpec.default(action_dim)
    wrong = [d for d in gripper if not 0 <= d < action_dim]
    if wrong:
        raise UserError(f"--gripper {wrong[0]}: action dimensions are 0..{action_dim - 1}.")
    return ActionSpec(
        tuple(
            DimensionSpec(
                normalize=d not in gripper, gripper=d in gripper, invert=gripper.get(d) == "invert"
            )
            for d in range(action_dim)
        )
    )


@dataclass
class ExactNumbers:
    """Every number of the episodes added so far; the order in which they arrive does not matter."""

    episodes: list[NumericEpisode] = field(default_factory=list)

    def add(self, episodes: Sequence[NumericEpisode]) -> None:
        """Keep the values: exact quantiles need them all."""
        self.episodes.extend(episodes)

    def merge(self, other: ExactNumbers) -> None:
        """Add what another worker gathered."""
        self.add(other.episodes)

    def statistics_file(self, *, key: str, gripper: Mapping[int, Gripper]) -> bytes:
        """The content of `dataset_statistics.json`. Raises `UserError` where no episode is usable."""
        ordered = sorted(self.episodes, key=lambda e: e.episode_index)
        actions = [e.action_TD for e in ordered if e.action_TD is not None]
        states = [e.state_TS for e in ordered if e.state_TS is not None]
        if not actions:
            raise nothing_usable(Counter(e.reject for e in ordered if e.reject is not None))
        action_ND = np.concatenate(actions)
        statistics = DatasetStatistics(
            key=key,
            action=feature_statistics(action_ND),
            spec=action_spec(action_ND.shape[1], gripper),
            state=feature_statistics(np.concatenate(states)) if states else None,
            num_transitions=len(action_ND),
            num_trajectories=len(actions),
        )
        return statistics_json(statistics, action_ND, {})


def statistics_json(
    statistics: DatasetStatistics, action_ND: NDArray[np.floating], more: Mapping[str, Any]
) -> bytes:
    """The statistics as they are stored, with what the grippers really hold in these actions."""
    observed = {
        str(d): observe_gripper(action_ND, d).words
        for d, spec in enumerate(statistics.spec.dimensions)
        if spec.gripper
    }
    entry = {**statistics.to_json()[statistics.key], OBSERVED: observed, **more}
    return (json.dumps({statistics.key: entry}, indent=1) + "\n").encode()


def describe_grippers(statistics: DatasetStatistics, observed: Mapping[str, str]) -> list[str]:
    """One line per gripper dimension: what was seen, and what is stored."""
    return [
        f"action dimension {d} is a gripper: observed {words}; stored as "
        f"{'1 - a' if statistics.spec.dimensions[int(d)].invert else 'a'}. "
        f"Another convention: --gripper {d}=keep or --gripper {d}=invert."
        for d, words in observed.items()
    ]


def nothing_usable(rejects: Counter[str]) -> UserError:
    """No episode has numbers: the reasons, the most frequent first, and one of them in full."""
    kinds: Counter[str] = Counter()
    for text, episodes in rejects.items():
        kinds[text.partition(":")[0]] += episodes
    listed = ", ".join(f"{kind} ({n})" for kind, n in kinds.most_common(5)) or "no episodes"
    example = next(iter(rejects), "the dataset has no episodes")
    return UserError(
        f"none of the {rejects.total()} episodes has usable rows: {listed}. The first: {example}"
    )
