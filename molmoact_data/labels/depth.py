"""Depth teachers: protocols, and the one way a depth map becomes 8 bits."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class DepthEstimator(Protocol):
    """Relative inverse depth from images."""

    def describe(self) -> dict[str, str]:
        """`name`, `revision` and `licence` of the teacher, for the manifest; part of the config hash."""
        ...

    def estimate(self, rgb_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB uint8 [N,H,W,3] -> float32 [N,H,W], larger = nearer, no unit. All finite."""
        ...


@runtime_checkable
class DepthTokenizer(Protocol):
    """Depth maps to a fixed grid of codes and back."""

    codebook_size: int
    grid_hw: tuple[int, int]

    def describe(self) -> dict[str, str]:
        """`name`, `revision`, `licence` and the preprocessing recipe (`range`, `resize`)."""
        ...

    def encode(self, depth_u8_NHW: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Per-image scaled depth, uint8 [N,H,W] at any size -> ids [N, grid_h*grid_w], row-major."""
        ...

    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """Ids [N, grid_h*grid_w] -> float32 [N,h,w] in 0..1, larger = nearer."""
        ...


def scale_to_u8(depth_NHW: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Per-image min-max scaling, truncated to uint8, as the codebook was trained.

    Returns the maps [N,H,W] in 0..255 and the raw (min, max) [N,2], so that it can be redone.
    Formula: (d - min) / (max - min + 1e-8) * 255 (Depth-Anything-V2 / MolmoAct preprocessing).
    """
    low = depth_NHW.min(axis=(1, 2), keepdims=True)
    high = depth_NHW.max(axis=(1, 2), keepdims=True)
    scaled = (depth_NHW - low) / (high - low + 1e-8) * 255.0
    return scaled.astype(np.uint8), np.concatenate([low[:, 0], high[:, 0]], axis=1).astype(
        np.float32
    )


def perplexity(counts_K: NDArray[np.number]) -> float:
    """exp(entropy) of how often K codes occur, at least one of them: 1 = one code, K = all equally often."""
    share = counts_K[counts_K > 0] / counts_K.sum()
    return float(np.exp(-np.sum(share * np.log(share))))
