"""Numbers for a depth codec, as plain numpy functions and sums that add up over batches.

Depth here is relative (0..1, larger = nearer), so "AbsRel" and "delta1" are ratios of scaled inverse
depth, not of metres: comparable between codecs on the same maps, not with a depth-estimation paper.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from molmoact_data.labels.depth import perplexity

RATIO_MIN_DEPTH = 0.05
"""Ratios are taken where the true value is at least this; nearer to zero they measure nothing."""
EDGE_STEP = 0.04
"""Neighbouring pixels that differ by more than this share of the map's range are a boundary."""
EDGE_REACH_PX = 2
"""Pixels this close to a boundary count as its surroundings."""


def boundary_mask(depth_NHW: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels within `EDGE_REACH_PX` of a step in the true depth: bool [N,H,W]."""
    steps = np.zeros(depth_NHW.shape, np.uint8)
    down = np.abs(np.diff(depth_NHW, axis=1)) > EDGE_STEP
    right = np.abs(np.diff(depth_NHW, axis=2)) > EDGE_STEP
    steps[:, 1:] |= down
    steps[:, :-1] |= down
    steps[:, :, 1:] |= right
    steps[:, :, :-1] |= right
    kernel = np.ones((2 * EDGE_REACH_PX - 1,) * 2, np.uint8)
    return np.stack([cv2.dilate(s, kernel) for s in steps]).astype(bool)


@dataclass(frozen=True)
class ReconstructionSums:
    """What must be added up over batches so that the averages are over pixels, not over batches."""

    num_maps: int = 0
    num_pixels: int = 0
    squared_error: float = 0.0
    absolute_error: float = 0.0
    num_ratio_pixels: int = 0
    relative_error: float = 0.0
    num_delta1: int = 0
    num_boundary_pixels: int = 0
    boundary_error: float = 0.0

    def __add__(self, other: ReconstructionSums) -> ReconstructionSums:
        return ReconstructionSums(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        )

    def averages(self) -> dict[str, float | None]:
        """mse, psnr_db, mae, abs_rel, delta1, boundary_mae; None where no pixel qualified."""

        def ratio(total: float, count: int) -> float | None:
            return total / count if count else None

        mse = ratio(self.squared_error, self.num_pixels)
        return {
            "mse": mse,
            "psnr_db": float(-10 * np.log10(mse)) if mse else None,
            "mae": ratio(self.absolute_error, self.num_pixels),
            "abs_rel": ratio(self.relative_error, self.num_ratio_pixels),
            "delta1": ratio(self.num_delta1, self.num_ratio_pixels),
            "boundary_mae": ratio(self.boundary_error, self.num_boundary_pixels),
        }


def reconstruction_sums(
    decoded_NHW: NDArray[np.float32], true_NHW: NDArray[np.float32]
) -> ReconstructionSums:
    """Compare float32 [N,H,W] in 0..1 with the true maps in 0..1."""
    error = np.abs(decoded_NHW.astype(np.float64) - true_NHW)
    valid = true_NHW >= RATIO_MIN_DEPTH
    true, decoded = true_NHW[valid], np.maximum(decoded_NHW[valid], 1e-6)
    boundary = boundary_mask(true_NHW)
    return ReconstructionSums(
        num_maps=len(true_NHW),
        num_pixels=error.size,
        squared_error=float((error**2).sum()),
        absolute_error=float(error.sum()),
        num_ratio_pixels=int(valid.sum()),
        relative_error=float((error[valid] / true).sum()),
        num_delta1=int((np.maximum(decoded / true, true / decoded) < 1.25).sum()),
        num_boundary_pixels=int(boundary.sum()),
        boundary_error=float(error[boundary].sum()),
    )


def code_counts(codes: NDArray[np.integer], codebook_size: int) -> NDArray[np.int64]:
    """How often each code occurs: int64 [codebook_size]."""
    return np.bincount(np.ravel(codes), minlength=codebook_size).astype(np.int64)


def code_usage(counts: NDArray[np.int64]) -> dict[str, float | int]:
    """codes_used, dead_codes, and perplexity."""
    return {
        "codes_used": int((counts > 0).sum()),
        "dead_codes": int((counts == 0).sum()),
        "perplexity": perplexity(counts),
    }


def changed_share(codes_TC: NDArray[np.integer]) -> float | None:
    """Share of codes that differ between neighbouring frames of one episode, codes [T,C]."""
    if len(codes_TC) < 2:
        return None
    return float((codes_TC[1:] != codes_TC[:-1]).mean())
