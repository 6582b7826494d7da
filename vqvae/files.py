"""Depth maps and codes as files: what `molmoact vqvae encode` and `decode` read and write."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError, first_line
from molmoact_data.files.folders import write_bytes
from molmoact_data.labels.depth_scaling import depth_scaler
from molmoact_data.text import tokens

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def read_depth_u8(path: Path, scaling: str = "image") -> NDArray[np.uint8]:
    """Depth to encode: uint8 [N,H,W]. An npy file of [N,H,W] or [H,W], or one image.

    8-bit maps are taken as they are; 16-bit and float ones are scaled to 0..255, for `steady` as the frames of one
    episode. Larger must mean nearer.
    """
    if not path.is_file():
        raise UserError(f"no depth to encode at {path}.")
    depth = _read_array(path)
    depth = depth[None] if depth.ndim == 2 else depth
    if depth.ndim != 3 or depth.dtype.kind not in "uif":
        raise UserError(
            f"{path} must hold depth maps as numbers [N,H,W] or [H,W], found {depth.dtype} "
            f"{list(depth.shape)}."
        )
    if depth.dtype == np.uint8:
        return depth
    with np.errstate(over="ignore"):
        depth = depth.astype(np.float32)
    if not np.isfinite(depth).all():
        raise UserError(f"{path} holds depth that is not finite (in 32 bits).")
    return depth_scaler(scaling).scale(depth)[0]


def _read_array(path: Path) -> NDArray[Any]:
    if path.suffix == ".npy":
        try:
            array: NDArray[Any] = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, MemoryError) as error:
            raise UserError(f"{path} is not a plain npy array: {first_line(error)}") from None
        return array
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(
            f"cannot read depth from {path.name}; give .npy or an image ({IMAGE_SUFFIXES})."
        )
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise UserError(f"{path} is not a readable image.")
    if image.ndim == 3:
        colours = image[..., :3]
        if (colours != colours[..., :1]).any():
            raise UserError(f"{path} is a colour image; depth has one channel.")
        image = colours[..., 0]
    return np.asarray(image)


def write_codes(path: Path, codes_NC: NDArray[np.integer]) -> None:
    """`.npy`: int16 [N,C]. `.txt`: one line of depth tokens per map."""
    if path.suffix == ".npy":
        write_bytes(path, _npy_bytes(codes_NC.astype(np.int16)))
    elif path.suffix == ".txt":
        lines = [tokens.encode_depth(row.tolist()) + "\n" for row in codes_NC]
        write_bytes(path, "".join(lines).encode())
    else:
        raise UserError(
            f"codes are written as .npy or .txt, not {path.suffix or 'without a suffix'!r}."
        )


def read_codes(path: Path) -> NDArray[np.int64]:
    """The inverse of `write_codes`: int64 [N,C]."""
    if not path.is_file():
        raise UserError(f"no codes at {path}.")
    if path.suffix != ".npy":
        try:
            return parse_codes(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not text: {error}.") from error
    codes = _read_array(path)
    if codes.dtype.kind not in "ui":
        raise UserError(f"codes are integers, {path} holds {codes.dtype}.")
    if codes.ndim not in (1, 2) or (codes.dtype == np.uint64 and codes.max(initial=0) > 2**32):
        raise UserError(f"{path} holds no codes [N,C]: {codes.dtype} {list(codes.shape)}.")
    return codes.astype(np.int64).reshape(1 if codes.ndim == 1 else len(codes), -1)


def parse_codes(text: str) -> NDArray[np.int64]:
    """Depth tokens in any text (every span is one map), or plain integers (one map): int64 [N,C]."""
    return np.array(tokens.codes_in(text), np.int64)


def write_depth(path: Path, depth_NHW: NDArray[np.float32]) -> None:
    """Decoded depth 0..1: `.npy` float32 [N,H,W]; an image of 8 bits, the maps side by side."""
    if path.suffix == ".npy":
        write_bytes(path, _npy_bytes(depth_NHW))
        return
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(
            f"depth is written as .npy or an image ({IMAGE_SUFFIXES}), not {path.name!r}."
        )
    picture = np.rint(np.concatenate(list(depth_NHW), axis=1) * 255).astype(np.uint8)
    _, encoded = cv2.imencode(path.suffix.lower(), picture)
    write_bytes(path, encoded.tobytes())


def _npy_bytes(array: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
