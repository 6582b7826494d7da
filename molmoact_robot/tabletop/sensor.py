"""From a clean rendering to what a cheap camera would have delivered."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class SensorModel:
    """One camera's imperfections, fixed for an episode except for the noise."""

    exposure: float = 1.0
    """Factor on linear-ish intensities; values are clipped at white."""
    white_balance: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise_std: float = 0.0
    """Gaussian, in 8-bit grey levels."""
    jpeg_quality: int | None = None
    """None = no compression artefacts."""

    @staticmethod
    def sample(rng: np.random.Generator) -> SensorModel:
        balance = rng.uniform(0.92, 1.08, 3)
        return SensorModel(
            exposure=float(np.exp(rng.uniform(-0.35, 0.3))),
            white_balance=(float(balance[0]), float(balance[1]), float(balance[2])),
            noise_std=float(rng.uniform(0.0, 5.0)),
            jpeg_quality=int(rng.integers(45, 96)) if rng.random() < 0.6 else None,
        )


def expose(
    rgb_HWC: NDArray[np.uint8], sensor: SensorModel, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """uint8 [H,W,3] -> uint8 [H,W,3]."""
    signal = rgb_HWC * np.asarray(sensor.white_balance, np.float32) * np.float32(sensor.exposure)
    if sensor.noise_std > 0:
        noise = rng.standard_normal(rgb_HWC.shape, dtype=np.float32)
        signal = signal + sensor.noise_std * noise
    image = np.clip(signal, 0, 255).astype(np.uint8)
    return image if sensor.jpeg_quality is None else _through_jpeg(image, sensor.jpeg_quality)


def _through_jpeg(rgb_HWC: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(rgb_HWC).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
