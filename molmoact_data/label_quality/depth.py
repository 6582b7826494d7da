"""Estimated depth and its codes against the true depth of the same frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact_data.label_quality.metrics import DepthScores, depth_scores, rank_correlation
from molmoact_data.labels.depth import DepthEstimator, DepthTokenizer, perplexity
from molmoact_data.labels.depth_scaling import DepthScaler, DepthScaling


@dataclass(frozen=True)
class CodeScores:
    """What is left of the estimated depth after the codebook (100 codes in the released geometry)."""

    scaling: DepthScaling
    """By which range the depth became 8 bits."""
    frames: int
    mean_absolute_error: float
    """Of the decoded picture against the scaled one, both 0..1."""
    psnr_db: float
    rank_correlation_with_truth: float
    """Of the decoded picture with the true inverse depth."""
    codes_used: int
    codebook_size: int
    perplexity: float


@dataclass(frozen=True)
class FrameCodes:
    """One frame's codes, and how far what they say is from the estimate (0..1) and from the truth."""

    codes_N: NDArray[np.int64]
    absolute_error: float
    squared_error: float
    rank_correlation: float


def measure_depth(
    rgb_NHWC: NDArray[np.uint8],
    true_m_NHW: NDArray[np.floating],
    depth: DepthEstimator,
    tokenizer: DepthTokenizer | None,
    scaler: DepthScaler,
    rows: Sequence[int],
) -> list[tuple[DepthScores, FrameCodes | None]]:
    """Scores of `rows` of the next N frames against their true distance in metres, 0 = not known."""
    shown = range(len(rgb_NHWC)) if scaler.looks_back else rows
    if not shown:
        return []
    estimate_NHW = depth.estimate(rgb_NHWC[list(shown)])
    scaled_NHW, _ = scaler.scale(estimate_NHW)
    scored = [shown.index(row) for row in rows]
    estimate_NHW, scaled_NHW, true_m_NHW = (
        estimate_NHW[scored],
        scaled_NHW[scored],
        true_m_NHW[list(rows)],
    )
    scores = [depth_scores(e, m) for e, m in zip(estimate_NHW, true_m_NHW, strict=True)]
    if tokenizer is None:
        return [(score, None) for score in scores]
    codes_NG = tokenizer.encode(scaled_NHW)
    decoded_Nhw = tokenizer.decode(codes_NG)
    size = decoded_Nhw.shape[1:]
    codes = [
        _code_errors(codes, decoded, nearest(scaled, size) / 255.0, nearest(true_m, size))
        for codes, decoded, scaled, true_m in zip(
            codes_NG, decoded_Nhw, scaled_NHW, true_m_NHW, strict=True
        )
    ]
    return list(zip(scores, codes, strict=True))


def _code_errors(
    codes_N: NDArray[np.int64],
    decoded_hw: NDArray[np.float32],
    scaled_hw: NDArray[np.floating],
    true_m_hw: NDArray[np.floating],
) -> FrameCodes:
    error = decoded_hw - scaled_hw
    known = np.isfinite(true_m_hw) & (true_m_hw > 0)
    return FrameCodes(
        codes_N,
        absolute_error=float(np.abs(error).mean()),
        squared_error=float(np.square(error).mean()),
        rank_correlation=rank_correlation(decoded_hw[known], 1 / true_m_hw[known]),
    )


def nearest(picture_HW: NDArray[np.generic], size_hw: Sequence[int]) -> NDArray:
    """The picture at another size by nearest neighbour."""
    rows, columns = (
        np.arange(new) * old // new for new, old in zip(size_hw, picture_HW.shape, strict=True)
    )
    return picture_HW[rows[:, None], columns]


def summarise_depth(scores: list[DepthScores]) -> dict[str, float]:
    """Means over at least one frame, and the 5th percentile of the rank correlation."""
    correlations = [score.rank_correlation for score in scores]
    edges = [score.edge_f1 for score in scores if score.edge_f1 is not None]
    means = {
        "frames": float(len(scores)),
        "rank_correlation": float(np.mean(correlations)),
        "rank_correlation_p5": float(np.percentile(correlations, 5)),
        "abs_rel": float(np.mean([score.abs_rel for score in scores])),
        "delta1": float(np.mean([score.delta1 for score in scores])),
    }
    return {**means, "edge_f1": float(np.mean(edges))} if edges else means


def summarise_codes(
    frames: list[FrameCodes], codebook_size: int, scaling: DepthScaling
) -> CodeScores:
    """Over at least one frame."""
    counts = np.bincount(np.concatenate([t.codes_N for t in frames]), minlength=codebook_size)
    squared_error = float(np.mean([t.squared_error for t in frames]))
    return CodeScores(
        scaling=scaling,
        frames=len(frames),
        mean_absolute_error=float(np.mean([t.absolute_error for t in frames])),
        psnr_db=float(-10 * np.log10(max(squared_error, 1e-12))),
        rank_correlation_with_truth=float(np.mean([t.rank_correlation for t in frames])),
        codes_used=int((counts > 0).sum()),
        codebook_size=codebook_size,
        perplexity=perplexity(counts),
    )
