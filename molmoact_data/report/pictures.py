"""Pictures of a report: frames with their trace, the heat of points, the strips. All as data addresses."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.output import open_parquet
from molmoact_data.pictures.images import decode_image, encode_jpeg
from molmoact_data.pictures.overlay import draw_labels
from molmoact_data.report.data import EpisodeKey, FrameRef, iter_by_row_group

MAX_WIDTH = 360
JPEG_QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """One frame, drawn on, with what its caption needs."""

    ref: FrameRef
    address: str
    """`data:image/jpeg;base64,...`"""
    instruction: str
    width: int
    height: int


def read_pictures(
    storage: Storage, refs: Sequence[FrameRef], camera: str
) -> dict[FrameRef, Picture]:
    """The first camera's frames with traces and points drawn; one row group in memory at a time."""
    pictures = {}
    for shard, group, members in iter_by_row_group(refs):
        with open_parquet(storage, shard) as file:
            names = [schema.image_column(camera), schema.INSTRUCTION]
            marks = [schema.TRACE, schema.GRIPPER_POINTS]
            names += [name for name in marks if name in file.schema_arrow.names]
            table = file.read_row_group(group, columns=names)
        for ref in members:
            row = {name: table[name][ref.row].as_py() for name in names}
            rgb = draw_labels(
                shrink(decode_image(row[schema.image_column(camera)]["bytes"])),
                traces=row.get(schema.TRACE) or [],
                points=row.get(schema.GRIPPER_POINTS) or [],
            )
            height, width = rgb.shape[:2]
            address = jpeg_address(rgb)
            pictures[ref] = Picture(ref, address, row[schema.INSTRUCTION], width, height)
    return pictures


def shrink(rgb_HWC: NDArray[np.uint8], max_width: int = MAX_WIDTH) -> NDArray[np.uint8]:
    """At most `max_width` wide, same shape."""
    import cv2

    height, width = rgb_HWC.shape[:2]
    if width <= max_width:
        return rgb_HWC
    size = (max_width, round(height * max_width / width))
    return cv2.resize(rgb_HWC, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def heat_picture(heat_YX: NDArray[np.int64], rgb_HWC: NDArray[np.uint8]) -> str:
    """Where the points lie, over a greyed frame."""
    import cv2

    height, width = rgb_HWC.shape[:2]
    level = np.sqrt(heat_YX / max(int(heat_YX.max()), 1)).astype(np.float32)
    level = np.clip(cv2.resize(level, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
    grey = np.repeat(rgb_HWC.mean(axis=2, keepdims=True), 3, axis=2) * 0.55
    glow = np.array([0, 255, 255]) * level[..., None]
    mixed = grey * (1 - 0.85 * level[..., None]) + glow
    return jpeg_address(shrink(np.clip(mixed, 0, 255).astype(np.uint8)))


def strips_picture(strips: Mapping[EpisodeKey, NDArray[np.float32]]) -> str:
    """One row of pixels per episode: red where there is no trace, through yellow, to cyan where it is sure."""
    quality = np.stack(list(strips.values()))[..., None]
    red, yellow, cyan = (
        np.array(c, dtype=float) for c in ((214, 69, 65), (240, 180, 41), (24, 188, 198))
    )
    low = red + (yellow - red) * np.clip(quality / 0.5, 0, 1)
    high = yellow + (cyan - yellow) * np.clip((quality - 0.5) / 0.5, 0, 1)
    return png_address(np.where(quality < 0.5, low, high).round().astype(np.uint8))


def jpeg_address(rgb_HWC: NDArray[np.uint8]) -> str:
    """A picture inside the page."""
    return _address("image/jpeg", encode_jpeg(rgb_HWC, JPEG_QUALITY))


def png_address(rgb_HWC: NDArray[np.uint8]) -> str:
    """A picture inside the page, without loss."""
    import cv2

    done, encoded = cv2.imencode(".png", cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"OpenCV could not encode an image of shape {rgb_HWC.shape}")
    return _address("image/png", encoded.tobytes())


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
