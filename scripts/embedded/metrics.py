"""How far predictions are from the ground truth of rendered frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from molmoact_data.label_quality.metrics import rank_correlation
from molmoact_data.labels.pointing import GripperPoints

GOOD_POINT_PX = 8.0


def pointing_scores(
    points: GripperPoints,
    grip_pixel_N2: NDArray[np.float32],
    visible_N: NDArray[np.bool_],
    size_px: int,
) -> dict[str, float]:
    """Errors in pixels of a `size_px` square frame over the visible points, and the visibility's own accuracy.

    `points` must have a point in every frame (no confidence threshold).
    """
    predicted_N2 = points.xy_NA2[:, 0] * (size_px - 1)
    error_N = np.linalg.norm(predicted_N2 - grip_pixel_N2, axis=1)[visible_N]
    agrees_N = (points.confidence_NA[:, 0] > 0.5) == visible_N
    return {
        "visible_frames": int(visible_N.sum()),
        "median_px": float(np.median(error_N)),
        "p90_px": float(np.quantile(error_N, 0.9)),
        "within_8_px": float((error_N <= GOOD_POINT_PX).mean()),
        "visibility_accuracy": float(agrees_N.mean()),
    }


def depth_scores(
    inverse_NHW: NDArray[np.float32], depth_NHW: NDArray[np.uint16]
) -> dict[str, float]:
    """Per-image rank correlation of predicted inverse depth with the true one."""
    scores = [
        rank_correlation(p, -d.astype(np.float32))
        for p, d in zip(inverse_NHW, depth_NHW, strict=True)
    ]
    return {
        "images": len(scores),
        "spearman_mean": float(np.mean(scores)),
        "spearman_p05": float(np.quantile(scores, 0.05)),
        "share_above_0.95": float(np.mean(np.array(scores) >= 0.95)),
    }
