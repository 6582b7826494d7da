"""Think: 100 depth codes before the action; cells of the main image that did not change keep their code.

Legend: B rows, G cells of the grid, row-major.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from molmoact_train.families.molmoact2.decoding import Decoding
from molmoact_train.families.molmoact2.network.config import TokenRange

CELL = 32
"""Pixels of a cell's side once the image is scaled."""
THRESHOLD = 0.996
"""Cosine similarity below which a cell counts as changed."""
_MIN_NORM = 1e-8


@dataclass(frozen=True)
class DepthMemory:
    """The previous answer: its main image and its codes."""

    rgb_HWC: NDArray[np.uint8]
    codes_G: NDArray[np.int64]


@dataclass(frozen=True)
class DepthAnswer:
    """Codes of one row and what they cost."""

    codes_G: NDArray[np.int64]
    updated_G: NDArray[np.bool_]
    """Which codes were predicted anew; the others were kept."""

    @property
    def num_updated(self) -> int:
        return int(self.updated_G.sum())


def is_black(rgb_HWC: NDArray[np.uint8]) -> bool:
    """A camera that dropped out: its picture says nothing about what changed."""
    return not rgb_HWC.any()


def changed_cells(
    previous_HWC: NDArray[np.uint8], current_HWC: NDArray[np.uint8], num_cells: int
) -> NDArray[np.bool_]:
    """bool [G]: cosine similarity of each cell of the two pictures below the threshold.

    Both are scaled with PIL's bilinear filter, as in the released inference. A cell that is black in either picture
    counts as unchanged.
    """
    before, now = (_cells(rgb, num_cells) for rgb in (previous_HWC, current_HWC))
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(now, axis=1)
    similarity = (before * now).sum(axis=1) / (norms + 1e-12)
    return np.where(norms < _MIN_NORM, 1.0, similarity) < THRESHOLD


def _cells(rgb_HWC: NDArray[np.uint8], num_cells: int) -> NDArray[np.float64]:
    """[G, cell * cell * 3]."""
    side = math.isqrt(num_cells)
    if side * side != num_cells:
        raise ValueError(f"{num_cells} depth codes are no square grid")
    size = (side * CELL, side * CELL)
    scaled = np.asarray(Image.fromarray(rgb_HWC).resize(size, Image.Resampling.BILINEAR))
    cells = scaled.reshape(side, CELL, side, CELL, 3).transpose(0, 2, 1, 3, 4)
    return cells.reshape(num_cells, -1).astype(np.float64)


def cells_to_update(
    memory: DepthMemory | None,
    rgb_HWC: NDArray[np.uint8],
    num_cells: int,
    *,
    keep_through_black: bool = False,
) -> NDArray[np.bool_]:
    """bool [G]; all of them without a memory, or at a black picture (which the original takes for unchanged)."""
    if memory is None or (is_black(rgb_HWC) and not keep_through_black):
        return np.ones(num_cells, dtype=bool)
    return changed_cells(memory.rgb_HWC, rgb_HWC, num_cells)


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
