"""One picture -> the crops the image encoder reads and the 2x2 windows the connector pools.

Legend: H, W pixels; T crops (overview first, then tiles row by row); P patches per crop; C = patch * patch * 3
(row in patch, column in patch, channel: channel fastest); M pooling windows; G patch grids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from molmoact_data.errors import UserError
from molmoact_train.families.molmoact.image_config import CONFIG_NAME, ImageProcessorConfig
from molmoact_train.families.molmoact.image_scaling import resize
from molmoact_train.families.molmoact.pictures import ImageLike, to_rgb

ImageBatch: TypeAlias = "ImageLike | Sequence[ImageLike | Sequence[ImageLike]]"
NO_PATCH = -1
"""In `pooled_patches_idx`: this slot of the window lies outside the picture. Also pads every batch."""


@dataclass(frozen=True)
class ProcessedImages:
    """What one sample's pictures become."""

    crops_TPC: NDArray[np.float32]
    masks_TP: NDArray[np.float32]
    """Share of each patch that is picture and not letterbox padding, 0..1."""
    pooled_patches_idx_M4: NDArray[np.int64]
    """Four patches (counted over all T crops) per window; -1 = outside."""
    grids_G2: NDArray[np.int64]
    """(rows, columns) of windows per grid; an image has an overview grid and, with tiles, a second one."""
    num_grids: tuple[int, ...]
    """Grids of each image."""


class MolmoActImageProcessor:
    """Pictures -> `images`, `pooled_patches_idx`, `image_masks`, `image_grids`, all numpy."""

    def __init__(self, config: ImageProcessorConfig | None = None) -> None:
        self.config = config if config is not None else ImageProcessorConfig()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MolmoActImageProcessor:
        path = Path(folder) / CONFIG_NAME
        if not path.is_file():
            raise UserError(f"{path} is missing: it says how the checkpoint's images are cut")
        return cls(ImageProcessorConfig.read(path))

    def save_pretrained(self, folder: str | Path) -> None:
        text = json.dumps(self.config.to_json(), indent=2, sort_keys=True)
        (Path(folder) / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")

    def __call__(self, images: ImageBatch) -> dict[str, NDArray[Any]]:
        """Batched arrays: `images` [B, T, P, C], `pooled_patches_idx` [B, M, 4], `image_masks` [B, T, P],
        `image_grids` [B, G, 2]; -1 pads what a sample lacks.

        One image is a sample; a list is a batch, whose entries are an image or the list of a sample's images.
        """
        done = [self.sample(pictures) for pictures in as_samples(images)]
        return {
            "images": stack_padded([d.crops_TPC for d in done]),
            "pooled_patches_idx": stack_padded([d.pooled_patches_idx_M4 for d in done]),
            "image_masks": stack_padded([d.masks_TP for d in done]),
            "image_grids": stack_padded([d.grids_G2 for d in done]),
        }

    def sample(self, images: Sequence[ImageLike]) -> ProcessedImages:
        """All pictures of one sample, in their order; the patch index runs over all their crops."""
        if not images:
            raise ValueError("a sample has at least one image")
        most = self.config.max_crops if len(images) == 1 else self.config.max_multi_image_crops
        parts = [cut_image(to_rgb(image), self.config, max_crops=most) for image in images]
        patches = np.cumsum([0] + [part.masks_TP.size for part in parts[:-1]])
        # The shift moves absent patches (-1) too: from the second image on, a border window reads the previous
        # image's last patch. The released models were trained and are run like that.
        index = [
            part.pooled_patches_idx_M4 + offset for part, offset in zip(parts, patches, strict=True)
        ]
        return ProcessedImages(
            crops_TPC=np.concatenate([part.crops_TPC for part in parts]),
            masks_TP=np.concatenate([part.masks_TP for part in parts]),
            pooled_patches_idx_M4=np.concatenate(index),
            grids_G2=np.concatenate([part.grids_G2 for part in parts]),
            num_grids=tuple(len(part.grids_G2) for part in parts),
        )


def cut_image(
    rgb_HWC: NDArray[np.uint8], config: ImageProcessorConfig, *, max_crops: int
) -> ProcessedImages:
    """The overview crop and, unless `crop_mode` is `resize`, the tiles that show more detail."""
    size, patch = config.base_image_input_size, config.image_patch_size
    overview, mask = resize(rgb_HWC, size, config)
    side = config.crop_patches
    overview_idx = pooling_windows(np.arange(side * side).reshape(side, side), config)
    crops, masks = [overview], [mask]
    windows, grids = (
        [overview_idx.reshape(-1, config.image_pooling_h * config.image_pooling_w)],
        [overview_idx.shape[:2]],
    )
    if config.crop_mode == "overlap-and-resize-c2":
        window, margin = config.window_patches * patch, sum(config.overlap_margins) * patch
        rows, columns = select_tiling(
            rgb_HWC.shape[0] - margin, rgb_HWC.shape[1] - margin, window, max_crops
        )
        target = (rows * window + margin, columns * window + margin)
        large, large_mask = (overview, mask) if target == size else resize(rgb_HWC, target, config)
        for row in range(rows):
            for column in range(columns):
                area = np.s_[
                    row * window : row * window + size[0],
                    column * window : column * window + size[1],
                ]
                crops.append(large[area])
                masks.append(large_mask[area])
        tiles_idx = pooling_windows(tile_patches(rows, columns, config), config)
        windows.append(
            np.where(tiles_idx >= 0, tiles_idx + side * side, NO_PATCH).reshape(
                -1, config.image_pooling_h * config.image_pooling_w
            )
        )
        grids.append(tiles_idx.shape[:2])
    return ProcessedImages(
        crops_TPC=np.stack([to_patches(crop, patch) for crop in crops]),
        masks_TP=np.stack([to_patches(m[..., None], patch).mean(-1) for m in masks]),
        pooled_patches_idx_M4=np.concatenate(windows),
        grids_G2=np.array(grids, dtype=np.int64),
        num_grids=(len(grids),),
    )


def select_tiling(height: int, width: int, window: int, max_crops: int) -> tuple[int, int]:
    """(rows, columns) of tiles for an area of `height` x `width` pixels (margins already taken off).

    The smallest enlargement that covers it; if none covers it, the one that shrinks least.
    """
    tilings = [(i, j) for i in range(1, max_crops + 1) for j in range(1, max_crops // i + 1)]
    tilings.sort(key=lambda ij: (ij[0] * ij[1], ij[0]))
    sizes = np.array(tilings, dtype=np.int32) * window
    with np.errstate(divide="ignore"):
        scales = sizes.astype(np.float32) / np.array([height, width], dtype=np.float32)
    scale = scales.min(axis=-1)
    if np.all(scale < 1):
        return tilings[int(np.argmax(scale))]
    return tilings[int(np.argmin(np.where(scale < 1.0, np.float32(1e9), scale)))]


@cache
def _tile_patches(rows: int, columns: int, side: int, left: int, right: int) -> NDArray[np.int64]:
    window = side - left - right
    grid = np.full((rows * window + left + right, columns * window + left + right), NO_PATCH)
    index = np.arange(rows * columns * side * side).reshape(rows, columns, side, side)
    for row in range(rows):
        for column in range(columns):
            # A margin is dropped on each side that has a neighbour: the neighbour sees it better.
            top, start = (left if row else 0), (left if column else 0)
            bottom = side - (right if row < rows - 1 else 0)
            end = side - (right if column < columns - 1 else 0)
            place = np.s_[
                row * window + top : row * window + bottom,
                column * window + start : column * window + end,
            ]
            grid[place] = index[row, column, top:bottom, start:end]
    return grid


def tile_patches(rows: int, columns: int, config: ImageProcessorConfig) -> NDArray[np.int64]:
    """For each patch of the tiled picture, its index among the tiles' patches (tile by tile)."""
    return _tile_patches(rows, columns, config.crop_patches, *config.overlap_margins)


def pooling_windows(
    patches_HW: NDArray[np.int64], config: ImageProcessorConfig
) -> NDArray[np.int64]:
    """[H', W', 4]: windows row by row, slots (0,0) (0,1) (1,0) (1,1); an odd side gets -1 at its end."""
    height, width = config.image_pooling_h, config.image_pooling_w
    missing_h, missing_w = -patches_HW.shape[0] % height, -patches_HW.shape[1] % width
    padded = np.pad(
        patches_HW,
        (
            (missing_h // 2, missing_h - missing_h // 2),
            (missing_w // 2, missing_w - missing_w // 2),
        ),
        constant_values=NO_PATCH,
    )
    rows, columns = padded.shape[0] // height, padded.shape[1] // width
    windows = padded.reshape(rows, height, columns, width).transpose(0, 2, 1, 3)
    return windows.reshape(rows, columns, height * width)


def to_patches(pixels_HWC: NDArray[np.float32], patch: int) -> NDArray[np.float32]:
    """[H, W, c] -> [P, patch * patch * c], channel fastest."""
    rows, columns = pixels_HWC.shape[0] // patch, pixels_HWC.shape[1] // patch
    split = pixels_HWC.reshape(rows, patch, columns, patch, -1).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(split.reshape(rows * columns, -1))


def stack_padded(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """[B, longest, ...]; -1 where a sample is shorter. All but the first dimension must agree."""
    longest = max(len(array) for array in arrays)
    out = np.full((len(arrays), longest, *arrays[0].shape[1:]), -1, dtype=arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return out


def as_samples(images: ImageBatch) -> list[list[ImageLike]]:
    """One image is one sample; each entry of a list is a sample, itself an image or the list of its images."""
    if isinstance(images, (Image.Image, np.ndarray)):
        return [[images]]
    return [
        [entry] if isinstance(entry, (Image.Image, np.ndarray)) else list(entry) for entry in images
    ]
