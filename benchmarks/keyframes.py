"""Which frames to ask the pointer about: every K-th, or as the arm moves; questions and errors on rendered episodes.

    PYTHONPATH=. MUJOCO_GL=egl python benchmarks/keyframes.py FOLDER [--episodes 8] [--seed 4200] [--pointer embedded]

Held-out scenes, seen by a camera that is five times as fast as the actions (50 frames/s, as ALOHA records): there are
demonstrations of 200 frames and more. Rendered once into FOLDER, then read from there. No model is trained or fetched.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from molmoact_data.label_quality.metrics import point_error_px
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.labels.tracking import PointTracker

FRAMES_PER_ACTION = 5
LEAST_FRAMES = 200
RULES = ((1, False), (10, False), (32, False), (100, False), (100, True))
"""The longest gap, and whether motion decides within it."""
BATCH = 32


@dataclass(frozen=True)
class Seen:
    """One episode: pictures, and the grip point in unit coordinates (outside 0..1: out of the picture)."""

    rgb_THWC: np.ndarray
    true_xy_T2: np.ndarray


def render(seed: int) -> Seen:
    """The scripted expert, each action in five equal parts."""
    from molmoact_robot.tabletop.episodes import EpisodeConfig, start_rollout
    from molmoact_robot.tabletop.sensor import expose
    from molmoact_robot.tabletop.view import SceneRenderer

    config = EpisodeConfig(split="test")
    rollout = start_rollout(seed, config)
    noise = np.random.default_rng([seed, 9])
    rgb, pixels = [], []
    with SceneRenderer(rollout.world.arm.model, config.image_hw, shadows=True) as renderer:
        for _, action, _ in rollout.motions:
            part = np.append(action[:6] / FRAMES_PER_ACTION, action[6])
            for _ in range(FRAMES_PER_ACTION):
                arm = rollout.world.arm
                front = renderer.shoot(arm.data, "front", arm.grip_pose()[0])
                rgb.append(expose(front.rgb_HWC, rollout.look.front_sensor, noise))
                pixels.append(front.grip_pixel_2)
                arm.step(part)
    height, width = config.image_hw
    return Seen(np.stack(rgb), np.stack(pixels) / [width - 1, height - 1])


def episodes(folder: Path, count: int, seed: int) -> Iterator[Seen]:
    """`count` episodes of at least 200 frames, from the folder where it has them."""
    folder.mkdir(parents=True, exist_ok=True)
    while count:
        file = folder / f"{seed}.npz"
        if not file.exists():
            seen = render(seed)
            np.savez_compressed(file, rgb=seen.rgb_THWC, xy=seen.true_xy_T2)
        read = np.load(file)
        seed += 1
        if len(read["xy"]) >= LEAST_FRAMES:
            count -= 1
            yield Seen(read["rgb"], read["xy"])


@dataclass
class Answers:
    """A `FramePointer` that tells given points; the tracker says itself which frames it asked about."""

    xy_T2: np.ndarray
    num_arms: int = 1

    def point_frames(
        self, rgb_NHWC: np.ndarray, prompt: str, frame_index_N: Sequence[int]
    ) -> GripperPoints:
        xy = self.xy_T2[list(frame_index_N)][:, None].astype(np.float32)
        return GripperPoints(xy, (~np.isnan(xy[..., 0])).astype(np.float32))


def answers(seen: Seen, pointer: str) -> np.ndarray:
    """What the pointer says about every frame [T,2]: the truth, or the embedded network."""
    if pointer == "truth":
        inside = ((seen.true_xy_T2 >= 0) & (seen.true_xy_T2 <= 1)).all(axis=1)
        return np.where(inside[:, None], seen.true_xy_T2, np.nan)
    from molmoact_data.teachers.embedded import EmbeddedPointer

    network = EmbeddedPointer.load(EmbeddedPointer.Settings(), "cpu")
    return network.point(seen.rgb_THWC, "point to the robot gripper").xy_NA2[:, 0]


def measure(seen: Seen, told_T2: np.ndarray, every: int, *, by_motion: bool) -> Measured:
    """One episode under one rule."""
    tracker = PointTracker(Answers(told_T2), "point", every, by_motion=by_motion)
    start = time.process_time()
    for first in range(0, len(seen.rgb_THWC), BATCH):
        tracker.push(seen.rgb_THWC[first : first + BATCH])
    tracked = tracker.finish()
    spent_s = time.process_time() - start
    error_T = point_error_px(tracked.points.xy_NA2[:, 0], seen.true_xy_T2, seen.rgb_THWC.shape[1:3])
    return Measured(tracked.from_pointer_T, error_T, spent_s)


@dataclass(frozen=True)
class Measured:
    asked_T: np.ndarray
    error_px_T: np.ndarray
    spent_s: float


def report(rule: str, measured: Sequence[Measured]) -> str:
    asked_T, error_T = (
        np.concatenate([getattr(m, n) for m in measured]) for n in ("asked_T", "error_px_T")
    )
    found = error_T[~np.isnan(error_T)]
    ms = 1000 * sum(m.spent_s for m in measured) / len(asked_T)
    return (
        f"{rule:>14}   {asked_T.mean():6.3f}   {np.median(found):9.2f}   {np.percentile(found, 95):7.2f}   "
        f"{len(found) / len(error_T):6.1%}   {ms:8.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=4200)
    parser.add_argument("--pointer", choices=("truth", "embedded"), default="embedded")
    args = parser.parse_args()
    played = [
        (seen, answers(seen, args.pointer))
        for seen in episodes(args.folder, args.episodes, args.seed)
    ]
    print(
        f"{len(played)} episodes, {sum(len(told) for _, told in played)} frames, pointer {args.pointer}"
    )
    print("          rule    asked   median px     95th px    found   ms/frame")
    for every, by_motion in RULES:
        name = f"motion, <= {every}" if by_motion else f"K = {every}"
        measured = [measure(*one, every, by_motion=by_motion) for one in played]
        print(report(name, measured), flush=True)


if __name__ == "__main__":
    main()
