"""Pictures that carry a number, so that a test can tell which one it was given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from made_datasets import FPS
from numpy.typing import NDArray

BITS, CELL, SIZE = 7, 9, 64


def numbered_frames(
    numbers: Iterable[int], hw: tuple[int, int] = (SIZE, SIZE)
) -> NDArray[np.uint8]:
    """RGB [T,H,W,3]: noise, and below it the number in binary, least significant bit at the left."""
    frames = []
    for number in numbers:
        rgb = np.random.default_rng(number).integers(0, 160, (*hw, 3)).astype(np.uint8)
        for bit in range(BITS):
            rgb[-9:, bit * CELL : (bit + 1) * CELL] = 255 if number >> bit & 1 else 0
        frames.append(rgb)
    return np.stack(frames)


def number_of(rgb: NDArray[np.uint8]) -> int:
    """The number that a picture carries, after lossy coding too."""
    cells = rgb[-5, : BITS * CELL].mean(axis=-1).reshape(BITS, CELL)[:, 2:7].mean(axis=1)
    return sum(1 << bit for bit, light in enumerate(cells) if light > 128)


def write_numbered(
    path: Path,
    numbers: Iterable[int],
    *,
    times: Sequence[int] | None = None,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    faststart: bool = False,
    hw: tuple[int, int] = (SIZE, SIZE),
) -> Path:
    """A video of these pictures; `times` are their places in frame periods, one after the other if not given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = {"movflags": "faststart"} if faststart else {}
    with av.open(str(path), "w", options=flags) as container:
        stream = container.add_stream(codec, rate=FPS, options=options or {"g": "8", "crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *hw, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        for place, rgb in enumerate(numbered_frames(numbers, hw)):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts = place if times is None else times[place]
            frame.time_base = Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
