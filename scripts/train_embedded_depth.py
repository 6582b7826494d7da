"""Train the embedded depth network on rendered frames.

python scripts/render_dataset.py FRAMES --split train --frames 24576
python scripts/train_embedded_depth.py FRAMES --output molmoact_data/adapters/weights/embedded_depth.safetensors
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from molmoact_data.adapters.embedded_networks import DepthNetwork, to_input
from molmoact_data.simulation.augmentation import soften, vary_colour
from molmoact_data.simulation.frame_shards import FrameArrays
from molmoact_data.simulation.training import (
    FitConfig,
    fit,
    load_weights,
    shuffled_batches,
    start_processes,
)
from molmoact_data.simulation.view import depth_from_u16

EDGE_WEIGHT = 1.0


def every_frame(frames: FrameArrays) -> NDArray[np.bool_]:
    return np.ones(len(frames.rgb), bool)


def relative_inverse_depth(depth_NHW: NDArray[np.uint16]) -> Tensor:
    """Stored depth -> float32 [N,H,W], 0 = farthest and 1 = nearest point of each image."""
    inverse = torch.from_numpy(1.0 / np.maximum(depth_from_u16(depth_NHW), 0.02))
    low, high = inverse.amin((1, 2), keepdim=True), inverse.amax((1, 2), keepdim=True)
    return (inverse - low) / (high - low)


def depth_loss(model: nn.Module, frames: FrameArrays, generator: torch.Generator) -> Tensor:
    """Absolute error plus that of the differences between neighbours; half the images are mirrored."""
    size = DepthNetwork.input_size
    x = to_input(torch.from_numpy(frames.rgb), size)
    x = soften(vary_colour(x, generator), generator)
    target = F.interpolate(
        relative_inverse_depth(frames.depth)[:, None], (size, size), mode="area"
    )[:, 0]
    half = len(x) // 2
    x = torch.cat([x[:half], x[half:].flip(-1)])
    target = torch.cat([target[:half], target[half:].flip(-1)])
    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(x.contiguous(memory_format=torch.channels_last))
    error = predicted.float() - target
    edges = error.diff(dim=1).abs().mean() + error.diff(dim=2).abs().mean()
    return error.abs().mean() + EDGE_WEIGHT * edges


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("frames", type=Path, help="folder that render_dataset.py filled")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="start from these weights")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=48, help="per process")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rank = start_processes()
    torch.manual_seed(args.seed)  # the same start for all; the order of frames differs
    config = FitConfig(
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed + rank,
    )
    model = DepthNetwork()
    if args.init:
        load_weights(model, args.init)
    batches = shuffled_batches(args.frames, config.batch_size, every_frame, config.seed)
    fit(model, depth_loss, batches, config, args.output)


if __name__ == "__main__":
    main()
