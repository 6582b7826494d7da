"""Augmentation that keeps labels true: the crop keeps the aspect ratio and the trace moves with it.

Every random number comes from the generator that is handed in, one per sample position. The crop is chosen
so that no point of the trace leaves the image; where the trace is too wide for any crop, there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

CROP_AREA = 0.9
BRIGHTNESS = CONTRAST = SATURATION = 0.2
HUE = 0.05
"""Of the full circle."""
GRID = 255

Trace = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Crop:
    """A window with the image's own aspect ratio, in unit coordinates (0 = first, 1 = last pixel edge)."""

    left: float
    top: float
    side: float
    """Of the image's width and height alike; 1 = the whole image."""


WHOLE = Crop(0.0, 0.0, 1.0)


@dataclass(frozen=True)
class ColourJitter:
    """Factors around 1 (hue: a shift around 0) and the order in which they are applied."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[int, ...]


def draw_crop(rng: np.random.Generator, trace: Trace | None) -> Crop:
    """A random window of 0.9 of the area that holds every point of the trace, or `WHOLE` if none can.

    Consumes two numbers whatever the trace, so that one sample's labels never shift another draw.
    """
    u, v = rng.random(2)
    side = math.sqrt(CROP_AREA)
    points = (
        np.asarray(trace, dtype=np.float64).reshape(-1, 2) / GRID if trace else np.empty((0, 2))
    )
    low, high = np.zeros(2), np.full(2, 1 - side)
    if len(points):
        low = np.maximum(low, points.max(axis=0) - side)
        high = np.minimum(high, points.min(axis=0))
    if (low > high).any():
        return WHOLE
    left, top = low + np.array([u, v]) * (high - low)
    return Crop(float(left), float(top), side)


def draw_jitter(rng: np.random.Generator) -> ColourJitter:
    """The published ranges: brightness, contrast, saturation 0.8..1.2, hue -0.05..0.05, random order."""
    brightness, contrast, saturation = rng.uniform(
        1 - np.array([BRIGHTNESS, CONTRAST, SATURATION]),
        1 + np.array([BRIGHTNESS, CONTRAST, SATURATION]),
    )
    hue = rng.uniform(-HUE, HUE)
    order = tuple(int(i) for i in rng.permutation(4))
    return ColourJitter(float(brightness), float(contrast), float(saturation), float(hue), order)


def crop_image(image: Image.Image, crop: Crop) -> Image.Image:
    """The window, resized back to the image's own size."""
    if crop == WHOLE:
        return image
    width, height = image.size
    box = (
        crop.left * width,
        crop.top * height,
        (crop.left + crop.side) * width,
        (crop.top + crop.side) * height,
    )
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def crop_trace(trace: Trace, crop: Crop, size_wh: tuple[int, int]) -> list[list[int]]:
    """Points [x, y] of 0..255 over the whole image -> 0..255 over the window.

    0 and 255 are the centres of the first and last pixel, the window is cut between pixel edges; hence the size.
    """
    size = np.asarray(size_wh, dtype=np.float64)
    centres = np.asarray(trace, dtype=np.float64).reshape(-1, 2) / GRID * (size - 1)
    moved = ((centres + 0.5) / size - [crop.left, crop.top]) / crop.side * size - 0.5
    return np.rint(np.clip(moved / (size - 1), 0, 1) * GRID).astype(int).tolist()


def jitter_image(image: Image.Image, jitter: ColourJitter) -> Image.Image:
    """Brightness, contrast, saturation and hue, in the drawn order."""
    steps = (
        lambda i: ImageEnhance.Brightness(i).enhance(jitter.brightness),
        lambda i: ImageEnhance.Contrast(i).enhance(jitter.contrast),
        lambda i: ImageEnhance.Color(i).enhance(jitter.saturation),
        lambda i: shift_hue(i, jitter.hue),
    )
    for index in jitter.order:
        image = steps[index](image)
    return image


def shift_hue(image: Image.Image, shift: float) -> Image.Image:
    """Turn the hue by `shift` of the circle (wraps around)."""
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + round(shift * 256)) % 256
    return Image.fromarray(hsv, "HSV").convert("RGB")


@dataclass(frozen=True)
class AugmentedView:
    """The images and the trace after augmentation."""

    images: list[Image.Image]
    traces: list[list[list[int]]] | None


def augment(
    images: Sequence[Image.Image],
    traces: Sequence[Trace] | None,
    rng: np.random.Generator,
    *,
    crop_first: bool,
) -> AugmentedView:
    """Augment every camera on its own; the traces (one per arm) belong to the first.

    `crop_first=False` leaves the first camera's framing alone: its depth codes belong to the whole frame.
    """
    views = []
    moved = None if traces is None else [[list(map(int, xy)) for xy in arm] for arm in traces]
    for index, image in enumerate(images):
        points = [xy for arm in moved or [] for xy in arm] if index == 0 else None
        crop = draw_crop(rng, points)
        jitter = draw_jitter(rng)
        if index == 0 and not crop_first:
            crop = WHOLE
        if index == 0 and moved is not None and crop != WHOLE:
            moved = [crop_trace(arm, crop, image.size) for arm in moved]
        views.append(jitter_image(crop_image(image, crop), jitter))
    return AugmentedView(views, moved)
