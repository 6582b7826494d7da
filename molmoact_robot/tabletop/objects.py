"""What stands on the table: shapes, sizes and their MJCF."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

import numpy as np

from molmoact_robot.tabletop.arm import add
from molmoact_robot.tabletop.randomization import Rgb


@dataclass(frozen=True)
class Kind:
    """Geometry that the layout and the policy need to know."""

    half_height_m: float
    """Of the resting body's origin above the table."""
    footprint_m: float
    """Radius kept free of other objects."""
    yaw_period_rad: float | None
    """Turn after which a grasp is the same again; None = round."""


KINDS: dict[str, Kind] = {
    "cube": Kind(0.021, 0.045, np.pi / 2),
    "block": Kind(0.018, 0.045, np.pi),
    "can": Kind(0.032, 0.045, None),
    "plate": Kind(0.0045, 0.085, None),
    "bowl": Kind(0.0045, 0.085, None),
    "bottle": Kind(0.06, 0.06, None),
    "carton": Kind(0.055, 0.075, np.pi),
}
GRASPABLE = ("cube", "block", "can")
CLUTTER = ("bottle", "carton")


@dataclass(frozen=True)
class Placed:
    """One object at rest. The task's first object is `object_0`, its target `object_1`."""

    name: str
    kind: str
    colour: str
    rgb: Rgb
    xy_m: tuple[float, float]
    """From the middle of the table."""
    yaw_rad: float


def add_object(world: ET.Element, placed: Placed, table_height_m: float) -> None:
    """A free body with its geoms."""
    kind = KINDS[placed.kind]
    height = table_height_m + kind.half_height_m
    half_turn = placed.yaw_rad / 2
    body = add(
        world, "body", name=placed.name, pos=(*placed.xy_m, height),
        quat=(np.cos(half_turn), 0, 0, np.sin(half_turn)),
    )  # fmt: skip
    add(body, "freejoint")
    for geom in _geoms(placed.kind):
        rgba = geom.pop("rgba", (*placed.rgb, 1))
        add(body, "geom", rgba=rgba, material="object", **geom)


def _geoms(kind: str) -> list[dict[str, object]]:
    solid: dict[str, object] = {"class": "object", "mass": 0.06}
    match kind:
        case "cube":
            return [{**solid, "type": "box", "size": (0.021, 0.021, 0.021)}]
        case "block":
            return [{**solid, "type": "box", "size": (0.036, 0.018, 0.018)}]
        case "can":
            lid = {"class": "visual", "type": "cylinder", "size": (0.0205, 0.0335)}
            return [
                {**solid, "type": "cylinder", "size": (0.022, 0.032)},
                {**lid, "rgba": (0.8, 0.8, 0.82, 1)},
            ]
        case "plate":
            return [_disc(0.062), *_plate_rim()]
        case "bowl":
            return [_disc(0.05), *_bowl_wall()]
        case "bottle":
            heavy = {**solid, "mass": 0.4}
            return [
                {**heavy, "type": "cylinder", "size": (0.028, 0.06)},
                {**heavy, "type": "cylinder", "size": (0.011, 0.025), "pos": (0, 0, 0.085)},
            ]
        case "carton":
            return [{**solid, "mass": 0.4, "type": "box", "size": (0.045, 0.028, 0.055)}]
    raise ValueError(f"unknown object kind {kind!r}; known: {sorted(KINDS)}")


def _disc(radius_m: float) -> dict[str, object]:
    return {"class": "object", "type": "cylinder", "size": (radius_m, 0.004), "mass": 0.15}


def _plate_rim() -> list[dict[str, object]]:
    angles = np.arange(19) * 2 * np.pi / 19
    ring = np.stack([0.072 * np.cos(angles), 0.072 * np.sin(angles)], axis=1)
    pieces = zip(ring, np.roll(ring, -1, axis=0), strict=True)
    shape = {"class": "object", "type": "capsule", "size": 0.005, "mass": 0.004}
    return [{**shape, "fromto": (*start, 0.007, *end, 0.007)} for start, end in pieces]


def _bowl_wall() -> list[dict[str, object]]:
    """Sixteen staves that lean outwards by 22 degrees."""
    geoms: list[dict[str, object]] = []
    for angle in np.arange(16) * 2 * np.pi / 16:
        cos, sin = np.cos(angle), np.sin(angle)
        geoms.append(
            {
                "class": "object",
                "type": "box",
                "mass": 0.004,
                "pos": (0.064 * cos, 0.064 * sin, 0.022),
                "size": (0.003, 0.016, 0.022),
                "xyaxes": (cos * 0.93, sin * 0.93, -0.37, -sin, cos, 0),
            }
        )
    return geoms
