"""Render the demo dataset that ships in `examples/demo_dataset`: a few scripted episodes, two cameras.

    python scripts/make_demo_dataset.py examples/demo_dataset

Scenes come from the held-out split, so that the embedded teachers are shown what they were not trained on.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")

from molmoact_robot.tabletop.dataset import WriteConfig, write_dataset
from molmoact_robot.tabletop.episodes import Episode, EpisodeConfig, run_episode
from molmoact_robot.tabletop.tasks import FAMILIES

logger = logging.getLogger("make_demo_dataset")


def episodes(count: int, seed: int, split: str, *, failures: bool) -> Iterator[Episode]:
    """Task families in turn; failed demonstrations are drawn again unless they are wanted."""
    made = 0
    while made < count:
        config = EpisodeConfig(split=split, family=FAMILIES[made % len(FAMILIES)])
        episode = run_episode(seed, config)
        seed += 1
        if episode.success or failures:
            verdict = "success" if episode.success else "failure"
            logger.info("%s: %d frames, %s", episode.task.instruction, len(episode.steps), verdict)
            made += 1
            yield episode


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--format", choices=("v2.1", "v3.0"), default="v2.1")
    parser.add_argument("--no-depth", action="store_true")
    parser.add_argument("--failures", action="store_true", help="keep failed demonstrations too")
    args = parser.parse_args()
    config = WriteConfig(version=args.format, depth=not args.no_depth)
    source = episodes(args.episodes, args.seed, args.split, failures=args.failures)
    frames = write_dataset(args.output, source, config)
    logger.info("%d frames in %s", frames, args.output)


if __name__ == "__main__":
    main()
