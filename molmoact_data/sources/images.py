"""Frames that a dataset stores as encoded images: decoded for the teachers, kept for the record."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from molmoact_data.errors import EpisodeRejected, RejectReason, UserError
from molmoact_data.sources.base import CameraBatch, CameraFeature

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")
PASSED_THROUGH = ("JPEG", "PNG")
PNG_BIT_DEPTH = 24
"""Where a PNG says its bits per channel, a byte."""
UPRIGHT = 1


class NotEightBitError(UserError):
    """A picture whose grey levels do not fit into 8 bits: mono16, depth, float."""


def check_eight_bit(image: Image.Image) -> None:
    """Raises `NotEightBitError` where converting to RGB would clip the picture, mostly to white."""
    if image.mode not in EIGHT_BIT_MODES:
        kind = f"{image.format} of mode" if image.format else "a picture of mode"
        raise NotEightBitError(
            f"{kind} {image.mode!r}, not 8-bit colour; convert it to 8 bits first"
        )


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in mode RGB, not turned. Raises `NotEightBitError`."""
    check_eight_bit(image)
    return image.convert("RGB")


def iter_image_batches(
    encoded: Iterable[bytes], num_frames: int, batch_size: int, *, key: str, is_depth: bool
) -> Generator[CameraBatch, None, None]:
    """Batches of exactly `num_frames` images in all. Raises `EpisodeRejected`."""
    images = iter(encoded)
    size_hw: tuple[int, ...] | None = None
    for first in range(0, num_frames, batch_size):
        size = min(batch_size, num_frames - first)
        batch = image_batch(list(islice(images, size)), key=key, first=first, is_depth=is_depth)
        if len(batch.rgb_NHWC) != size:
            raise EpisodeRejected(
                RejectReason.IMAGE_MISSING,
                f"{key}: {first + len(batch.rgb_NHWC)} images for {num_frames} rows",
            )
        if size_hw is not None and batch.rgb_NHWC.shape[1:] != size_hw:
            raise _size_changed(key, first, size_hw, batch.rgb_NHWC.shape[1:])
        size_hw = batch.rgb_NHWC.shape[1:]
        yield batch


def of_declared_size(
    batches: Generator[CameraBatch, None, None], camera: CameraFeature
) -> Generator[CameraBatch, None, None]:
    """The batches, where their pictures are of the camera's size (0 = unknown). Raises `EpisodeRejected`.

    Points in pixels are scaled by that size.
    """
    declared = (camera.height, camera.width)
    with closing(batches):
        for batch in batches:
            found = batch.rgb_NHWC.shape[1:3]
            if all(declared) and found != declared:
                raise EpisodeRejected(
                    RejectReason.PICTURE_SIZE_DIFFERS,
                    f"{camera.key}: pictures of {found[1]}x{found[0]}, the dataset's are "
                    f"{declared[1]}x{declared[0]} (width x height)",
                )
            yield batch


def image_batch(
    encoded: Sequence[bytes], *, key: str, first: int = 0, is_depth: bool = False
) -> CameraBatch:
    """Decode N images of one camera; `first` is the frame index of the first, for messages.

    The bytes are passed on where all N are plain 8-bit RGB JPEG or PNG: what a reader of the output
    decodes is then exactly what the dataset holds. Otherwise `encoded` is None.
    """
    arrays: list[NDArray[np.generic]] = []
    plain = not is_depth
    for offset, data in enumerate(encoded):
        pixels, is_plain = _decode(data, key, first + offset, is_depth=is_depth)
        if arrays and pixels.shape != arrays[0].shape:
            raise _size_changed(key, first + offset, arrays[0].shape, pixels.shape)
        plain = plain and is_plain
        arrays.append(pixels)
    stacked = np.stack(arrays) if arrays else np.empty((0, 0, 0, 3), np.uint8)
    return CameraBatch(stacked, tuple(encoded) if plain else None)  # type: ignore[arg-type]


def _decode(
    data: bytes, key: str, frame: int, *, is_depth: bool
) -> tuple[NDArray[np.generic], bool]:
    """Pixels of one image, and whether its bytes are a plain RGB JPEG or PNG."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if is_depth:
                return _depth_pixels(image), False
            plain = image.mode == "RGB" and image.format in PASSED_THROUGH and not _is_deep(data)
            orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
            if orientation != UPRIGHT:  # most readers turn it, some do not: store it turned
                return np.asarray(as_rgb(ImageOps.exif_transpose(image))), False
            return np.asarray(as_rgb(image)), plain
    except (
        NotEightBitError,
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        raise EpisodeRejected(
            RejectReason.IMAGE_UNDECODABLE, f"{key}, frame {frame}: {error}"
        ) from error


def _is_deep(data: bytes) -> bool:
    """A PNG of 16 bits per channel: Pillow keeps the upper 8, other readers hand on all 16."""
    return data.startswith(b"\x89PNG") and data[PNG_BIT_DEPTH] > 8


def _depth_pixels(image: Image.Image) -> NDArray[np.generic]:
    """Recorded depth [H,W] as it was stored: uint16 (8-bit is widened), or float32 from TIFF."""
    pixels = np.asarray(image)
    if pixels.ndim == 3:
        pixels = pixels[..., 0]
    return pixels.astype(np.float32 if pixels.dtype.kind == "f" else np.uint16)


def _size_changed(
    key: str, frame: int, before: Sequence[int], now: Sequence[int]
) -> EpisodeRejected:
    return EpisodeRejected(
        RejectReason.VIDEO_SIZE_CHANGED,
        f"{key}: {tuple(before[:2])} before frame {frame}, {tuple(now[:2])} there",
    )
