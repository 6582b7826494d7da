"""Pictures as people give them -> RGB arrays. Nothing here imports torch."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from molmoact_data.sources.images import as_rgb

ImageLike: TypeAlias = "Image.Image | NDArray[np.uint8]"


def to_rgb(image: ImageLike) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]. A PIL image is turned upright by its EXIF tag first; arrays are taken as they are."""
    if isinstance(image, Image.Image):
        return np.asarray(as_rgb(ImageOps.exif_transpose(image)), dtype=np.uint8)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"an image is uint8 [height, width, 3], got {image.dtype} {image.shape}: "
            "floats and other layouts are not guessed"
        )
    return image
