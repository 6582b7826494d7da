"""Statistics first: one pass over the numeric columns of the whole dataset, before any video is decoded."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, UserError
from molmoact_data.files.typed import parse_json
from molmoact_data.labels.actions import observe_gripper
from molmoact_data.labels.gripper import gripper_table
from molmoact_data.sources.base import EpisodeRef, EpisodeSource, SourceInfo
from molmoact_data.statistics import (
    ActionSpec,
    DatasetStatistics,
    DimensionSpec,
    column_statistics,
)
from pipelines.config import Gripper


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


OBSERVED = "gripper_observed"
"""Key in our entry of `dataset_statistics.json`; other readers ignore it."""
HELD_VALUES = 10**9
"""Numbers of one feature that are held in memory: 4 GB, 140 M frames of a 7-D arm."""


Grippers = Mapping[int | Literal["none"], Gripper]


def action_spec(info: SourceInfo, gripper: Grippers) -> ActionSpec:
    """The per-dimension convention: the named dimensions are grippers, the others are scaled.

    Nothing named: what the names of the dimensions say, or the default of this action dimension.
    """
    action_dim = info.action_dim
    if not gripper:
        return ActionSpec.default(action_dim, info.action_names)
    chosen = {d: how for d, how in gripper.items() if d != "none"}
    wrong = [d for d in chosen if not 0 <= d < action_dim]
    if wrong:
        raise UserError(f"--gripper {wrong[0]}: action dimensions are 0..{action_dim - 1}.")
    return ActionSpec(
        tuple(
            DimensionSpec(
                normalize=chosen.get(d, "scale") == "scale",
                gripper=d in chosen,
                invert=chosen.get(d) == "invert",
            )
            for d in range(action_dim)
        )
    )


def why_this_spec(info: SourceInfo, gripper: Grippers) -> str | None:
    """What to say where the names of the dimensions decided, against the place of the reference's gripper."""
    default = ActionSpec.default(info.action_dim)
    spec = ActionSpec.default(info.action_dim, info.action_names)
    if gripper or spec == default or info.action_names is None:
        return None
    grippers = [f"{d} ({info.action_names[d]})" for d, s in enumerate(spec.dimensions) if s.gripper]
    last = info.action_dim - 1
    said = f"is dimension {', '.join(grippers)}" if grippers else "is none of them: all are scaled"
    return (
        f"by the names of the action's dimensions ({', '.join(info.action_names)}) the gripper {said}, not the "
        f"last as without names. To decide yourself: --gripper none or --gripper {last}=invert"
    )


class Columns:
    """Rows of a D-dimensional feature, gathered as D columns; beyond `HELD_VALUES` numbers they wait on disk."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._parts: list[NDArray[np.float32]] = []
        self._files: list[IO[bytes]] = []
        self._held = 0

    def __getstate__(self) -> list[NDArray[np.float32]]:
        return self._rows()

    def __setstate__(self, rows: list[NDArray[np.float32]]) -> None:
        self.__init__()  # type: ignore[misc]
        self.add(rows)

    def add(self, parts: Sequence[NDArray[np.float32]]) -> None:
        """Arrays [n, D] more."""
        self._parts.extend(part for part in parts if len(part))
        self.num_rows += sum(map(len, parts))
        self._held += sum(part.size for part in parts)
        if self._held > HELD_VALUES:
            self._to_disk()

    def merge(self, other: Columns) -> None:
        """Add what another worker gathered."""
        self.add(other._rows())

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Each column [N], writable, whatever is done to it."""
        if self._files:
            self._to_disk()
            yield from (np.memmap(file, np.float32, "r+") for file in self._files)
        elif self._parts:
            for d in range(self._parts[0].shape[1]):
                yield np.concatenate([part[:, d] for part in self._parts])

    def _rows(self) -> list[NDArray[np.float32]]:
        return [np.stack(list(self), axis=1)] if self._files else self._parts

    def _to_disk(self) -> None:
        """One file per dimension, without a name, so that a killed process leaves nothing."""
        for d in range(self._parts[0].shape[1] if self._parts else 0):
            if d == len(self._files):
                self._files.append(tempfile.TemporaryFile())  # noqa: SIM115  open as long as we are
            for part in self._parts:
                self._files[d].write(np.ascontiguousarray(part[:, d], np.float32).data)
            self._files[d].flush()
        self._parts, self._held = [], 0


@dataclass
class Numbers:
    """Every number of the episodes added so far; the order in which they arrive does not matter."""

    usable: int = 0
    action: Columns = field(default_factory=Columns)
    state: Columns = field(default_factory=Columns)
    rejects: Counter[str] = field(default_factory=Counter)
    """Reject, in words -> episodes."""

    def add(self, episodes: Sequence[NumericEpisode]) -> None:
        """A handful of episodes more: exact quantiles need every value."""
        good = [e for e in episodes if e.action_TD is not None]
        self.usable += len(good)
        self.action.add([e.action_TD for e in good if e.action_TD is not None])
        self.state.add([e.state_TS for e in good if e.state_TS is not None])
        self.rejects.update(e.reject for e in episodes if e.reject is not None)

    def merge(self, other: Numbers) -> None:
        """Add what another worker gathered."""
        self.usable += other.usable
        self.action.merge(other.action)
        self.state.merge(other.state)
        self.rejects.update(other.rejects)

    def statistics_file(self, *, key: str, spec: ActionSpec) -> bytes:
        """The content of `dataset_statistics.json`. Raises `UserError` where no episode is usable."""
        if not self.usable:
            raise nothing_usable(self.rejects)
        action = column_statistics(self.action)
        statistics = DatasetStatistics(
            key=key,
            action=action,
            spec=spec,
            state=column_statistics(self.state) if self.state.num_rows else None,
            num_transitions=self.action.num_rows,
            num_trajectories=self.usable,
        )
        columns = zip(statistics.spec.dimensions, self.action, strict=True)
        observed = {
            str(d): observe_gripper(column[:, None]).words + clipped_words(column, dimension)
            for d, (dimension, column) in enumerate(columns)
            if dimension.gripper
        }
        entry = {**statistics.to_json()[key], OBSERVED: observed}
        return (json.dumps({key: entry}, indent=1) + "\n").encode()


def clipped_words(column_N: NDArray[np.float32], spec: DimensionSpec) -> str:
    """How many values of an unscaled dimension have no bin of their own; empty where all have."""
    if spec.normalize:
        return ""
    stored = 1 - column_N if spec.invert else column_N
    clipped = int(np.count_nonzero(np.abs(stored) > 1))
    if not clipped:
        return ""
    return (
        f"; {clipped} of {len(column_N)} values are clipped ({100 * clipped / len(column_N):.1f} %)"
    )


def observed_grippers(entry: Mapping[str, Any]) -> dict[str, str]:
    """Dimension -> what was seen of it, of an entry of `dataset_statistics.json`; empty where nobody looked."""
    return parse_json(dict[str, str], json.dumps(entry.get(OBSERVED, {})), OBSERVED)


def describe_grippers(statistics: DatasetStatistics, observed: Mapping[str, str]) -> list[str]:
    """A small table per gripper dimension: what was seen, what is stored, and what that means to a model."""
    seen = [
        (d, observed.get(str(d)))
        for d, spec in enumerate(statistics.spec.dimensions)
        if spec.gripper
    ]
    return ["\n".join(gripper_table(statistics, d, words)) for d, words in seen if words]


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
