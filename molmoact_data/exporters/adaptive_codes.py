"""Codes that only follow where the picture changed: what MolmoAct2 reads instead of new codes every frame.

T frames, G = 100 patches of a 10x10 grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from molmoact_data import schema

BUFFER_CODES, UPDATED_MASK = "buffer_codes", "depth_updated_mask"
IMAGE_SIZE, PATCH_SIZE, GRID = 320, 32, 10
MIN_NORM_PRODUCT = 1e-8
FRAMES_PER_BATCH = 64


@dataclass(frozen=True)
class AdaptiveCodes:
    """The three columns of some consecutive frames."""

    codes_TG: NDArray[np.int16]
    buffer_TG: NDArray[np.int16]
    updated_TG: NDArray[np.bool_]

    def columns(self) -> dict[str, pa.Array]:
        """As Arrow lists."""
        return {
            schema.DEPTH_CODES: pa.array(self.codes_TG.tolist(), pa.list_(pa.int16(), GRID**2)),
            BUFFER_CODES: pa.array(self.buffer_TG.tolist(), pa.list_(pa.int16(), GRID**2)),
            UPDATED_MASK: pa.array(self.updated_TG.tolist(), pa.list_(pa.bool_(), GRID**2)),
        }


@dataclass
class AdaptiveBuffer:
    """Runs over one episode, batch by batch; holds one frame's patches and one buffer."""

    threshold: float
    _patches_GP: NDArray[np.float64] | None = None
    _buffer_G: NDArray[np.int16] = field(default_factory=lambda: np.zeros(GRID**2, np.int16))

    def push(self, rgb_NHWC: NDArray[np.uint8], codes_NG: NDArray[np.integer]) -> AdaptiveCodes:
        """The columns of the next N frames."""
        patches = np.stack([patches_of(rgb) for rgb in rgb_NHWC])
        before = patches[:1] if self._patches_GP is None else self._patches_GP[None]
        similarity_NG = cosine_similarity(np.concatenate([before, patches[:-1]]), patches)
        updated_NG = similarity_NG < self.threshold
        if self._patches_GP is None:
            updated_NG[0] = True
        buffer_NG = np.empty(codes_NG.shape, np.int16)
        for n, (codes_G, updated_G) in enumerate(zip(codes_NG, updated_NG, strict=True)):
            self._buffer_G = np.where(updated_G, codes_G, self._buffer_G).astype(np.int16)
            buffer_NG[n] = self._buffer_G
        self._patches_GP = patches[-1]
        return AdaptiveCodes(codes_NG.astype(np.int16), buffer_NG, updated_NG)


def patches_of(rgb_HWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A frame at 320x320 (bilinear, uint8) as 100 flat patches, row-major. Channel order does not matter."""
    import cv2

    small = cv2.resize(rgb_HWC, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_LINEAR)
    tiles = small.reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(GRID**2, -1).astype(np.float64)


def cosine_similarity(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last axis; 1 where either is (nearly) zero. Dot products of bytes are exact in float64."""
    product = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    nothing = product < MIN_NORM_PRODUCT
    dot = np.einsum("...p,...p->...", a, b)
    return np.where(nothing, 1.0, dot / np.where(nothing, 1.0, product))
