"""How the pictures of a checkpoint are cut and scaled: its preprocessor_config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from molmoact_data.errors import UserError

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
    max_crops: int = 8
    """Most tiles of an image that is alone in its sample."""
    max_multi_image_crops: int = 8
    """Most tiles of each image where there are several."""
    overlap_margins: tuple[int, int] = (4, 4)
    """Patches that a tile shares with its left/upper and right/lower neighbour."""
    base_image_input_size: tuple[int, int] = (378, 378)
    """Pixels (H, W) of one crop."""
    image_patch_size: int = 14
    image_pooling_h: int = 2
    image_pooling_w: int = 2
    pad_value: float = 0.0
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
        height, width = self.base_image_input_size
        if height != width or height % self.image_patch_size:
            raise UserError(
                f"crops of {height}x{width} pixels do not divide into square grids of "
                f"{self.image_patch_size}-pixel patches"
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
    def from_json(cls, fields: Mapping[str, Any]) -> ImageProcessorConfig:
        """Reads what it knows and leaves the rest (a released file holds class names and unused modes)."""
        known = {f.name for f in dataclasses.fields(cls)}
        chosen: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
            if name in known and value is not None
        }
        return cls(**chosen)
