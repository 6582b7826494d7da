"""A look and a list of objects -> MJCF -> a compiled MuJoCo model."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from molmoact_robot.tabletop import textures
from molmoact_robot.tabletop.arm import BASE_X_M, add, add_actuators, add_arm
from molmoact_robot.tabletop.camera import look_at_axes
from molmoact_robot.tabletop.objects import Placed, add_object
from molmoact_robot.tabletop.randomization import FrontCamera, Lighting, Look

TABLE_HALF_M = (0.78, 0.62)


@dataclass(frozen=True)
class RenderQuality:
    """What a frame costs. Shadows and multi-sampling are three quarters of the time in software GL."""

    shadow_px: int
    """Size of the shadow map; 0 = no shadows and no reflections."""
    msaa: int


FULL = RenderQuality(shadow_px=2048, msaa=4)
FAST = RenderQuality(shadow_px=512, msaa=0)
FLAT = RenderQuality(shadow_px=0, msaa=0)


def build_model(look: Look, objects: Sequence[Placed], quality: RenderQuality) -> Any:
    """The compiled `mujoco.MjModel`."""
    xml = ET.tostring(scene_tree(look, objects, quality), encoding="unicode")
    surfaces = {"table": look.table, "floor": look.floor, "wall": look.wall}
    assets = {f"{name}.png": textures.png_bytes(spec) for name, spec in surfaces.items()}
    return mujoco.MjModel.from_xml_string(xml, assets)


def scene_tree(look: Look, objects: Sequence[Placed], quality: RenderQuality) -> ET.Element:
    root = ET.Element("mujoco")
    add(root, "compiler", angle="radian")
    add(root, "option", timestep=0.002, integrator="implicitfast", impratio=10, cone="elliptic")
    _add_visual(root, look, quality)
    _add_defaults(root)
    _add_assets(root)
    world = add(root, "worldbody")
    _add_lights(world, look.lighting, look.table_height_m)
    _add_front_camera(world, look.front, look.table_height_m)
    _add_room(world, look.table_height_m)
    skins = {"shell": look.arm_shell, "joint": look.arm_joint}
    add_arm(world, look.table_height_m, skins, look.wrist)
    for placed in objects:
        add_object(world, placed, look.table_height_m)
    add_actuators(root)
    return root


def front_camera_axes(front: FrontCamera, table_height_m: float) -> tuple[Any, Any]:
    """World position [3] and MuJoCo axes [3,3] of the front camera."""
    lift = np.array([0.0, 0.0, table_height_m])
    position, target = front.position() + lift, np.asarray(front.target_m) + lift
    return position, look_at_axes(position, target, np.deg2rad(front.roll_deg))


def _add_visual(root: ET.Element, look: Look, quality: RenderQuality) -> None:
    visual = add(root, "visual")
    ambient = (look.lighting.ambient,) * 3
    add(visual, "headlight", ambient=ambient, diffuse=(0.22,) * 3, specular=(0, 0, 0))
    # MuJoCo refuses a shadow map of size zero; the renderer's flag switches shadows off instead.
    size = max(quality.shadow_px, 64)
    add(visual, "quality", shadowsize=size, offsamples=quality.msaa)
    add(visual, "global", offwidth=640, offheight=640)
    add(visual, "map", znear=0.01, zfar=20, shadowclip=1.2)
    add(root, "statistic", extent=1, center=(0, 0, look.table_height_m))


def _add_defaults(root: ET.Element) -> None:
    top = add(root, "default")

    def named(name: str) -> ET.Element:
        return add(top, "default", **{"class": name})

    add(named("arm"), "joint", axis=(0, 0, 1), damping=12, armature=0.15)
    add(named("finger"), "joint", damping=20, armature=0.02)
    add(
        named("visual"), "geom",
        contype=0, conaffinity=0, group="1", material="arm", mass=0,
    )  # fmt: skip
    add(
        named("pad"), "geom", type="box", rgba=(0.25, 0.25, 0.26, 1), friction=(1.6, 0.05, 0.001),
        condim="4", solref=(0.01, 1), group="1", mass=0,
    )  # fmt: skip
    add(
        named("object"), "geom",
        friction=(1.2, 0.02, 0.001), condim="4", group="1", solref=(0.008, 1),
    )  # fmt: skip


def _add_assets(root: ET.Element) -> None:
    asset = add(root, "asset")
    repeats = {"table": (1, 1), "floor": (5, 5), "wall": (3, 2)}
    for name, repeat in repeats.items():
        add(asset, "texture", name=name, type="2d", file=f"{name}.png")
        shine = 0.15 if name == "table" else 0.0
        add(asset, "material", name=name, texture=name, texrepeat=repeat, specular=shine)
    add(asset, "material", name="arm", specular=0.5, shininess=0.6)
    add(asset, "material", name="object", specular=0.35, shininess=0.4)


def _add_lights(world: ET.Element, lighting: Lighting, table_height_m: float) -> None:
    x, y, z = lighting.position_m
    add(
        world, "light", name="key", pos=(x, y, z), dir=(-x, -y, table_height_m - z),
        directional="true", diffuse=lighting.diffuse, specular=(0.3,) * 3, castshadow="true",
    )  # fmt: skip
    add(
        world, "light", name="fill", pos=(1.2, -y, 1.6), dir=(-1, y, -1), directional="true",
        diffuse=(lighting.fill,) * 3, specular=(0, 0, 0), castshadow="false",
    )  # fmt: skip


def _add_front_camera(world: ET.Element, front: FrontCamera, table_height_m: float) -> None:
    position, axes = front_camera_axes(front, table_height_m)
    xyaxes = (*axes[:, 0], *axes[:, 1])
    add(world, "camera", name="front", pos=position, xyaxes=xyaxes, fovy=front.fovy_deg)


def _add_room(world: ET.Element, table_height_m: float) -> None:
    add(world, "geom", type="plane", size=(4, 4, 0.1), material="floor", group="1")
    add(
        world, "geom", type="box", pos=(BASE_X_M - 0.73, 0, 1.2), size=(0.02, 3, 1.6),
        material="wall", group="1", contype=0, conaffinity=0,
    )  # fmt: skip
    half_x, half_y = TABLE_HALF_M
    add(
        world, "geom", name="table", type="box", pos=(0, 0, table_height_m - 0.02),
        size=(half_x, half_y, 0.02), material="table", group="1", friction=(1, 0.01, 0.001),
    )  # fmt: skip
    leg = (table_height_m - 0.04) / 2
    for x in (-half_x + 0.06, half_x - 0.06):
        for y in (-half_y + 0.06, half_y - 0.06):
            add(
                world, "geom", type="cylinder", pos=(x, y, leg), size=(0.025, leg),
                rgba=(0.3, 0.3, 0.32, 1), group="1",
            )  # fmt: skip
