"""Demonstrations -> labels -> a small MolmoAct -> success rates beside the baselines, by the ordinary commands.

    python scripts/close_the_loop.py out/loop                  # hours on two cores
    python scripts/close_the_loop.py out/loop --size debug     # every step once, a few minutes; the model knows nothing
    python scripts/close_the_loop.py out/full --variety full   # the world with all its looks, distractors and clutter

Each step has a folder of its own under OUTPUT and is skipped where that is complete; training resumes. The last line is
the table of success rates, also in `loop.json`. The model is OUTPUT/model.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("MUJOCO_GL", "egl")

from molmoact_robot.tabletop.dataset import FRONT, GRIPPER_PIXEL, WRIST, WriteConfig, write_dataset
from molmoact_robot.tabletop.episodes import Episode, EpisodeConfig, run_episode
from molmoact_robot.tabletop.randomization import Variety
from molmoact_robot.tabletop.scene import FAST

logger = logging.getLogger("close_the_loop")
TASK, PICTURE_HW, FIRST_TRAINING_SEED, TEST_SEED = "pick", (128, 128), 100_000, 771_100


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    demonstrations: int
    steps: int
    batch: int
    trials: int
    max_steps: int
    execute: int = 4


SIZES = {
    "debug": Size(demonstrations=2, steps=2, batch=2, trials=1, max_steps=8, execute=8),
    "full": Size(demonstrations=600, steps=12_000, batch=32, trials=50, max_steps=120),
}
MODEL, ALONE = "model", "alone"
KINDS: dict[str, tuple[object, ...]] = {
    MODEL: (),
    ALONE: ("--kind-reasoning", 0, "--kind-trajectory", 0, "--kind-trace", 0, "--kind-action", 1),
}
"""What each network is trained to say: depth, trace and action, or actions alone."""
ROWS = {
    "idle": ("--checkpoint", "idle"),
    "expert": ("--checkpoint", "expert"),
    "model": ("--checkpoint", MODEL),
    "the same network without depth and trace": ("--checkpoint", ALONE),
    "model, steered by the expert's path": ("--checkpoint", MODEL, "--steer", "expert"),
}


def demonstrations(size: Size, variety: Variety) -> Iterator[Episode]:
    """Successful ones of consecutive seeds of the training split."""
    config = EpisodeConfig(
        split="train", family=TASK, image_hw=PICTURE_HW, quality=FAST, variety=variety
    )
    made, seed = 0, FIRST_TRAINING_SEED
    while made < size.demonstrations:
        episode = run_episode(seed, config)
        seed += 1
        if episode.success:
            made += 1
            yield episode


def molmoact(*arguments: object) -> str:
    """One command of ours, its standard output; a command that fails ends the loop."""
    words = [sys.executable, "-m", "molmoact", *map(str, arguments)]
    logger.info("molmoact %s", " ".join(words[3:]))
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def make_labels(out: Path, size: Size, variety: Variety) -> Path:
    """Demonstrations, and the records of them."""
    dataset, labels = out / "demonstrations", out / "labels"
    if not dataset.exists():
        write_dataset(dataset, demonstrations(size, variety), WriteConfig(version="v2.1", crf=18))
    molmoact(
        "preprocess", "--dataset-path", dataset, "--output-path", labels, "--resume",
        "--dataset-name", "tabletop", "--preset", "embedded",
        "--camera", f"primary={FRONT}", "--camera", f"wrist={WRIST}",
        "--pointer", "column", "--pointer-column", GRIPPER_PIXEL, "--pointer-units", "pixels",
    )  # fmt: skip
    return labels


def make_model(out: Path, size: Size, labels: Path, name: str) -> Path:
    """Train OUT/`name` on the labels, and export it in half precision."""
    start, run, model = out / "start", out / f"run-{name}", out / name
    if model.exists():
        return model
    if not start.exists():
        from molmoact_train.families.molmoact.tabletop import write_tabletop_checkpoint

        write_tabletop_checkpoint(start)
    molmoact(
        "train", "--stage", "tabletop", "--checkpoint", start, "--data", labels,
        "--output-path", run, "--resume", "--duration", size.steps, *KINDS[name],
        "--warmup", min(50, size.steps // 2),
        "--global-batch-size", size.batch, "--device-batch-size", size.batch,
    )  # fmt: skip
    molmoact(
        "export-hf", "--checkpoint", run / "final", "--output-path", model, "--dtype", "bfloat16"
    )
    return model


def measure(
    out: Path, size: Size, models: dict[str, Path], variety: Variety
) -> dict[str, dict[str, Any]]:
    """Success of every row on the same seeds of the test split, in pictures like those of the demonstrations."""
    table = {}
    for name, options in ROWS.items():
        chosen = [str(models.get(word, word)) for word in options]
        folder = out / "eval" / name.replace(" ", "-").replace(",", "").replace("'", "")
        printed = molmoact(
            "eval", "--env", "tabletop", *chosen, "--tasks", TASK, "--trials", size.trials,
            "--env-arg", f"variety={variety}", "--env-arg", "quality=fast",
            "--env-arg", f"image_size={PICTURE_HW[0]}",
            "--seed", TEST_SEED, "--execute", size.execute, "--max-steps", size.max_steps,
            "--output-path", folder, "--resume", "--json", "--max-failed-predictions", 1,
        )  # fmt: skip
        found = json.loads(printed)
        table[name] = {key: found[key] for key in ("n", "successes", "interval", "path_error")}
    return table


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--variety", choices=get_args(Variety), default="calm")
    args = parser.parse_args()
    size = SIZES[args.size]
    labels = make_labels(args.output, size, args.variety)
    models = {name: make_model(args.output, size, labels, name) for name in KINDS}
    table = measure(args.output, size, models, args.variety)
    (args.output / "loop.json").write_text(json.dumps(table, indent=1) + "\n")
    for name, row in table.items():
        low, high = row["interval"]
        print(f"{name}: {row['successes']} of {row['n']} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
