"""First weights from which a small network learns on a CPU: signals of unit size, places and values in order.

A network of billions starts from pictures and text of the whole web. One of a million weights starts from nothing, and
what it is spared to find out decides whether an hour suffices: that patches have places, and that 131 lies beside 132.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from molmoact_train.families.molmoact.network import MolmoActForActionReasoning

EMBEDDING_STD = 0.1
FREQUENCIES = 24
SLOWEST, FASTEST = 0.25, 24.0
"""Turns over the whole range of an ordered family, of the slowest and the fastest wave."""
HEAD_SIZES, EMBEDDING_SIZES = (1.0, 0.5), (2.7, 1.7)
"""Lengths of the value's and of the family's part of a row."""


def start_awake(model: nn.Module) -> None:
    """Draw every matrix with a variance of one over its inputs, and embeddings at `EMBEDDING_STD`.

    The published standard deviation of 0.02 is meant for thousands of inputs. At a width of 64 each layer would pass
    on a sixth of its signal, and the pictures would reach the decoder a thousand times too faint to learn from.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim != 2:
            continue
        embedding = "embed" in name or "wte" in name
        std = EMBEDDING_STD if embedding and "patch" not in name else parameter.shape[1] ** -0.5
        nn.init.normal_(parameter, std=std)


@torch.no_grad()
def place_patches(model: MolmoActForActionReasoning) -> None:
    """Positions of the image encoder as sines and cosines of row and column, as large as the patches themselves."""
    positions = model.model.vision_backbone.image_vit.positional_embedding
    side = math.isqrt(len(positions))
    if side * side != len(positions):
        raise ValueError(f"{len(positions)} positions are no square grid of patches")
    positions.copy_(grid_waves(side, positions.shape[1]))


@torch.no_grad()
def order_values(
    model: MolmoActForActionReasoning, families: Iterable[Sequence[int]], generator: torch.Generator
) -> None:
    """Rows of input embedding and head for families of tokens that are numbers, each family's ids in ascending value.

    A row is the family's own direction plus `value_waves`, in a random orthonormal frame, so that near
    values start with near logits and one example teaches its neighbours. Nothing keeps training from undoing it.
    """
    head = model.lm_head.weight
    embedding = model.model.transformer.wte.embedding
    for ids in families:
        waves = value_waves(len(ids))
        for rows, (of_value, of_family) in ((head, HEAD_SIZES), (embedding, EMBEDDING_SIZES)):
            frame = _orthonormal(rows.shape[1], generator)
            values = waves @ frame[1 : waves.shape[1] + 1]
            rows[list(ids)] = of_value * values + of_family * frame[0]


def grid_waves(side: int, width: int) -> Tensor:
    """[side * side, width], row-major: width / 2 numbers of the row, then of the column, sines before cosines.

    Frequencies go evenly from a quarter of a turn over the grid to one turn per four patches.
    """
    places = (torch.arange(side) + 0.5) / side * math.pi
    angles = places[:, None] * torch.linspace(0.5, side / 2, width // 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, -1)


def value_waves(count: int) -> Tensor:
    """[count, 2 * FREQUENCIES], rows of unit length: cosines and sines of the value, the slower the larger."""
    turns = torch.logspace(math.log10(SLOWEST), math.log10(FASTEST), FREQUENCIES)
    angles = 2 * math.pi * torch.arange(count)[:, None] / count * turns
    size = turns.rsqrt() / turns.reciprocal().sum().sqrt()
    return torch.cat([angles.cos() * size, angles.sin() * size], dim=1)


def _orthonormal(width: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
