"""Think: 100 depth codes before the action; cells of the main image that did not change keep their code.

Which cells those are is decided by the same `labels.depth_memory` that made the training's labels.

Legend: B rows, G cells of the grid, row-major.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact_train.families.molmoact2.decoding import Decoding
from molmoact_train.families.molmoact2.network.config import TokenRange


@dataclass(frozen=True)
class DepthAnswer:
    """Codes of one row and what they cost."""

    codes_G: NDArray[np.int64]
    updated_G: NDArray[np.bool_]
    """Which codes were predicted anew; the others were kept."""

    @property
    def num_updated(self) -> int:
        return int(self.updated_G.sum())


def write_depth(
    decoding: Decoding,
    depth: TokenRange,
    updates_BG: NDArray[np.bool_],
    kept_BG: NDArray[np.int64],
    *,
    last_fed: bool = True,
) -> tuple[list[DepthAnswer], list[list[int]]]:
    """The depth answer of every row, and what is left to feed (nothing if `last_fed`).

    A code is decided among the depth rows of the LM head alone. Kept codes and markers are no decisions: they are
    fed together with the code before them, so a pass is spent per updated cell and one at the end.
    """
    rows = range(len(updates_BG))
    codes_BG = kept_BG.copy()
    pending: list[list[int]] = [[depth.start] for _ in rows]
    places = [0 for _ in rows]
    total = updates_BG.shape[1]
    while True:
        for r in rows:
            while places[r] < total and not updates_BG[r, places[r]]:
                pending[r].append(depth.first + int(codes_BG[r, places[r]]))
                places[r] += 1
        if all(place == total for place in places):
            break
        # A row that is complete waits with its tokens until the others are.
        now = [pending[r] if places[r] < total else [] for r in rows]
        hidden = decoding.feed(now)
        scores = decoding.logits(hidden, slice(depth.first, depth.first + depth.count))
        chosen = scores.argmax(dim=-1).tolist()
        for r in rows:
            if places[r] < total:
                codes_BG[r, places[r]] = chosen[r]
                pending[r] = [depth.first + chosen[r]]
                places[r] += 1
    pending = [[*ids, depth.end] for ids in pending]
    if last_fed:
        decoding.feed(pending)
        pending = [[] for _ in rows]
    answers = [DepthAnswer(codes_BG[r], updates_BG[r]) for r in rows]
    return answers, pending


def token_ids(depth: TokenRange, codes_G: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """The whole answer as ids, markers included."""
    return [depth.start, *(depth.first + int(code) for code in codes_G), depth.end]
