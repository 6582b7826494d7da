"""Cheap variations of training images that keep the ground truth known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_CROP = 0.4
"""Smallest side of a crop, as a share of the image's: the pointer looks twice, the second time closely."""


def random_crops(
    x_NCSS: Tensor, pixel_N2: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Square crops brought back to the same size, half of them mirrored; the points move along.

    A point that is in the image is also in its crop, anywhere but at the very border.
    `pixel_N2` is a pixel index (column, row) of the image, before and after.
    """
    size = x_NCSS.shape[-1]
    crops, points = [], []
    for image, pixel in zip(x_NCSS, pixel_N2, strict=True):
        share = MIN_CROP + (1 - MIN_CROP) * torch.rand((), generator=generator)
        side = int(share * size)
        inside = 0.1 + 0.8 * torch.rand(2, generator=generator)
        corner = (pixel - inside * side).round().clamp(0, size - side)
        left, top = int(corner[0]), int(corner[1])
        crop = image[:, top : top + side, left : left + side]
        crop = F.interpolate(crop[None], (size, size), mode="bilinear", align_corners=False)
        moved = (pixel + 0.5 - corner) * (size / side) - 0.5
        if torch.rand((), generator=generator) < 0.5:
            crop = crop.flip(-1)
            moved = torch.stack([size - 1 - moved[0], moved[1]])
        crops.append(crop)
        points.append(moved)
    return torch.cat(crops), torch.stack(points)


def vary_colour(x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Channel order (one image in three), saturation, gain per channel and brightness; -1..1 in and out."""
    count = len(x_NCHW)

    def uniform(low: float, high: float, channels: int) -> Tensor:
        draw = torch.rand((count, channels, 1, 1), generator=generator)
        return low + (high - low) * draw

    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(count)])
    keep = torch.rand(count, generator=generator) > 1 / 3
    order[keep] = torch.arange(3)
    x = torch.gather(x_NCHW, 1, order[:, :, None, None].expand_as(x_NCHW))
    grey = x.mean(dim=1, keepdim=True)
    x = grey + uniform(0.4, 1.4, 1) * (x - grey)
    return (x * uniform(0.85, 1.15, 3) + uniform(-0.15, 0.15, 1)).clamp(-1, 1)


def soften(x_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """A 3x3 binomial blur for four images in ten: multi-sampling and video compression look like that."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line[None, :]).expand(3, 1, 3, 3)
    chosen = torch.rand(len(x_NCHW), generator=generator) < 0.4
    padded = F.pad(x_NCHW[chosen], (1, 1, 1, 1), mode="replicate")
    x = x_NCHW.clone()
    x[chosen] = F.conv2d(padded, kernel, groups=3)
    return x
