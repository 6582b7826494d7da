"""Independent random frames with ground truth: no physics, many poses per compiled scene.

What the embedded teachers learn from. A frame is a pure function of (seed, split) on one machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from molmoact_robot.tabletop.arm import FINGER_OPEN_M, HOME_RAD, NUM_JOINTS
from molmoact_robot.tabletop.control import solve_ik
from molmoact_robot.tabletop.layout import sample_distractors, sample_layout
from molmoact_robot.tabletop.objects import GRASPABLE, KINDS, Placed
from molmoact_robot.tabletop.randomization import (
    ARM_SCHEMES,
    COLOURS,
    Look,
    Split,
    jitter,
    sample_front_camera,
    sample_lighting,
    sample_look,
    sample_wrist_camera,
)
from molmoact_robot.tabletop.rotation import gripper_rotation
from molmoact_robot.tabletop.scene import (
    FAST,
    FLAT,
    FULL,
    RenderQuality,
    build_model,
    front_camera_axes,
)
from molmoact_robot.tabletop.sensor import SensorModel, expose
from molmoact_robot.tabletop.view import SceneRenderer


@dataclass(frozen=True)
class FrameConfig:
    """How random frames are drawn."""

    split: Split = "train"
    image_hw: tuple[int, int] = (256, 256)
    frames_per_scene: int = 16
    """Poses, cameras, lights and colours drawn for one set of textures and objects."""
    wrist_share: float = 0.25
    """Share of frames seen by the wrist camera."""
    qualities: tuple[RenderQuality, ...] = (FAST, FLAT, FULL)
    quality_shares: tuple[float, ...] = (0.55, 0.4, 0.05)


@dataclass(frozen=True)
class Frame:
    """One view with ground truth."""

    rgb_HWC: NDArray[np.uint8]
    depth_HW: NDArray[np.float32]
    """Metres."""
    grip_pixel_2: NDArray[np.float64]
    """Pixel index (column, row), also outside the frame."""
    grip_visible: bool
    camera: str


def scene_frames(seed: int, config: FrameConfig) -> Iterator[Frame]:
    """The `frames_per_scene` frames of one random scene."""
    rng = np.random.default_rng([seed, config.split == "test"])
    look = sample_look(rng, config.split)
    objects = _sample_objects(rng, config.split)
    quality = config.qualities[rng.choice(len(config.qualities), p=config.quality_shares)]
    model = build_model(look, objects, quality)
    data = mujoco.MjData(model)
    with SceneRenderer(model, config.image_hw, shadows=quality.shadow_px > 0) as renderer:
        for _ in range(config.frames_per_scene):
            look = _vary_look(rng, model, look, objects, config.split)
            grip_3 = _pose_robot(rng, model, data, look.table_height_m)
            _pose_objects(rng, model, data, objects, grip_3, look.table_height_m)
            camera = "wrist" if rng.random() < config.wrist_share else "front"
            shot = renderer.shoot(data, camera, grip_3)
            rgb = expose(shot.rgb_HWC, SensorModel.sample(rng), rng)
            yield Frame(rgb, shot.depth_HW, shot.grip_pixel_2, shot.grip_visible, camera)


def random_frames(seed: int, count: int, config: FrameConfig) -> Iterator[Frame]:
    """`count` frames from as many scenes as it takes."""
    done = 0
    scene = 0
    while done < count:
        for frame in scene_frames(seed * 1_000_003 + scene, config):
            if done == count:
                return
            yield frame
            done += 1
        scene += 1


def frames_of_split(seed: int, count: int, split: Split) -> Iterator[Frame]:
    """`random_frames` of the whole variety of one split; what the registry's `simulator` names."""
    return random_frames(seed, count, FrameConfig(split=split))


def _sample_objects(rng: np.random.Generator, split: Split) -> list[Placed]:
    vessels = [k for k in ("plate", "bowl") if rng.random() < 0.4]
    kinds = [str(rng.choice(GRASPABLE)), *vessels[:1], *sample_distractors(rng)]
    return sample_layout(rng, split, kinds, clutter=int(rng.integers(0, 3)))


def _vary_look(
    rng: np.random.Generator, model: Any, look: Look, objects: Sequence[Placed], split: Split
) -> Look:
    """New cameras, light and colours written into the compiled model; textures stay."""
    shell, joint = ARM_SCHEMES[int(rng.integers(len(ARM_SCHEMES)))]
    new = dataclasses.replace(
        look,
        front=sample_front_camera(rng, split),
        wrist=sample_wrist_camera(rng),
        lighting=sample_lighting(rng),
        arm_shell=jitter(rng, shell, 0.05),
        arm_joint=jitter(rng, joint, 0.05),
    )
    _write_cameras(model, new)
    _write_light(model, new)
    _recolour_arm(model, look, new)
    palette = list(COLOURS[split].values())
    for placed in objects:
        rgb = jitter(rng, palette[int(rng.integers(len(palette)))], 0.05)
        _paint_body(model, placed.name, rgb)
    return new


def _write_cameras(model: Any, look: Look) -> None:
    position, axes = front_camera_axes(look.front, look.table_height_m)
    front, wrist = model.camera("front").id, model.camera("wrist").id
    model.cam_pos[front] = position
    mujoco.mju_mat2Quat(model.cam_quat[front], axes.ravel())
    model.cam_fovy[front] = look.front.fovy_deg
    pitch = np.deg2rad(look.wrist.pitch_deg)
    x, y = np.array([0.0, 1.0, 0.0]), np.array([np.cos(pitch), 0.0, np.sin(pitch)])
    model.cam_pos[wrist] = look.wrist.offset_m
    axes = np.stack([x, y, np.cross(x, y)], axis=1)
    mujoco.mju_mat2Quat(model.cam_quat[wrist], axes.ravel())
    model.cam_fovy[wrist] = look.wrist.fovy_deg


def _write_light(model: Any, look: Look) -> None:
    x, y, z = look.lighting.position_m
    key, fill = model.light("key").id, model.light("fill").id
    direction = np.array([-x, -y, look.table_height_m - z])
    model.light_pos[key] = (x, y, z)
    model.light_dir[key] = direction / np.linalg.norm(direction)
    model.light_diffuse[key] = look.lighting.diffuse
    model.light_diffuse[fill] = (look.lighting.fill,) * 3
    model.vis.headlight.ambient[:] = (look.lighting.ambient,) * 3


def _recolour_arm(model: Any, old: Look, new: Look) -> None:
    """Arm geoms are told apart by the colour that they have now."""
    geoms = np.flatnonzero(model.body_rootid[model.geom_bodyid] == model.body("base").id)
    changes = ((old.arm_shell, new.arm_shell), (old.arm_joint, new.arm_joint))
    masks = [
        np.abs(model.geom_rgba[geoms, :3] - before).max(axis=1) < 1e-4 for before, _ in changes
    ]
    for mask, (_, after) in zip(masks, changes, strict=True):
        model.geom_rgba[geoms[mask], :3] = after


def _paint_body(model: Any, name: str, rgb: tuple[float, float, float]) -> None:
    body = model.body(name)
    first, count = int(body.geomadr[0]), int(body.geomnum[0])
    lidded = count == 2 and model.geom_contype[first + 1] == 0  # a can's lid stays metal
    model.geom_rgba[first : first + (1 if lidded else count), :3] = rgb


def _pose_robot(
    rng: np.random.Generator, model: Any, data: Any, table_height_m: float
) -> NDArray[np.float64]:
    """A reachable random pose over the table; returns the grip point [3] in metres."""
    for _ in range(20):
        position = rng.uniform((-0.26, -0.32, 0.005), (0.22, 0.32, 0.36))
        position[2] = table_height_m + 0.005 + (position[2] - 0.005) * rng.uniform(0.05, 1)
        roll, pitch = rng.normal(0, 0.35, 2)
        rotation = gripper_rotation(rng.uniform(-2.0, 2.0), roll, pitch)
        start = HOME_RAD + rng.normal(0, 0.1, NUM_JOINTS)
        joints, error = solve_ik(model, data, start, position, rotation, iterations=40)
        if error < 2e-3:
            break
    data.qpos[:NUM_JOINTS] = joints
    opening = FINGER_OPEN_M * (rng.random() if rng.random() < 0.5 else 1.0)
    data.qpos[NUM_JOINTS : NUM_JOINTS + 2] = opening
    mujoco.mj_kinematics(model, data)
    return data.site("grip").xpos.copy()


def _pose_objects(
    rng: np.random.Generator,
    model: Any,
    data: Any,
    objects: Sequence[Placed],
    grip_3: NDArray[np.float64],
    table_height_m: float,
) -> None:
    """Objects somewhere on the table; in two frames of five the first one is held."""
    for number, placed in enumerate(objects):
        address = int(model.joint(int(model.body(placed.name).jntadr[0])).qposadr[0])
        xy = np.asarray(placed.xy_m) + rng.normal(0, 0.03, 2)
        data.qpos[address : address + 3] = *xy, table_height_m + KINDS[placed.kind].half_height_m
        yaw = rng.uniform(-np.pi, np.pi)
        data.qpos[address + 3 : address + 7] = np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)
        if number == 0 and rng.random() < 0.4:
            _hold(rng, data, address, grip_3)
    mujoco.mj_forward(model, data)


def _hold(rng: np.random.Generator, data: Any, address: int, grip_3: NDArray[np.float64]) -> None:
    data.qpos[address : address + 3] = grip_3 + rng.normal(0, 0.004, 3)
    mujoco.mju_mat2Quat(data.qpos[address + 3 : address + 7], data.site("grip").xmat)
    data.qpos[NUM_JOINTS : NUM_JOINTS + 2] = rng.uniform(0.017, 0.023)
