"""The answers of MolmoAct2's public implementation, as tensors (see the README of their folder)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN
from torch import Tensor

FOLDER = GOLDEN / "molmoact2"
TINY, THINK = FOLDER / "tiny-molmoact2", FOLDER / "tiny-molmoact2-think"
needs_molmoact2 = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no golden answers at {FOLDER}; set MOLMOACT_GOLDEN"
)
PATCHES = 25  # of one image of the tiny models
RELATIVE = 1e-4  # tolerance of fp32 networks


@cache
def arrays(name: str) -> dict[str, Any]:
    """One npz file."""
    with np.load(FOLDER / name) as file:
        return {key: file[key] for key in file.files}


def tensors(name: str) -> dict[str, Tensor]:
    """Its numbers as tensors."""
    return {
        k: torch.from_numpy(np.array(v)) for k, v in arrays(name).items() if v.dtype.kind in "bfiu"
    }


def windows(pooling: Tensor, num_images: int) -> Tensor:
    """Indices that count within their image -> rows of all patches of all images."""
    per_image = len(pooling) // num_images
    first = torch.arange(num_images).repeat_interleave(per_image)[:, None] * PATCHES
    return torch.where(pooling >= 0, pooling + first, pooling).long()


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest number."""
    return float((found - expected).abs().max() / expected.abs().max())


def fresh(folder: Path) -> Any:
    """The network of a golden checkpoint, in evaluation mode."""
    from molmoact_train.families.molmoact2.network.folder import load

    return load(folder)
