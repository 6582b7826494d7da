"""The command line that the scripts for the embedded depth network and the embedded pointer share."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scripts.embedded.frame_shards import FrameArrays
from scripts.embedded.training import (
    FitConfig,
    Loss,
    fit,
    load_weights,
    shuffled_batches,
    start_processes,
)


def train(
    description: str,
    network: Callable[[], nn.Module],
    loss: Loss,
    keep: Callable[[FrameArrays], NDArray[np.bool_]],
    *,
    steps: int,
) -> None:
    """Fit a new `network` to the rendered frames that `keep` selects; `steps` unless the user says other."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = _parser(description, steps).parse_args()
    rank = start_processes()
    torch.manual_seed(args.seed)  # the same start for all; the order of frames differs
    config = FitConfig(
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed + rank,
    )
    model = network()
    if args.init:
        load_weights(model, args.init)
    batches = shuffled_batches(args.frames, config.batch_size, keep, config.seed)
    fit(model, loss, batches, config, args.output)


def _parser(description: str, steps: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("frames", type=Path, help="folder that render_dataset.py filled")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="start from these weights")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=48, help="per process")
    parser.add_argument("--seed", type=int, default=0)
    return parser
