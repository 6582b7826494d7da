"""The two small networks behind the embedded teachers. They know nothing of files or numpy.

Both start with 4x4 patches and work on a pyramid of residual 3x3 convolutions; about 0.2 G
multiply-adds per image, so that they run and train on one CPU core.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 4


def to_input(rgb_NHWC: Tensor, size: int) -> Tensor:
    """uint8 [N,H,W,3] of any size -> float32 [N,3,size,size] in -1..1; the aspect ratio is not kept."""
    x = rgb_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)


class Residual(nn.Module):
    """Two 3x3 convolutions around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Fuse(nn.Module):
    """A coarse map joins the finer one above it."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(coarse, fine, 1)
        self.smooth = nn.Sequential(
            nn.Conv2d(fine, fine, 3, padding=1, bias=False),
            nn.BatchNorm2d(fine),
            nn.ReLU(inplace=True),
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        size = (fine.shape[-2], fine.shape[-1])
        up = F.interpolate(self.reduce(coarse), size, mode="bilinear", align_corners=False)
        return self.smooth(up + fine)


class Pyramid(nn.Module):
    """Patches, then one level per width, each half the size of the one before, then back up."""

    def __init__(self, widths: tuple[int, ...], *, top: int) -> None:
        """`top` = the finest level that the way back up reaches (0 = the patch grid)."""
        super().__init__()
        self.top = top
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], PATCH + 3, stride=PATCH, padding=2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.blocks = nn.ModuleList(
            [Residual(w) if i >= top else nn.Identity() for i, w in enumerate(widths)]
        )
        pairs = list(itertools.pairwise(widths))
        self.downs = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(b),
                    nn.ReLU(inplace=True),
                )
                for a, b in pairs
            ]
        )
        self.fuses = nn.ModuleList([Fuse(b, a) for a, b in pairs[top:]])
        self.context = nn.Linear(widths[-1], widths[-1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image [N,3,S,S] -> the finest map and the pooled coarsest features."""
        levels = [self.blocks[0](self.stem(x))]
        for down, block in zip(self.downs, self.blocks[1:], strict=True):
            levels.append(block(down(levels[-1])))
        pooled = levels[-1].mean(dim=(2, 3))
        out = levels[-1] + self.context(pooled)[:, :, None, None]
        for index in reversed(range(len(self.fuses))):
            out = self.fuses[index](out, levels[self.top + index])
        return out, pooled


class DepthNetwork(nn.Module):
    """Relative inverse depth, 0 = the farthest point of the image and 1 = the nearest."""

    input_size = 192

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        self.pyramid = Pyramid(widths, top=0)
        self.head = nn.Conv2d(widths[0], PATCH * PATCH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N,3,S,S] -> [N,S,S]."""
        features, _ = self.pyramid(x)
        return F.pixel_shuffle(self.head(features), PATCH)[:, 0]


class PointerNetwork(nn.Module):
    """One point and whether it can be seen."""

    input_size = 256

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 128)) -> None:
        super().__init__()
        self.pyramid = Pyramid(widths, top=1)
        self.head = nn.Conv2d(widths[1], 3, 3, padding=1)
        self.visible = nn.Sequential(
            nn.Linear(widths[1] + widths[-1] + 1, 64), nn.ReLU(inplace=True), nn.Linear(64, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N,3,S,S] -> unit coordinates [N,2], visibility logit [N], heat-map logits [N,h,w].

        Soft-argmax over the cells of a heat-map, each with its own learned offset. A cell's position is its
        centre in unit coordinates (pixel index / (size - 1)).
        """
        features, pooled = self.pyramid(x)
        out = self.head(features).float()
        _, _, height, width = out.shape
        weight_NP = out[:, 0].flatten(1).softmax(dim=1)
        centres_P2 = _cell_centres(height, width, self.input_size).to(out)
        offset_NP2 = out[:, 1:].flatten(2).transpose(1, 2) / width
        xy_N2 = (weight_NP[..., None] * (centres_P2 + offset_NP2)).sum(dim=1)
        found = torch.einsum("np,ncp->nc", weight_NP, features.float().flatten(2))
        peak = weight_NP.amax(dim=1, keepdim=True)
        logit = self.visible(torch.cat([found, pooled.float(), peak], dim=1))[:, 0]
        return xy_N2, logit, out[:, 0]


def _cell_centres(height: int, width: int, input_size: int) -> Tensor:
    """Unit coordinates (x, y) of the cells [h*w,2]: continuous pixel - 0.5, over size - 1."""

    def axis(cells: int) -> Tensor:
        cell_px = input_size / cells
        return ((torch.arange(cells) + 0.5) * cell_px - 0.5) / (input_size - 1)

    y, x = torch.meshgrid(axis(height), axis(width), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)
