"""Procedural surfaces: a family name and a seed are the whole texture.

`tiles` and `cloth` belong to the test split alone (see `randomization`).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Paint = Callable[[np.random.Generator, int], NDArray[np.float64]]


@dataclass(frozen=True)
class TextureSpec:
    """Everything that decides a texture's pixels."""

    family: str
    seed: int
    size_px: int = 256

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"unknown texture family {self.family!r}; known: {sorted(FAMILIES)}")


def paint(spec: TextureSpec) -> NDArray[np.uint8]:
    """uint8 [S,S,3]."""
    rgb_HW3 = FAMILIES[spec.family](np.random.default_rng(spec.seed), spec.size_px)
    return (np.clip(rgb_HW3, 0.0, 1.0) * 255).astype(np.uint8)


def png_bytes(spec: TextureSpec) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(paint(spec)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def value_noise(
    rng: np.random.Generator, size: int, step_x: int, step_y: int
) -> NDArray[np.float64]:
    """Smooth noise [S,S] in 0..1: random values on a grid, interpolated."""
    grid = rng.random((max(2, size // step_y), max(2, size // step_x)))
    image = Image.fromarray((grid * 255).astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)) / 255.0


def _tint(rng: np.random.Generator, low: float, high: float, spread: float) -> NDArray[np.float64]:
    return rng.uniform(low, high) * (1 + rng.uniform(-spread, spread, 3))


def _shade(base_3: NDArray[np.float64], pattern_HW: NDArray[np.float64]) -> NDArray[np.float64]:
    return base_3 * (1 + pattern_HW[..., None])


def _wood(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    dark = np.array([0.32, 0.20, 0.11])
    base = dark + rng.uniform(0, 1) * np.array([0.48, 0.44, 0.38]) + rng.uniform(-0.04, 0.04, 3)
    across = np.linspace(0, 1, size)[:, None]
    warp = 1.6 * value_noise(rng, size, size // 2, size // 16)
    rings = 0.55 * np.sin(2 * np.pi * (rng.uniform(5, 20) * across + warp))
    grain = 0.45 * (2 * value_noise(rng, size, size // 8, 2) - 1)
    planks = rng.standard_normal(4)[(np.arange(size) * 4) // size][:, None]
    return _shade(base, rng.uniform(0.06, 0.14) * (rings + grain + 0.35 * planks))


def _stone(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    coarse, middle = value_noise(rng, size, size // 8, size // 8), value_noise(rng, size, 8, 8)
    fine = value_noise(rng, size, 2, 2)
    pattern = coarse + 0.5 * middle + 0.35 * fine - 0.9
    return _shade(_tint(rng, 0.25, 0.85, 0.08), rng.uniform(0.1, 0.35) * pattern)


def _plain(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    pattern = value_noise(rng, size, 16, 16) + value_noise(rng, size, 4, 4) - 1
    return _shade(_tint(rng, 0.2, 0.95, 0.25), rng.uniform(0.01, 0.06) * pattern)


def _speckle(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    field = value_noise(rng, size, 6, 6)
    chips = (field > 0.72)[..., None] * _tint(rng, -0.3, 0.3, 0.3)
    return _tint(rng, 0.4, 0.85, 0.1) + chips + 0.02 * rng.standard_normal((size, size, 1))


def _tiles(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    count = int(rng.integers(3, 7))
    cell = np.arange(size) * count / size
    tile = rng.uniform(-0.12, 0.12, (count, count))[
        cell.astype(int)[:, None], cell.astype(int)[None, :]
    ]
    near_edge = np.minimum(cell % 1, 1 - cell % 1) < 0.03
    grout = near_edge[:, None] | near_edge[None, :]
    pattern = np.where(grout, -0.35, tile) + 0.08 * value_noise(rng, size, 8, 8)
    return _shade(_tint(rng, 0.4, 0.8, 0.15), pattern)


def _cloth(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    phase = 2 * np.pi * np.arange(size) * int(rng.integers(20, 50)) / size
    weave = 0.5 * (np.sin(phase)[:, None] + np.sin(phase)[None, :])
    folds = value_noise(rng, size, size // 4, size // 4) - 0.5
    return _shade(_tint(rng, 0.3, 0.8, 0.2), 0.08 * weave + 0.2 * folds)


FAMILIES: dict[str, Paint] = {
    "wood": _wood,
    "stone": _stone,
    "plain": _plain,
    "speckle": _speckle,
    "tiles": _tiles,
    "cloth": _cloth,
}
