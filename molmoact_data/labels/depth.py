"""Depth teachers: their protocols. How a depth map becomes 8 bits is in `depth_scaling`."""

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
        """Depth scaled to 0..255, uint8 [N,H,W] at any size -> ids [N, grid_h*grid_w], row-major."""
        ...

    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """Ids [N, grid_h*grid_w] -> float32 [N,h,w] in 0..1, larger = nearer."""
        ...


def perplexity(counts_K: NDArray[np.number]) -> float:
    """exp(entropy) of how often K codes occur, at least one of them: 1 = one code, K = all equally often."""
    share = counts_K[counts_K > 0] / counts_K.sum()
    return float(np.exp(-np.sum(share * np.log(share))))
