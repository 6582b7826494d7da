"""Pictures as people give them -> RGB arrays. Nothing here imports torch."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from molmoact_data.errors import UserError
from molmoact_data.sources.images import EIGHT_BIT_MODES

ImageLike: TypeAlias = "Image.Image | NDArray[np.uint8]"


def to_rgb(image: ImageLike) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]. A PIL image is turned upright by its EXIF tag first; arrays are taken as they are."""
    if isinstance(image, Image.Image):
        if image.mode not in EIGHT_BIT_MODES:  # converting would clip it, mostly to white
            raise UserError(
                f"the picture has mode {image.mode!r}, which is not 8-bit colour; convert it to 8 bits first."
            )
        upright = ImageOps.exif_transpose(image)
        return np.asarray(upright.convert("RGB"), dtype=np.uint8)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"an image is uint8 [height, width, 3], got {image.dtype} {image.shape}: "
            "floats and other layouts are not guessed"
        )
    return image
