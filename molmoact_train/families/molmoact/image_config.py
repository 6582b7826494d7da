"""How the pictures of a checkpoint are cut and scaled: its preprocessor_config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from molmoact_data.errors import UserError
from molmoact_data.files.typed import read_typed
from molmoact_train.families.fields import Count, Depth, Share, check_fields, hints_of

Side = Annotated[int, Field(ge=1, le=4096)]
"""Pixels or patches along one side."""
CONFIG_NAME = "preprocessor_config.json"


@dataclass(frozen=True)
class ImageProcessorConfig:
    """The fields of the released `preprocessor_config.json`; the defaults are the 7B-D ones."""

    crop_mode: Literal["overlap-and-resize-c2", "resize"] = "overlap-and-resize-c2"
    """`resize` keeps the overview crop only: for new trainings, half the visual tokens of small images."""
    resize_mode: Literal["siglip", "default"] = "siglip"
    """`siglip`: squash, bilinear without antialiasing, on uint8. `default`: letterbox with antialiasing."""
    normalize_mode: Literal["siglip", "openai"] = "siglip"
    """`siglip`: 2x - 1. `openai`: CLIP mean and standard deviation, padding included."""
    max_crops: Depth = 8
    """Most tiles of an image that is alone in its sample."""
    max_multi_image_crops: Depth = 8
    """Most tiles of each image where there are several."""
    overlap_margins: tuple[Count, Count] = (4, 4)
    """Patches that a tile shares with its left/upper and right/lower neighbour."""
    base_image_input_size: tuple[Side, Side] = (378, 378)
    """Pixels (H, W) of one crop."""
    image_patch_size: Side = 14
    image_pooling_h: Side = 2
    image_pooling_w: Side = 2
    pad_value: Share = 0.0
    """Brightness (0..1, before normalising) of letterbox padding."""

    def __post_init__(self) -> None:
        for name, known in (
            ("crop_mode", ("overlap-and-resize-c2", "resize")),
            ("resize_mode", ("siglip", "default")),
            ("normalize_mode", ("siglip", "openai")),
        ):
            if getattr(self, name) not in known:
                raise UserError(
                    f"image processor {name}={getattr(self, name)!r} is not supported: use one of {known}"
                )
        try:
            check_fields(vars(self), hints_of(type(self)))
        except ValueError as error:
            raise UserError(f"image processor {error}") from error
        height, width = self.base_image_input_size
        if height != width or height % self.image_patch_size:
            raise UserError(
                f"crops of {height}x{width} pixels do not divide into square grids of "
                f"{self.image_patch_size}-pixel patches"
            )
        if self.window_patches < 1:
            raise UserError(
                f"tiles of {self.crop_patches} patches overlap by {self.overlap_margins}: nothing is left of them"
            )

    @property
    def crop_patches(self) -> int:
        """Patches along one side of a crop."""
        return self.base_image_input_size[0] // self.image_patch_size

    @property
    def window_patches(self) -> int:
        """Patches by which neighbouring tiles are apart."""
        return self.crop_patches - sum(self.overlap_margins)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"image_processor_type": "MolmoActImageProcessor"}

    @classmethod
    def read(cls, path: Path) -> ImageProcessorConfig:
        """The file at `path`. Raises `UserError` naming it and the field."""
        fields = read_typed(dict[str, Any], path)
        try:
            return cls.from_json(fields)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ImageProcessorConfig:
        """Reads what it knows and leaves the rest (a released file holds class names and unused modes)."""
        known = {f.name for f in dataclasses.fields(cls)}
        chosen: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
            if name in known and value is not None
        }
        return cls(**chosen)
