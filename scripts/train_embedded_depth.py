"""Train the embedded depth network on rendered frames.

python scripts/render_dataset.py FRAMES --split train --frames 24576
python scripts/train_embedded_depth.py FRAMES --output molmoact_data/teachers/weights/embedded_depth.safetensors
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from embedded_training import train
from numpy.typing import NDArray
from torch import Tensor, nn

from molmoact_data.teachers.embedded_networks import DepthNetwork, to_input
from molmoact_robot.tabletop.view import depth_from_u16
from scripts.embedded.augmentation import soften, vary_colour
from scripts.embedded.frame_shards import FrameArrays

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


if __name__ == "__main__":
    train(__doc__.splitlines()[0], DepthNetwork, depth_loss, every_frame, steps=5000)
