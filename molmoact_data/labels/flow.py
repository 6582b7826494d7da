"""Optical flow from one frame to another whose points are known: a path forwards, a path backwards, their blend.

A cluster of points around the grip point moves together, by pyramidal Lucas-Kanade flow. Each path is bent to end where
the other begins, and the two are blended by distance in time. Where they come apart further than `tolerance`, needed
bending by more than `max_drift`, or one of them is lost, there is no path.

Letters: S frames from the first to the last, P points of a cluster.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FlowConfig:
    """When flow is believed. Lengths are shares of the image diagonal."""

    tolerance: float = 0.02
    """Largest distance between the (bent) forward and backward path that is blended."""
    max_drift: float = 0.1
    """Farthest that the forward path may end from the keyframe it leads to."""
    cluster_radius: float = 0.025
    """Half side of the square of points that moves together with the gripper."""
    step_error_px: float = 1.0
    """A point of the cluster counts if one step there and back returns this close."""
    min_inliers: float = 0.1
    """Share of the cluster that must count; below it the path is lost."""

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"the tracking tolerance must lie in (0, 1), got {self.tolerance}")


@dataclass(frozen=True)
class Path:
    """One arm through a segment: unit coordinates [S,2] and path distances [S] (share of the diagonal)."""

    xy_S2: NDArray[np.float32]
    apart_S: NDArray[np.float32]


def between(
    gray: Sequence[NDArray[np.uint8]],
    start_xy: NDArray[np.float32],
    end_xy: NDArray[np.float32],
    config: FlowConfig,
) -> Path | None:
    """One arm from frame to frame [H,W], from where it is in the first to where it is in the last, unit coordinates.

    The blend of the two paths; None where they come apart or only one end was found.
    """
    frames = len(gray)
    found = [not np.isnan(xy).any() for xy in (start_xy, end_xy)]
    if not any(found):
        # Out of sight at both ends: taken to be out of sight between them.
        return Path(np.full((frames, 2), np.nan, np.float32), np.full(frames, np.nan, np.float32))
    if not all(found):
        return None
    height, width = gray[0].shape
    to_px = np.array([width - 1, height - 1], np.float32)
    diagonal = float(np.hypot(width, height))
    forward_S2 = carry(gray, start_xy * to_px, diagonal, config)
    backward_S2 = carry(gray[::-1], end_xy * to_px, diagonal, config)[::-1]
    drift = np.linalg.norm(forward_S2[-1] - backward_S2[-1]) / diagonal
    blended_S2, apart_px_S = blend_paths(forward_S2, backward_S2)
    apart_S = apart_px_S / diagonal
    # Comparisons with NaN, a lost path, are false.
    if not (drift <= config.max_drift and (apart_S <= config.tolerance).all()):
        return None
    xy_S2 = np.clip(blended_S2 / to_px, 0, 1)
    return Path(xy_S2.astype(np.float32), apart_S.astype(np.float32))


def blend_paths(
    forward_S2: NDArray[np.float32], backward_S2: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two paths in pixels, the one exact at its first and the other at its last frame -> one, and their distance.

    A cluster with background in it lags behind the gripper, evenly along the way: each path is first bent so
    that it ends where the other begins. Then they are blended by distance in time. The distance [S] is that
    of the bent paths, 0 at both ends.
    """
    weight_S1 = np.linspace(0, 1, len(forward_S2), dtype=np.float32)[:, None]
    forward_S2 = forward_S2 + weight_S1 * (backward_S2[-1] - forward_S2[-1])
    backward_S2 = backward_S2 + (1 - weight_S1) * (forward_S2[0] - backward_S2[0])
    blended_S2 = (1 - weight_S1) * forward_S2 + weight_S1 * backward_S2
    return blended_S2, np.linalg.norm(forward_S2 - backward_S2, axis=1)


def carry(
    gray: Sequence[NDArray[np.uint8]],
    start_px: NDArray[np.float32],
    diagonal: float,
    config: FlowConfig,
) -> NDArray[np.float32]:
    """Pixel positions [S,2] of the point that starts at `start_px` in the first frame; NaN once lost."""
    path_S2 = np.full((len(gray), 2), np.nan, np.float32)
    path_S2[0] = start_px
    offsets_P2 = _cluster_offsets(config.cluster_radius * diagonal)
    for step, (before, after) in enumerate(itertools.pairwise(gray), start=1):
        motion = cluster_motion(before, after, path_S2[step - 1] + offsets_P2, config)
        if motion is None:
            break
        path_S2[step] = path_S2[step - 1] + motion
    return path_S2


def cluster_motion(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    points_P2: NDArray[np.float32],
    config: FlowConfig,
) -> NDArray[np.float32] | None:
    """Median motion [2] in pixels of the points that return to where they came from; None = lost."""
    height, width = before.shape
    limit = np.array([width - 1, height - 1], np.float32)
    inside_P = ((points_P2 >= 0) & (points_P2 <= limit)).all(axis=1)
    points_P2 = np.ascontiguousarray(points_P2[inside_P], np.float32)
    if not len(points_P2):
        return None
    there_P2, found_P = _flow(before, after, points_P2)
    back_P2, returned_P = _flow(after, before, there_P2)
    error_P = np.linalg.norm(back_P2 - points_P2, axis=1)
    counts_P = found_P & returned_P & (error_P <= config.step_error_px)
    if counts_P.mean() < config.min_inliers:
        return None
    return np.median(there_P2[counts_P] - points_P2[counts_P], axis=0)


WINDOW = (21, 21)
LEVELS = 3


def _flow(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    points_P2: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where the points went [P,2], and whether they were found [P]."""
    there, status, _ = cv2.calcOpticalFlowPyrLK(
        before, after, points_P2[:, None], None, winSize=WINDOW, maxLevel=LEVELS
    )
    return there[:, 0], status[:, 0].astype(bool)


def _cluster_offsets(radius_px: float, per_side: int = 5) -> NDArray[np.float32]:
    steps = np.linspace(-radius_px, radius_px, per_side, dtype=np.float32)
    return np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
