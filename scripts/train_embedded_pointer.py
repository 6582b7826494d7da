"""Train the embedded gripper pointer on rendered frames.

python scripts/render_dataset.py FRAMES --split train --frames 24576
python scripts/train_embedded_pointer.py FRAMES --output molmoact_data/teachers/weights/embedded_pointer.safetensors
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from embedded_training import train
from numpy.typing import NDArray
from torch import Tensor, nn

from molmoact_data.teachers.embedded_networks import PointerNetwork, to_input
from scripts.embedded.augmentation import random_crops, soften, vary_colour
from scripts.embedded.frame_shards import FrameArrays

HIDDEN_WEIGHT = 0.2
"""A hidden grip point can still be guessed from the arm; it counts less."""
HEAT_SIGMA = 0.03
"""Width of the target bump on the heat-map, unit coordinates."""


def front_and_near(frames: FrameArrays) -> NDArray[np.bool_]:
    """Front views whose point is in the frame or not far outside."""
    size = np.array(frames.rgb.shape[2:0:-1])
    unit = frames.grip_pixel / (size - 1)
    return ~frames.is_wrist & (np.abs(unit - 0.5) < 0.7).all(axis=1)


def pointing_loss(model: nn.Module, frames: FrameArrays, generator: torch.Generator) -> Tensor:
    """Distance and heat-map where the point is in the crop, visibility everywhere."""
    size = PointerNetwork.input_size
    if frames.rgb.shape[1:3] != (size, size):
        raise ValueError(f"expected {size}x{size} frames, got {frames.rgb.shape}")
    x = to_input(torch.from_numpy(frames.rgb), size)
    x, pixel = random_crops(x, torch.from_numpy(frames.grip_pixel), generator)
    x = soften(vary_colour(x, generator), generator).contiguous(memory_format=torch.channels_last)
    target = pixel / (size - 1)
    with torch.autocast("cpu", torch.bfloat16):
        xy, logit, heat = model(x)
    inside = ((target >= 0) & (target <= 1)).all(dim=1).float()
    visible = torch.from_numpy(frames.grip_visible).float() * inside
    weight = inside * torch.where(visible > 0, 1.0, HIDDEN_WEIGHT)
    distance = F.smooth_l1_loss(xy * 255, target * 255, beta=2.0, reduction="none").sum(dim=1)
    total = (weight * (distance / 8 + heat_loss(heat, target))).sum() / weight.sum().clamp_min(1e-6)
    return total + F.binary_cross_entropy_with_logits(logit, visible)


def heat_loss(heat_Nhw: Tensor, target_N2: Tensor) -> Tensor:
    """Cross entropy [N] of the heat-map with a bump around the point."""
    _, height, width = heat_Nhw.shape
    x = (torch.arange(width) + 0.5) / width
    y = (torch.arange(height) + 0.5) / height
    square = (x - target_N2[:, :1])[:, None, :] ** 2 + (y - target_N2[:, 1:])[:, :, None] ** 2
    bump = torch.softmax(-square.flatten(1) / (2 * HEAT_SIGMA**2), dim=1)
    return -(bump * heat_Nhw.flatten(1).log_softmax(dim=1)).sum(dim=1)


if __name__ == "__main__":
    train(__doc__.splitlines()[0], PointerNetwork, pointing_loss, front_and_near, steps=6000)
