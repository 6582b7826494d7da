"""How a depth map of 8 bits becomes the encoder's input, and how the decoder's output becomes depth again.

Two public pieces of code feed the released codebook differently (`docs/vqvae.md`), and the difference
changes what the codes mean. So a recipe is a value that is carried, compared and printed, never a habit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import unknown_name

Scaling = Literal["image", "steady", "episode"]
"""Range of the 8 bits: `image` and `steady` as for labels (`labels.depth_scaling`), or one for a whole episode, which
nobody knows before its end."""


@dataclass(frozen=True)
class Recipe:
    """Value range and resize filter between the uint8 depth map and the encoder."""

    range: Literal["signed", "unit"] = "signed"
    """`signed`: (v / 255 - 0.5) / 0.5, hence -1..1. `unit`: v / 255, hence 0..1."""
    resize: Literal["nearest", "bilinear"] = "nearest"
    """`nearest`: OpenCV's INTER_NEAREST. `bilinear`: PIL's BILINEAR (which averages when it shrinks)."""

    def __post_init__(self) -> None:
        if self.range not in ("signed", "unit"):
            raise unknown_name("range", self.range, ("signed", "unit"))
        if self.resize not in ("nearest", "bilinear"):
            raise unknown_name("resize", self.resize, ("nearest", "bilinear"))


RELEASED = Recipe()
"""What the released codebook was trained with."""
REFERENCE = Recipe(range="unit", resize="bilinear")
"""What the public MolmoAct preprocessing feeds it."""
NAMED_RECIPES = {"released": RELEASED, "reference": REFERENCE}


def resize_u8(
    depth_u8_HW: NDArray[np.uint8], size: int, resize: Literal["nearest", "bilinear"]
) -> NDArray[np.uint8]:
    """uint8 [H,W] -> uint8 [size,size], the aspect ratio is not kept."""
    if depth_u8_HW.shape == (size, size):
        return depth_u8_HW
    if resize == "nearest":
        import cv2

        return np.asarray(
            cv2.resize(depth_u8_HW, (size, size), interpolation=cv2.INTER_NEAREST), np.uint8
        )
    from PIL import Image

    image = Image.fromarray(depth_u8_HW).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8)


def to_encoder_range(depth_u8: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.float32]:
    """0..255 -> the encoder's input, any shape."""
    unit = depth_u8.astype(np.float32) / np.float32(255)
    return unit if recipe.range == "unit" else (unit - np.float32(0.5)) / np.float32(0.5)


def from_encoder_range(values: NDArray[np.float32], recipe: Recipe) -> NDArray[np.float32]:
    """The decoder's output -> depth 0..1, clipped. The inverse of `to_encoder_range`, divided by 255."""
    unit = values if recipe.range == "unit" else values * np.float32(0.5) + np.float32(0.5)
    return np.clip(unit, 0.0, 1.0)


def encoder_input(
    depth_u8_NHW: NDArray[np.uint8], size: int, recipe: Recipe
) -> NDArray[np.float32]:
    """uint8 [N,H,W] at any size -> float32 [N,1,size,size] in the recipe's range."""
    resized = [resize_u8(depth, size, recipe.resize) for depth in depth_u8_NHW]
    return to_encoder_range(np.stack(resized)[:, None], recipe)
