"""Statistics first: one pass over the numeric columns of the whole dataset, before any video is decoded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from molmoact_data.actions import (
    ActionSpec,
    DatasetStatistics,
    DimensionSpec,
    feature_statistics,
    observe_gripper,
)
from molmoact_data.episodes import EpisodeRef, EpisodeSource
from molmoact_data.errors import EpisodeRejected, UserError


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


def combine(
    episodes: Iterable[NumericEpisode], *, key: str, gripper: Mapping[int, Gripper]
) -> DatasetStatistics:
    """Exact statistics; independent of the order in which the episodes arrive."""
    ordered = sorted(episodes, key=lambda e: e.episode_index)
    good = [e for e in ordered if e.action_TD is not None]
    if not good:
        raise UserError(_nothing_usable(ordered))
    actions = np.concatenate([e.action_TD for e in good if e.action_TD is not None])
    states = [e.state_TS for e in good if e.state_TS is not None]
    return DatasetStatistics(
        key=key,
        action=feature_statistics(actions),
        spec=action_spec(actions.shape[1], gripper),
        state=feature_statistics(np.concatenate(states)) if states else None,
        num_transitions=len(actions),
        num_trajectories=len(good),
    )


def statistics_file(
    episodes: Sequence[NumericEpisode], *, key: str, gripper: Mapping[int, Gripper]
) -> bytes:
    """The statistics as they are stored, with what the grippers really hold."""
    statistics = combine(episodes, key=key, gripper=gripper)
    entry = {**statistics.to_json()[key], OBSERVED: observe_grippers(episodes, statistics)}
    return (json.dumps({key: entry}, indent=1) + "\n").encode()


def observe_grippers(
    episodes: Iterable[NumericEpisode], statistics: DatasetStatistics
) -> dict[str, str]:
    """Action dimension -> what its gripper really holds, in words, since datasets disagree."""
    actions = np.concatenate([e.action_TD for e in episodes if e.action_TD is not None])
    return {
        str(d): observe_gripper(actions, d).words
        for d, spec in enumerate(statistics.spec.dimensions)
        if spec.gripper
    }


def describe_grippers(statistics: DatasetStatistics, observed: Mapping[str, str]) -> list[str]:
    """One line per gripper dimension: what was seen, and what is stored."""
    return [
        f"action dimension {d} is a gripper: observed {words}; stored as "
        f"{'1 - a' if statistics.spec.dimensions[int(d)].invert else 'a'}. "
        f"Another convention: --gripper {d}=keep or --gripper {d}=invert."
        for d, words in observed.items()
    ]


def _nothing_usable(episodes: Sequence[NumericEpisode]) -> str:
    reasons = Counter((e.reject or "").partition(":")[0] for e in episodes)
    listed = ", ".join(f"{reason} ({n})" for reason, n in reasons.most_common(5))
    first = next((e.reject for e in episodes if e.reject), "the dataset has no episodes")
    return (
        f"none of the {len(episodes)} episodes has usable rows: {listed or 'no episodes'}. "
        f"The first: {first}"
    )
