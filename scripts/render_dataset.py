"""Render independent random frames with ground truth into shards for training the embedded networks.

    python scripts/render_dataset.py OUT --split train --frames 20000

Each shard is a folder of arrays (see `scripts.embedded.frame_shards`); a folder that exists is done, so a
killed run is simply started again.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")

from molmoact_robot.tabletop.frames import FrameConfig
from molmoact_robot.tabletop.scene import FULL
from scripts.embedded.frame_shards import render_shard, shard_path

logger = logging.getLogger("render_dataset")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--shard-frames", type=int, default=512)
    parser.add_argument("--frames-per-scene", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full-quality", action="store_true", help="every frame as in episodes")
    parser.add_argument("--every", type=int, default=1, help="this process's share: 1 of N shards")
    parser.add_argument("--offset", type=int, default=0, help="which of the N")
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = parse_arguments()
    quality = {"qualities": (FULL,), "quality_shares": (1.0,)} if args.full_quality else {}
    config = FrameConfig(split=args.split, frames_per_scene=args.frames_per_scene, **quality)
    numbers = range(-(-args.frames // args.shard_frames))
    for number in numbers[args.offset :: args.every]:
        if shard_path(args.output, args.split, number).exists():
            continue
        start = time.perf_counter()
        seed = args.seed * 100_000 + number
        render_shard(args.output, number, seed=seed, count=args.shard_frames, config=config)
        speed = args.shard_frames / (time.perf_counter() - start)
        logger.info("shard %d of %d at %.1f frames/s", number + 1, len(numbers), speed)


if __name__ == "__main__":
    main()
