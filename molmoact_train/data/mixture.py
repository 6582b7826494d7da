"""Which sample stands at which position of the stream: a pure function of the seed and the position.

Nothing here is consumed or advanced. Position p is drawn by counter (source, then the row that the source's
n-th draw reads in its epoch's permutation), so processes, workers and resumed runs agree without talking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.files.recent import Recent

_BLOCK = 1 << 16
"""Positions drawn at once; part of the stream's definition, so never change it."""
_SOURCE_STREAM, _ORDER_STREAM, _SAMPLE_STREAM = 1, 2, 3


@dataclass(frozen=True)
class DataArgument:
    """One `PATH[:weight]` of the command line."""

    path: str
    weight: float | None
    """Relative rate; None = the square root of the number of samples."""


def parse_data_argument(text: str) -> DataArgument:
    """`runs/a` or `runs/a:0.25`. A folder whose own name ends in `:number` wins over a weight."""
    head, colon, tail = text.rpartition(":")
    if not colon or not head or Path(text).exists():
        return DataArgument(text, None)
    try:
        weight = float(tail)
    except ValueError:
        return DataArgument(text, None)
    if not 0 < weight < float("inf"):
        raise UserError(f"--data {text}: the weight must be a positive number, got {tail}.")
    return DataArgument(head, weight)


def sampling_rates(sizes: Sequence[int], weights: Sequence[float | None]) -> NDArray[np.float64]:
    """Rates that sum to 1: given weights as they are, the square root of the size where there is none.

    Mixing both would compare unlike numbers, so it is refused.
    """
    if any(size < 1 for size in sizes):
        raise UserError("a data source has no usable sample.")
    given = [weight for weight in weights if weight is not None]
    if given and len(given) != len(weights):
        raise UserError(
            "some --data have a weight and some have none; give all of them one (PATH:weight) or none "
            "(then each is drawn with the square root of its size)."
        )
    raw = np.asarray(given or np.sqrt(np.asarray(sizes, dtype=np.float64)), dtype=np.float64)
    return raw / raw.sum()


@dataclass(frozen=True)
class Draw:
    """What stands at one position."""

    position: int
    source: int
    """Index into the sources."""
    row: int
    """Row of that source, 0 <= row < size."""
    epoch: int
    """How often that source was read in full before."""


class Mixture:
    """The endless stream over several sources. Holds caches only; equal arguments, equal stream."""

    def __init__(self, sizes: Sequence[int], rates: NDArray[np.float64], seed: int) -> None:
        self.sizes = tuple(sizes)
        self.seed = seed
        self.rates = rates
        self._edges = np.cumsum(rates)
        self._edges[-1] = 1.0
        self._counts_before: list[NDArray[np.int64]] = [np.zeros(len(sizes), dtype=np.int64)]
        self._blocks = Recent[int, tuple[NDArray[np.int64], NDArray[np.int64]]](4)
        self._orders = Recent[tuple[int, int], NDArray[np.int64]](2 * len(self.sizes))

    def at(self, position: int) -> Draw:
        """The sample at a position >= 0."""
        block, offset = divmod(position, _BLOCK)
        sources, ordinals = self._blocks.get(block, lambda: self._draw_block(block))
        source, ordinal = int(sources[offset]), int(ordinals[offset])
        epoch, place = divmod(ordinal, self.sizes[source])
        order = self._orders.get((source, epoch), lambda: self._order(source, epoch))
        return Draw(position, source, int(order[place]), epoch)

    def _draw_block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source of each position of a block and which draw of that source it is."""
        sources = self._sources(block)
        ordinals = np.empty(_BLOCK, dtype=np.int64)
        for source, before in enumerate(self._draws_before(block)):
            mine = np.flatnonzero(sources == source)
            ordinals[mine] = before + np.arange(len(mine))
        return sources, ordinals

    def _sources(self, block: int) -> NDArray[np.int64]:
        if len(self.sizes) == 1:
            return np.zeros(_BLOCK, dtype=np.int64)
        uniform = _generator(self.seed, _SOURCE_STREAM, block, 0).random(_BLOCK)
        return np.searchsorted(self._edges, uniform, side="right")

    def _draws_before(self, block: int) -> NDArray[np.int64]:
        """Draws of each source before a block; a resumed run counts through them once (about 1 ms a block)."""
        while len(self._counts_before) <= block:
            done = len(self._counts_before) - 1
            counts = np.bincount(self._sources(done), minlength=len(self.sizes))
            self._counts_before.append(self._counts_before[-1] + counts)
        return self._counts_before[block]

    def _order(self, source: int, epoch: int) -> NDArray[np.int64]:
        """The permutation in which one source is read in one epoch."""
        return _generator(self.seed, _ORDER_STREAM, source, epoch).permutation(self.sizes[source])


def sample_rng(seed: int, position: int) -> np.random.Generator:
    """The generator for everything that is random about the sample at a position: kind, crop, colours."""
    return _generator(seed, _SAMPLE_STREAM, position, 0)


def _generator(seed: int, stream: int, first: int, second: int) -> np.random.Generator:
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence([seed, stream, first, second]))
    )


def positions_of(step: int, global_batch_size: int, rank: int, world_size: int) -> range:
    """Positions that one process reads for update `step` (0-based): every `world_size`-th of the global batch."""
    first = step * global_batch_size
    return range(first + rank, first + global_batch_size, world_size)
