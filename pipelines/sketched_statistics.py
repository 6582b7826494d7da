"""Statistics of more numbers than fit in memory: the same file, from KLL sketches with a stated error.

Exact statistics hold every value and sort them. Beyond `EXACT_VALUES` each handful of episodes is sketched as
it is read, and sketches merge in any order, here or on a cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from molmoact_data.sources.base import EpisodeSource
from molmoact_data.statistics import DatasetStatistics
from pipelines.sketch import (
    FeatureSketch,
    merge_sketches,
    quantile_table,
    sketch_rows,
    sketched_statistics,
)
from pipelines.statistics import (
    ExactNumbers,
    Gripper,
    NumericEpisode,
    action_spec,
    nothing_usable,
    statistics_json,
)

EXACT_VALUES = 10**9
"""Numbers held for exact quantiles: 4 GB, and as much again while they are sorted. 71 M frames of a 7-D arm."""
RANK_ERROR = "quantile_rank_error"
"""Key in our entry of `dataset_statistics.json`, only where quantiles are sketched."""


def numbers_for(source: EpisodeSource) -> ExactNumbers | SketchedNumbers:
    """Nothing gathered yet: exact where what the metadata promise can be held, sketched beyond."""
    dims = (source.info.action_dim or 0) + (source.info.state_dim or 0)
    values = sum(ref.num_frames for ref in source.episodes) * dims
    return ExactNumbers() if values <= EXACT_VALUES else SketchedNumbers()


@dataclass
class SketchedNumbers:
    """What is kept of the episodes added so far; parts merge in any order."""

    usable: int = 0
    action: FeatureSketch | None = None
    state: FeatureSketch | None = None
    rejects: Counter[str] = field(default_factory=Counter)
    """Reject, in words -> episodes."""

    def add(self, episodes: Sequence[NumericEpisode]) -> None:
        """Sketch a handful of episodes, and let go of their values."""
        good = [e for e in episodes if e.action_TD is not None]
        rejects = Counter(e.reject for e in episodes if e.reject is not None)
        action = _sketch([e.action_TD for e in good])
        self.merge(SketchedNumbers(len(good), action, _sketch([e.state_TS for e in good]), rejects))

    def merge(self, other: SketchedNumbers) -> None:
        """Add what another worker gathered."""
        self.usable += other.usable
        self.action = _merged(self.action, other.action)
        self.state = _merged(self.state, other.state)
        self.rejects.update(other.rejects)

    def statistics_file(self, *, key: str, gripper: Mapping[int, Gripper]) -> bytes:
        """The content of `dataset_statistics.json`; q01 and q99 within the rank error that it states."""
        if self.action is None:
            raise nothing_usable(self.rejects)
        action = sketched_statistics(self.action)
        statistics = DatasetStatistics(
            key=key,
            action=action,
            spec=action_spec(action.dim, gripper),
            state=None if self.state is None else sketched_statistics(self.state),
            num_transitions=self.action.count,
            num_trajectories=self.usable,
        )
        error = {RANK_ERROR: round(self.action.rank_error, 6)}
        return statistics_json(statistics, quantile_table(self.action), error)


def _sketch(values: Sequence[NDArray[np.float32] | None]) -> FeatureSketch | None:
    present = [rows for rows in values if rows is not None and len(rows)]
    return sketch_rows(np.concatenate(present)) if present else None


def _merged(*parts: FeatureSketch | None) -> FeatureSketch | None:
    present = [part for part in parts if part is not None]
    return merge_sketches(present) if present else None
