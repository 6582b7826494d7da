"""The robot's body as MJCF: a 7-joint arm of primitives with the Panda's published link lengths."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

import numpy as np

from molmoact_robot.tabletop.randomization import Rgb, WristCamera

Vec = tuple[float, ...]
BASE_X_M = -0.62
NUM_JOINTS = 7
HOME_RAD = np.array([0.0, -0.35, 0.0, -2.35, 0.0, 2.0, 0.7853])
FINGER_OPEN_M = 0.04
GRIP_SITE = "grip"


@dataclass(frozen=True)
class Shape:
    """A capsule or cylinder from one point to another; `skin` is `shell` or `joint`."""

    kind: str
    start: Vec
    end: Vec
    radius: float
    skin: str


@dataclass(frozen=True)
class Link:
    """One body with one hinge about its own z."""

    position: Vec
    quaternion: Vec
    limits_rad: tuple[float, float]
    centre_of_mass: Vec
    mass_kg: float
    inertia: Vec
    shapes: tuple[Shape, ...]


_SHELL, _JOINT = "shell", "joint"
_X_MINUS, _X_PLUS = (1.0, -1.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0)  # quarter turns about x

LINKS: tuple[Link, ...] = (
    Link((0, 0, 0.333), (1, 0, 0, 0), (-2.9, 2.9), (0, 0, 0), 3.0, (0.03, 0.03, 0.01), (
        Shape("cylinder", (0, 0, -0.17), (0, 0, -0.06), 0.07, _SHELL),
        Shape("capsule", (0, 0, -0.06), (0, 0, 0), 0.066, _SHELL))),
    Link((0, 0, 0), _X_MINUS, (-1.76, 1.76), (0, -0.1, 0), 3.0, (0.03, 0.01, 0.03), (
        Shape("cylinder", (0, 0, -0.08), (0, 0, 0.08), 0.062, _JOINT),
        Shape("capsule", (0, 0, 0), (0, -0.18, 0), 0.058, _SHELL))),
    Link((0, -0.316, 0), _X_PLUS, (-2.9, 2.9), (0, 0, 0), 2.5, (0.02, 0.02, 0.01), (
        Shape("cylinder", (0, 0, -0.13), (0, 0, -0.10), 0.064, _JOINT),
        Shape("capsule", (0, 0, -0.10), (0, 0, -0.03), 0.055, _SHELL),
        Shape("capsule", (0, 0, -0.02), (0.0825, 0, 0), 0.052, _SHELL))),
    Link((0.0825, 0, 0), _X_PLUS, (-3.07, -0.07), (-0.04, 0.1, 0), 2.5, (0.02, 0.01, 0.02), (
        Shape("cylinder", (0, 0, -0.072), (0, 0, 0.072), 0.054, _JOINT),
        Shape("capsule", (0, 0, 0), (-0.0825, 0.09, 0), 0.05, _SHELL))),
    Link((-0.0825, 0.384, 0), _X_MINUS, (-2.9, 2.9), (0, 0, -0.1), 2.5, (0.02, 0.02, 0.005), (
        Shape("cylinder", (0, 0, -0.29), (0, 0, -0.26), 0.055, _JOINT),
        Shape("capsule", (0, 0, -0.26), (0, 0, -0.02), 0.046, _SHELL))),
    Link((0, 0, 0), _X_PLUS, (-0.02, 3.75), (0.04, 0, 0), 1.2, (0.005, 0.005, 0.005), (
        Shape("cylinder", (0, 0, -0.066), (0, 0, 0.066), 0.05, _JOINT),
        Shape("capsule", (0, 0, 0), (0.088, 0, 0), 0.046, _SHELL))),
    Link((0.088, 0, 0), _X_PLUS, (-2.9, 2.9), (0, 0, 0.06), 0.6, (0.002, 0.002, 0.002), (
        Shape("cylinder", (0, 0, -0.02), (0, 0, 0.075), 0.044, _SHELL),
        Shape("cylinder", (0, 0, 0.075), (0, 0, 0.107), 0.036, _JOINT))),
)  # fmt: skip


def text(values: object) -> str:
    """A vector as MJCF spells it."""
    return " ".join(f"{float(v):.6g}" for v in np.ravel(np.asarray(values)))


def add(parent: ET.Element, tag: str, **attributes: object) -> ET.Element:
    """A child element; numbers and vectors are spelled by `text`."""
    spelled = {k: v if isinstance(v, str) else text(v) for k, v in attributes.items()}
    return ET.SubElement(parent, tag, spelled)


def add_arm(world: ET.Element, height_m: float, skins: dict[str, Rgb], wrist: WristCamera) -> None:
    """The arm's kinematic chain on the table's edge; `skins` has `shell` and `joint`.

    Gravity is compensated in the MJCF: MuJoCo ignores it where it is written into a compiled model.
    """
    body = add(world, "body", name="base", pos=(BASE_X_M, 0, height_m), childclass="arm")
    _add_shape(body, Shape("cylinder", (0, 0, 0), (0, 0, 0.03), 0.11, _JOINT), skins)
    _add_shape(body, Shape("cylinder", (0, 0, 0.03), (0, 0, 0.16), 0.075, _SHELL), skins)
    for number, link in enumerate(LINKS, start=1):
        body = add(body, "body", pos=link.position, quat=link.quaternion, gravcomp=1)
        add(body, "joint", name=f"j{number}", range=link.limits_rad)
        _add_inertia(body, link.centre_of_mass, link.mass_kg, link.inertia)
        for shape in link.shapes:
            _add_shape(body, shape, skins)
    _add_hand(body, skins, wrist)


def add_actuators(root: ET.Element) -> None:
    """Position servos: seven joints, then the two fingers."""
    actuator = add(root, "actuator")
    for number in range(1, NUM_JOINTS + 1):
        gain = 900 if number < 5 else 400
        add(actuator, "position", joint=f"j{number}", kp=gain, dampratio=1)
    for finger in ("left_finger", "right_finger"):
        add(
            actuator, "position", joint=finger, kp=600,
            ctrlrange=(0, FINGER_OPEN_M), forcerange=(-25, 25),
        )  # fmt: skip
    contact = add(root, "contact")
    add(contact, "exclude", body1="hand", body2="left_finger")
    add(contact, "exclude", body1="hand", body2="right_finger")


def _add_hand(wrist_body: ET.Element, skins: dict[str, Rgb], wrist: WristCamera) -> None:
    eighth_turn = (np.cos(np.pi / 8), 0, 0, -np.sin(np.pi / 8))
    hand = add(wrist_body, "body", name="hand", pos=(0, 0, 0.107), quat=eighth_turn, gravcomp=1)
    _add_inertia(hand, (0, 0, 0.03), 0.6, (0.002, 0.002, 0.001))
    _add_box(hand, (0, 0, 0.028), (0.028, 0.095, 0.026), skins[_JOINT])
    _add_box(hand, (0, 0, 0.052), (0.022, 0.088, 0.010), skins[_SHELL])
    add(hand, "site", name=GRIP_SITE, pos=(0, 0, 0.1034), size=0.003, group="5")
    pitch = np.deg2rad(wrist.pitch_deg)
    axes = (0, 1, 0, np.cos(pitch), 0, np.sin(pitch))
    add(hand, "camera", name="wrist", pos=wrist.offset_m, xyaxes=axes, fovy=wrist.fovy_deg)
    for name, side in (("left_finger", 1), ("right_finger", -1)):
        finger = add(hand, "body", name=name, pos=(0, 0, 0.0584), gravcomp=1)
        add(
            finger, "joint", name=name, type="slide", axis=(0, side, 0),
            range=(0, FINGER_OPEN_M), **{"class": "finger"},
        )  # fmt: skip
        _add_inertia(finger, (0, 0, 0.02), 0.05, (2e-5, 2e-5, 1e-5))
        _add_box(finger, (0, side * 0.013, 0.018), (0.011, 0.011, 0.020), skins[_JOINT])
        pad = {"class": "pad"}
        add(finger, "geom", pos=(0, side * 0.0065, 0.040), size=(0.010, 0.0065, 0.014), **pad)


def _add_shape(body: ET.Element, shape: Shape, skins: dict[str, Rgb]) -> None:
    add(
        body, "geom", type=shape.kind, fromto=(*shape.start, *shape.end), size=shape.radius,
        rgba=(*skins[shape.skin], 1), **{"class": "visual"},
    )  # fmt: skip


def _add_box(body: ET.Element, position: Vec, half_size: Vec, rgb: Rgb) -> None:
    skin = {"class": "visual"}
    add(body, "geom", type="box", pos=position, size=half_size, rgba=(*rgb, 1), **skin)


def _add_inertia(body: ET.Element, centre: Vec, mass_kg: float, diagonal: Vec) -> None:
    add(body, "inertial", pos=centre, mass=mass_kg, diaginertia=diagonal)
