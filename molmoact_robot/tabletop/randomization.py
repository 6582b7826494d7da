"""What varies between scenes, and which part of it is held out for testing.

The two splits are disjoint by construction: texture seeds are even in `train` and odd in `test`,
the families `tiles` and `cloth` and four object colours exist in `test` only, and the front camera
stands in azimuth bands that `train` leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from molmoact_robot.tabletop.sensor import SensorModel
from molmoact_robot.tabletop.textures import TextureSpec

Split = Literal["train", "test"]
Variety = Literal["full", "calm"]
Rgb = tuple[float, float, float]

COLOURS: dict[Split, dict[str, Rgb]] = {
    "train": {
        "red": (0.80, 0.12, 0.10),
        "green": (0.15, 0.55, 0.20),
        "blue": (0.12, 0.25, 0.75),
        "yellow": (0.90, 0.75, 0.12),
        "orange": (0.90, 0.45, 0.08),
        "purple": (0.45, 0.18, 0.60),
        "white": (0.88, 0.88, 0.86),
        "black": (0.09, 0.09, 0.10),
        "grey": (0.45, 0.45, 0.47),
    },
    "test": {
        "pink": (0.92, 0.50, 0.62),
        "teal": (0.08, 0.52, 0.52),
        "brown": (0.42, 0.26, 0.14),
        "lime": (0.60, 0.80, 0.15),
        "red": (0.68, 0.16, 0.20),
        "navy": (0.08, 0.12, 0.40),
    },
}
TABLE_FAMILIES: dict[Split, tuple[str, ...]] = {
    "train": ("wood", "wood", "stone", "plain", "speckle"),
    "test": ("wood", "wood", "stone", "plain", "tiles", "cloth"),
}
ARM_SCHEMES: tuple[tuple[Rgb, Rgb], ...] = (
    ((0.92, 0.92, 0.93), (0.20, 0.20, 0.22)),
    ((0.85, 0.86, 0.88), (0.10, 0.25, 0.50)),
    ((0.22, 0.22, 0.24), (0.75, 0.38, 0.10)),
    ((0.93, 0.93, 0.90), (0.55, 0.56, 0.58)),
)
# Degrees to the left or right of straight ahead.
TEST_AZIMUTH_DEG = (8.0, 14.0)
MAX_AZIMUTH_DEG = 28.0
_CALM_SEED = 5
"""Draws a look in which the wrist camera sees well past the fingers; demonstrations of the calm world depend on it."""


@dataclass(frozen=True)
class FrontCamera:
    """A fixed third-person view of the table."""

    azimuth_deg: float
    """0 = opposite the robot, positive = to the robot's left."""
    elevation_deg: float
    distance_m: float
    target_m: tuple[float, float, float]
    """What it looks at, relative to the middle of the table top."""
    roll_deg: float
    fovy_deg: float

    def position(self) -> NDArray[np.float64]:
        """Metres, relative to the middle of the table top."""
        azimuth, elevation = np.deg2rad([self.azimuth_deg, self.elevation_deg])
        direction = np.array(
            [
                np.cos(azimuth) * np.cos(elevation),
                np.sin(azimuth) * np.cos(elevation),
                np.sin(elevation),
            ]
        )
        return np.asarray(self.target_m) + self.distance_m * direction


@dataclass(frozen=True)
class WristCamera:
    """A camera on the hand, looking past the fingers."""

    offset_m: tuple[float, float, float]
    pitch_deg: float
    """Away from parallel to the fingers, towards them."""
    fovy_deg: float


@dataclass(frozen=True)
class Lighting:
    position_m: tuple[float, float, float]
    diffuse: Rgb
    ambient: float
    fill: float


@dataclass(frozen=True)
class Look:
    """Everything about a scene that is neither robot motion nor task."""

    table: TextureSpec
    floor: TextureSpec
    wall: TextureSpec
    table_height_m: float
    arm_shell: Rgb
    arm_joint: Rgb
    lighting: Lighting
    front: FrontCamera
    wrist: WristCamera
    front_sensor: SensorModel
    wrist_sensor: SensorModel


def sample_look(rng: np.random.Generator, split: Split) -> Look:
    shell, joint = ARM_SCHEMES[int(rng.integers(len(ARM_SCHEMES)))]
    return Look(
        table=_texture(rng, split, TABLE_FAMILIES[split]),
        floor=_texture(rng, split, ("stone", "wood", "plain")),
        wall=_texture(rng, split, ("plain", "plain", "stone")),
        table_height_m=float(rng.uniform(0.34, 0.46)),
        arm_shell=jitter(rng, shell, 0.05),
        arm_joint=jitter(rng, joint, 0.05),
        lighting=sample_lighting(rng),
        front=sample_front_camera(rng, split),
        wrist=sample_wrist_camera(rng),
        front_sensor=SensorModel.sample(rng),
        wrist_sensor=SensorModel.sample(rng),
    )


def calm_look() -> Look:
    """The one look of the calm world, of both splits: only objects, their places and the start differ there."""
    return sample_look(np.random.default_rng(_CALM_SEED), "train")


def sample_lighting(rng: np.random.Generator) -> Lighting:
    tone = rng.uniform(0.9, 1.1, 3) * rng.uniform(0.4, 0.8)
    x, y, z = rng.uniform((-0.6, -1.0, 1.5), (0.8, 1.0, 2.5))
    return Lighting(
        position_m=(float(x), float(y), float(z)),
        diffuse=_clip_rgb(tone),
        ambient=float(rng.uniform(0.18, 0.36)),
        fill=float(rng.uniform(0.08, 0.25)),
    )


def sample_front_camera(rng: np.random.Generator, split: Split) -> FrontCamera:
    x, y, z = rng.uniform((-0.12, -0.05, 0.04), (0.02, 0.05, 0.16))
    return FrontCamera(
        azimuth_deg=_azimuth(rng, split),
        elevation_deg=float(rng.uniform(24, 46)),
        distance_m=float(rng.uniform(0.88, 1.18)),
        target_m=(float(x), float(y), float(z)),
        roll_deg=float(rng.normal(0, 2.0)),
        fovy_deg=float(rng.uniform(42, 54)),
    )


def sample_wrist_camera(rng: np.random.Generator) -> WristCamera:
    x, y, z = rng.uniform((0.065, -0.01, -0.015), (0.085, 0.01, 0.005))
    return WristCamera((float(x), float(y), float(z)), *rng.uniform((15, 64), (25, 80)).tolist())


def jitter(rng: np.random.Generator, rgb: Rgb, amount: float) -> Rgb:
    return _clip_rgb(np.asarray(rgb) + rng.uniform(-amount, amount, 3))


def _azimuth(rng: np.random.Generator, split: Split) -> float:
    """Uniform over the split's bands, either side."""
    low, high = TEST_AZIMUTH_DEG
    magnitude = rng.uniform(low, high)
    if split == "train":
        magnitude = rng.uniform(0, MAX_AZIMUTH_DEG - (high - low))
        magnitude += (high - low) if magnitude >= low else 0.0
    return float(magnitude * rng.choice((-1.0, 1.0)))


def _texture(rng: np.random.Generator, split: Split, families: tuple[str, ...]) -> TextureSpec:
    seed = 2 * int(rng.integers(2**30)) + (split == "test")
    return TextureSpec(families[int(rng.integers(len(families)))], seed)


def _clip_rgb(values: NDArray[np.float64]) -> Rgb:
    r, g, b = np.clip(values, 0.02, 0.98)
    return float(r), float(g), float(b)
