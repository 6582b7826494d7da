"""What optical flow costs per frame: time outside the pointer, for every K. No model is run.

    PYTHONPATH=. python benchmarks/tracking.py [--side 256] [--frames 300]

A textured square moves over a textured table; the pointer is the truth and takes no time, so all time is flow.
"""

from __future__ import annotations

import argparse
import time

import cv2
import numpy as np

from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.labels.tracking import PointTracker

BATCH = 32


class Truth:
    """Serves known points; counts what it is asked."""

    num_arms = 1

    def __init__(self, xy_T2: np.ndarray) -> None:
        self.xy_T2 = xy_T2
        self.calls = 0

    def point_frames(
        self, rgb_NHWC: np.ndarray, prompt: str, frame_index_N: list[int]
    ) -> GripperPoints:
        self.calls += len(rgb_NHWC)
        xy = self.xy_T2[frame_index_N][:, None].astype(np.float32)
        return GripperPoints(xy, np.ones(xy.shape[:2], np.float32))


def episode(side: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    table, block = (
        cv2.GaussianBlur(rng.integers(0, 256, (n, n, 3), dtype=np.uint8), (5, 5), 0)
        for n in (side, side // 5)
    )
    t = np.arange(frames)
    centre = side * (0.5 + 0.3 * np.stack([np.sin(t / 17), np.cos(t / 23)], axis=1))
    corner = (centre - len(block) / 2).round().astype(int)
    rgb = np.repeat(table[None], frames, axis=0)
    for frame, (x, y) in zip(rgb, corner, strict=True):
        frame[y : y + len(block), x : x + len(block)] = block
    return rgb, (corner + (len(block) - 1) / 2) / (side - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--frames", type=int, default=300)
    args = parser.parse_args()
    rgb, xy_T2 = episode(args.side, args.frames)
    print(f"{args.frames} frames of {args.side}x{args.side}; flow alone")
    print("   K   asked   ms/frame   median px")
    for every in (1, 2, 4, 8, 16, 32):
        pointer = Truth(xy_T2)
        tracker = PointTracker(pointer, "point", every)
        start = time.process_time()
        for first in range(0, args.frames, BATCH):
            tracker.push(rgb[first : first + BATCH])
        points = tracker.finish().points
        spent_ms = 1000 * (time.process_time() - start) / args.frames
        error = np.linalg.norm(points.xy_NA2[:, 0] - xy_T2, axis=1) * (args.side - 1)
        asked = pointer.calls / args.frames
        print(f"{every:4d}   {asked:5.3f}   {spent_ms:8.2f}   {np.median(error):9.2f}")


if __name__ == "__main__":
    main()
