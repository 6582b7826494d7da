"""A picture at another size, normalised, as each of the two released variants does it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from molmoact_train.families.molmoact.image_config import ImageProcessorConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(
    rgb_HWC: NDArray[np.uint8], size: tuple[int, int], config: ImageProcessorConfig
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The normalised picture [H, W, 3] at `size`, and a mask [H, W] that is 0 on padding."""
    if config.resize_mode == "siglip":
        pixels = _squash(rgb_HWC, size)
        mask: NDArray[np.float32] = np.ones(size, dtype=np.float32)
    else:
        pixels, mask = _letterbox(rgb_HWC, size, config.pad_value)
    if config.normalize_mode == "siglip":
        return pixels * np.float32(2) - np.float32(1), mask
    mean, std = np.array(CLIP_MEAN, dtype=np.float32), np.array(CLIP_STD, dtype=np.float32)
    return (pixels - mean) / std, mask


def _squash(rgb_HWC: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear without antialiasing, rounded to whole levels, then 0..1; the aspect ratio is not kept.

    Plain numpy in fp32, columns before rows: exact ties of the rounding are common, and PyTorch's kernels break
    them differently from one CPU to the next (up to 200 of 10^6 numbers off by a level; this one, none).
    """
    levels = _interpolate(rgb_HWC.astype(np.float32), size[1], axis=1)
    rounded: NDArray[np.float32] = np.rint(_interpolate(levels, size[0], axis=0))
    return rounded / np.float32(255)


def _interpolate(values: NDArray[np.float32], count: int, *, axis: int) -> NDArray[np.float32]:
    """Linear interpolation to `count` pixels along an axis, pixel centres aligned."""
    here = values.shape[axis]
    scale = np.float32(here) / np.float32(count)
    half = np.float32(0.5)
    place = np.maximum((np.arange(count, dtype=np.float32) + half) * scale - half, np.float32(0))
    low = place.astype(np.int64)
    weight = (place - low.astype(np.float32)).reshape([-1 if a == axis else 1 for a in range(3)])
    lower, upper = values.take(low, axis), values.take(np.minimum(low + 1, here - 1), axis)
    return lower * (np.float32(1) - weight) + upper * weight


def _letterbox(
    rgb_HWC: NDArray[np.uint8], size: tuple[int, int], pad_value: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scaled to fit with antialiasing and centred; sizes are truncated, scales are float32."""
    height, width = rgb_HWC.shape[:2]
    scale = min(np.float32(size[0]) / np.float32(height), np.float32(size[1]) / np.float32(width))
    inner = (int(np.float32(height) * scale), int(np.float32(width) * scale))
    chw = torch.tensor(rgb_HWC, dtype=torch.float32).permute(2, 0, 1)[None] / 255
    resized = F.interpolate(chw, size=inner, mode="bilinear", align_corners=False, antialias=True)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    area = np.s_[top : top + inner[0], left : left + inner[1]]
    pixels = np.full((*size, 3), pad_value, dtype=np.float32)
    mask = np.zeros(size, dtype=np.float32)
    pixels[area] = resized.clamp(0, 1)[0].permute(1, 2, 0).numpy()
    mask[area] = 1.0
    return pixels, mask
