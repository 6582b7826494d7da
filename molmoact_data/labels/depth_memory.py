"""Depth codes that only follow where the picture changed: MolmoAct2's memory, in the labels and in acting alike.

A cell of the main picture that looks as it did keeps its old code. T frames, G cells of a square grid, row-major,
P numbers of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Resize = Literal["pil", "opencv"]
CELL = 32
"""Pixels of a cell's side once the picture is scaled."""
COSINE_THRESHOLD = 0.996
"""Similarity below which a cell counts as changed."""
_MIN_NORM_PRODUCT = 1e-8


@dataclass(frozen=True)
class ChangeRule:
    """How pictures are compared when labels are made, and when a policy acts."""

    labels_resize: Resize
    acting_resize: Resize
    black_forgets: bool
    """A black picture (a camera that dropped out) empties the memory, instead of changing nothing."""


CHANGE_RULES: Mapping[str, ChangeRule] = {
    "consistent": ChangeRule("pil", "pil", black_forgets=True),
    "original": ChangeRule("opencv", "pil", black_forgets=False),
}
"""`original` is MolmoAct2's mixture: its annotation scales without a filter against aliasing, its inference with."""


@dataclass
class DepthMemory:
    """The picture and codes before, of one episode. `look` at a picture, then `remember` its codes."""

    resize: Resize
    black_forgets: bool
    num_cells: int = 100
    threshold: float = COSINE_THRESHOLD
    _before_GP: NDArray[np.float64] | None = None
    _seen_GP: NDArray[np.float64] | None = None
    codes_G: NDArray[np.int64] = field(init=False)
    """Codes of the picture before; zeros where there is none."""

    def __post_init__(self) -> None:
        self.codes_G = np.zeros(self.num_cells, dtype=np.int64)

    def look(self, rgb_HWC: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """bool [G]: which cells need a new code; all of them where nothing is remembered."""
        seen = cells_of(rgb_HWC, self.num_cells, self.resize)
        before, self._seen_GP = self._before_GP, seen
        if self.black_forgets and not rgb_HWC.any():
            before, self._seen_GP = None, None
        if before is None:
            return np.ones(self.num_cells, dtype=bool)
        return cosine_similarity(before, seen) < self.threshold

    def remember(self, codes_G: NDArray[np.integer]) -> None:
        """The codes of the picture that was looked at last."""
        self._before_GP, self.codes_G = self._seen_GP, codes_G.astype(np.int64)

    def forget(self) -> None:
        """A new episode."""
        self._before_GP = None


@dataclass(frozen=True)
class BufferedCodes:
    """The two columns of some consecutive frames."""

    buffer_TG: NDArray[np.int64]
    updated_TG: NDArray[np.bool_]


def buffered(
    memory: DepthMemory, rgb_NHWC: NDArray[np.uint8], codes_NG: NDArray[np.integer]
) -> BufferedCodes:
    """The columns of the next N frames of the memory's episode."""
    updated_NG = np.empty(codes_NG.shape, dtype=bool)
    buffer_NG = np.empty(codes_NG.shape, dtype=np.int64)
    for n, (rgb_HWC, codes_G) in enumerate(zip(rgb_NHWC, codes_NG, strict=True)):
        updated_NG[n] = memory.look(rgb_HWC)
        memory.remember(np.where(updated_NG[n], codes_G, memory.codes_G))
        buffer_NG[n] = memory.codes_G
    return BufferedCodes(buffer_NG, updated_NG)


def changed_cells(
    before_HWC: NDArray[np.uint8], now_HWC: NDArray[np.uint8], num_cells: int, resize: Resize
) -> NDArray[np.bool_]:
    """bool [G]: which cells of two pictures differ; a cell that is black in either counts as unchanged."""
    pair = [cells_of(rgb, num_cells, resize) for rgb in (before_HWC, now_HWC)]
    return cosine_similarity(*pair) < COSINE_THRESHOLD


def cells_of(rgb_HWC: NDArray[np.uint8], num_cells: int, resize: Resize) -> NDArray[np.float64]:
    """[G, P]: the picture, scaled bilinearly to 32 pixels a cell. The order of channels does not matter."""
    side = grid_side(num_cells)
    scaled = _scaled(rgb_HWC, side * CELL, resize)
    tiles = scaled.reshape(side, CELL, side, CELL, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(num_cells, -1).astype(np.float64)


def grid_side(num_cells: int) -> int:
    """Cells along one side. Raises ValueError where they are no square."""
    side = math.isqrt(num_cells)
    if side * side != num_cells:
        raise ValueError(f"{num_cells} depth codes are no square grid")
    return side


def _scaled(rgb_HWC: NDArray[np.uint8], size: int, resize: Resize) -> NDArray[np.uint8]:
    if resize == "pil":
        from PIL import Image

        picture = Image.fromarray(rgb_HWC).resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(picture)
    import cv2

    scaled = cv2.resize(rgb_HWC, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.asarray(scaled, dtype=np.uint8)


def cosine_similarity(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis; 1 where either is (nearly) zero. Dot products of bytes are exact in float64."""
    product = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    nothing = product < _MIN_NORM_PRODUCT
    dot = np.einsum("...p,...p->...", a, b)
    return np.where(nothing, 1.0, dot / np.where(nothing, 1.0, product))
