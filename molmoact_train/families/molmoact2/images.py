"""Pictures -> uint8 patches, pooling windows and the ids of the image blocks of a prompt.

Pixels stay uint8 over every boundary: a quarter of the bytes, and the network's own normalisation is the same numbers.
Legend: U crops, P patches per crop, C = patch * patch * 3 (channel fastest), V pooling windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.files.typed import read_typed
from molmoact_train.families.fields import check_fields
from molmoact_train.families.molmoact.image_config import ImageProcessorConfig
from molmoact_train.families.molmoact.images import cut_image
from molmoact_train.families.molmoact.pictures import ImageLike, to_rgb
from molmoact_train.families.molmoact2 import vocabulary

PROCESSOR_FILE = "processor_config.json"


_FIELDS: dict[str, Any] = {
    "image_processor": dict[str, Any],
    "image_use_col_tokens": bool,
    "use_single_crop_col_tokens": bool | None,
    "use_single_crop_start_token": bool,
}


@dataclass(frozen=True)
class ImageLayout:
    """How pictures are cut, and which tokens stand for them: `processor_config.json`."""

    cut: ImageProcessorConfig
    row_ends: bool
    """A column token after each row of a tiled picture."""
    row_ends_of_overview: bool
    low_res_start: bool
    """The overview of a tiled picture begins with a token of its own."""

    @classmethod
    def from_folder(cls, folder: Path) -> ImageLayout:
        path = folder / PROCESSOR_FILE
        if not path.is_file():
            raise UserError(f"{path} is missing: it says how the checkpoint's images are cut.")
        fields = read_typed(dict[str, Any], path)
        try:
            return cls.from_json(fields)
        except KeyError as error:
            raise UserError(f"{path}: the field {error.args[0]!r} is missing.") from error
        except ValueError as error:  # a UserError included
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ImageLayout:
        check_fields(fields, _FIELDS)
        image = fields["image_processor"]
        check_fields(
            image, {"size": dict[str, Any], "overlap_margins": list[Any], "pooling_size": list[Any]}
        )
        if len(image["pooling_size"]) != 2:
            raise UserError(
                f"image_processor.pooling_size is {image['pooling_size']}, not two numbers."
            )
        for name, only in (("image_mean", [0.5] * 3), ("image_std", [0.5] * 3), ("resample", 2)):
            if image[name] != only:
                raise UserError(f"image_processor.{name} is {image[name]}, only {only} is known.")
        cut = ImageProcessorConfig(
            crop_mode=image["crop_mode"],
            max_crops=image["max_crops"],
            max_multi_image_crops=image["max_crops"],
            overlap_margins=tuple(image["overlap_margins"]),
            base_image_input_size=(image["size"]["height"], image["size"]["width"]),
            image_patch_size=image["patch_size"],
            image_pooling_h=image["pooling_size"][0],
            image_pooling_w=image["pooling_size"][1],
        )
        columns = bool(fields["image_use_col_tokens"])
        single = fields["use_single_crop_col_tokens"]
        return cls(
            cut=cut,
            row_ends=columns,
            row_ends_of_overview=columns if single is None else bool(single),
            low_res_start=bool(fields["use_single_crop_start_token"]),
        )


@dataclass(frozen=True)
class CutImages:
    """The pictures of one sample."""

    crops_UPC: NDArray[np.uint8]
    """Equal crops once."""
    windows_V4: NDArray[np.int64]
    """Rows of all U*P patches per pooling window; -1 = absent."""
    blocks: tuple[tuple[str, ...], ...]
    """The tokens of each picture's block."""

    def to_released(self) -> NDArray[np.float32]:
        """Pixels as the released processor hands them out, [U, P, C] in [-1, 1]."""
        return self.crops_UPC.astype(np.float32) / np.float32(255) * 2 - 1


def cut(images: Sequence[ImageLike], layout: ImageLayout) -> CutImages:
    """All pictures of one sample, in their order."""
    rows: dict[bytes, int] = {}
    crops: list[NDArray[np.uint8]] = []
    windows, blocks = [], []
    for image in images:
        part = cut_image(to_rgb(image), layout.cut, max_crops=layout.cut.max_crops)
        levels = np.rint((part.crops_TPC + 1) * np.float32(127.5)).astype(np.uint8)
        places = []
        for crop in levels:
            place = rows.setdefault(crop.tobytes(), len(crops))
            if place == len(crops):
                crops.append(crop)
            places.append(place)
        index, patches = part.pooled_patches_idx_M4, levels.shape[1]
        moved = np.asarray(places)[np.maximum(index, 0) // patches] * patches + index % patches
        windows.append(np.where(index >= 0, moved, -1))
        blocks.append(block(part.grids_G2, layout))
    return CutImages(np.stack(crops), np.concatenate(windows), tuple(blocks))


def block(grids_G2: NDArray[np.int64], layout: ImageLayout) -> tuple[str, ...]:
    """The tokens of one picture: its overview, then (if tiled) the tiles as one grid."""

    def grid(start: str, size: NDArray[np.int64], *, row_ends: bool) -> list[str]:
        row = [vocabulary.IM_PATCH] * int(size[1]) + [vocabulary.IM_COL] * row_ends
        return [start, *row * int(size[0]), vocabulary.IM_END]

    tiled = len(grids_G2) > 1
    start = vocabulary.LOW_RES_START if tiled and layout.low_res_start else vocabulary.IM_START
    overview = grid(start, grids_G2[0], row_ends=layout.row_ends_of_overview)
    tiles = grid(vocabulary.IM_START, grids_G2[1], row_ends=layout.row_ends) if tiled else []
    return (*overview, *tiles)
