"""Which part of a folder is trained on and which is held out: a pure function of the seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact_train.data.base import Part

_HELD_OUT_STREAM = 4
_STRETCHES = 100


@dataclass(frozen=True)
class SourceOptions:
    """Which rows and cameras of a folder are used."""

    needs: Mapping[str, frozenset[Part]]
    """What training asks, and the labels each question needs; rows that allow none are left out and counted."""
    max_images: int = 1
    """Cameras per row, in the record's order."""
    held_out_fraction: float = 0.0
    """Share of the episodes that is set aside, whole; of the rows where there are no episodes."""
    held_out: bool = False
    """True = read those that were set aside, False = the others."""
    seed: int = 0
    """Decides alone which episodes are set aside."""
    max_samples: int | None = None
    """Use only the first so many usable rows."""


def chosen_episodes(episodes: NDArray[np.int64], options: SourceOptions) -> NDArray[np.int64]:
    """A fixed share of the episodes (or of the others), sorted; never all of them are held out."""
    count = min(round(options.held_out_fraction * len(episodes)), len(episodes) - 1)
    stream = np.random.SeedSequence([options.seed, _HELD_OUT_STREAM])
    order = np.random.Generator(np.random.Philox(stream)).permutation(episodes)
    return np.sort(order[:count] if options.held_out else order[count:])


def chosen_rows(size: int, options: SourceOptions) -> NDArray[np.int64]:
    """The same for rows without episodes, in stretches of a hundredth: neighbours may be frames of one film."""
    if size < 1 or not (options.held_out or options.held_out_fraction):
        return np.arange(size)
    stretch = np.arange(size) * min(size, _STRETCHES) // size
    return np.flatnonzero(np.isin(stretch, chosen_episodes(np.unique(stretch), options)))
