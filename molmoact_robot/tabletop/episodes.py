"""One demonstration from start to end: scene, task, scripted policy, what the cameras saw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import mujoco
import numpy as np
from numpy.typing import NDArray

from molmoact_robot.tabletop.arm import HOME_RAD
from molmoact_robot.tabletop.camera import PinholeCamera
from molmoact_robot.tabletop.control import ArmController, solve_ik
from molmoact_robot.tabletop.expert import STEADY, Motion, Style, scripted_actions
from molmoact_robot.tabletop.randomization import Look, Split, Variety, calm_look, sample_look
from molmoact_robot.tabletop.rotation import gripper_rotation
from molmoact_robot.tabletop.scene import FULL, RenderQuality, build_model
from molmoact_robot.tabletop.sensor import expose
from molmoact_robot.tabletop.tasks import Family, Task, sample_task, succeeded
from molmoact_robot.tabletop.view import SceneRenderer
from molmoact_robot.tabletop.world import World

PolicyName = Literal["scripted", "random", "idle"]
_PASSIVE_STEPS = 45
CALM_START_M = (-0.09, 0.0, 0.29)
"""Of the grip point above the table, in the calm world: the middle of the random starts."""


@dataclass(frozen=True)
class EpisodeConfig:
    """How demonstrations are made."""

    split: Split = "train"
    image_hw: tuple[int, int] = (256, 256)
    quality: RenderQuality = FULL
    policy: PolicyName = "scripted"
    family: Family | None = None
    """None = any."""
    variety: Variety = "full"
    """`calm`: one look and steady demonstrators in every episode, nothing on the table that the task does not need."""


@dataclass(frozen=True)
class Observation:
    """What is known before an action."""

    front_rgb_HWC: NDArray[np.uint8]
    wrist_rgb_HWC: NDArray[np.uint8]
    front_depth_HW: NDArray[np.float32]
    """Metres along the optical axis."""
    grip_pixel_2: NDArray[np.float32]
    """In the front view; pixel index (column, row)."""
    grip_visible: bool
    state: NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """One row: what was seen, what was done, and whether the task is fulfilled afterwards."""

    observation: Observation
    action: NDArray[np.float32]
    success: bool
    phase: str


@dataclass(frozen=True)
class Episode:
    task: Task
    look: Look
    front_camera: PinholeCamera
    steps: tuple[Step, ...]

    @property
    def success(self) -> bool:
        return self.steps[-1].success


@dataclass(frozen=True)
class Rollout:
    """A scene, ready to act in."""

    task: Task
    look: Look
    world: World
    motions: Iterator[Motion]


def run_episode(seed: int, config: EpisodeConfig) -> Episode:
    """A pure function of (seed, config) on one machine."""
    rollout = start_rollout(seed, config)
    world, steps = rollout.world, []
    noise = np.random.default_rng([seed, config.split == "test", 2])
    shadows = config.quality.shadow_px > 0
    with SceneRenderer(world.arm.model, config.image_hw, shadows=shadows) as renderer:
        camera = renderer.calibration(world.arm.data, "front")
        for phase, action, executed in rollout.motions:
            seen = observe(rollout, renderer, noise)
            world.arm.step(executed)
            steps.append(Step(seen, action, succeeded(rollout.task, world), phase))
    return Episode(rollout.task, rollout.look, camera, tuple(steps))


def act_only(seed: int, config: EpisodeConfig) -> tuple[NDArray[np.float32], bool]:
    """The same episode without images (no OpenGL): actions [T,7] and the final success."""
    rollout = start_rollout(seed, config)
    actions = []
    for motion in rollout.motions:
        rollout.world.arm.step(motion.executed_7)
        actions.append(motion.action_7)
    return np.stack(actions), succeeded(rollout.task, rollout.world)


def start_rollout(seed: int, config: EpisodeConfig) -> Rollout:
    rng = np.random.default_rng([seed, config.split == "test", 1])
    calm = config.variety == "calm"
    look = calm_look() if calm else sample_look(rng, config.split)
    task = sample_task(rng, config.split, config.family, alone=calm)
    model = build_model(look, task.objects, config.quality)
    arm = ArmController(
        model, look.table_height_m, _start_joints(rng, model, look.table_height_m, calm=calm)
    )
    world = World(arm, look.table_height_m)
    match config.policy:
        case "scripted":
            style = STEADY if calm else Style.sample(rng)
            motions = scripted_actions(task, world, style, rng)
        case "random":
            motions = _passive("random", _random_actions(rng))
        case "idle":
            motions = _passive("idle", _idle_actions())
    return Rollout(task, look, world, motions)


def observe(rollout: Rollout, renderer: SceneRenderer, noise: np.random.Generator) -> Observation:
    """Both cameras, through their sensors, and the ground truth of the front one."""
    arm, look = rollout.world.arm, rollout.look
    front = renderer.shoot(arm.data, "front", arm.grip_pose()[0])
    wrist = renderer.colour(arm.data, "wrist")
    return Observation(
        front_rgb_HWC=expose(front.rgb_HWC, look.front_sensor, noise),
        wrist_rgb_HWC=expose(wrist, look.wrist_sensor, noise),
        front_depth_HW=front.depth_HW,
        grip_pixel_2=front.grip_pixel_2.astype(np.float32),
        grip_visible=front.grip_visible,
        state=arm.state(),
    )


def _start_joints(
    rng: np.random.Generator, model: Any, table_height_m: float, *, calm: bool
) -> NDArray[np.float64]:
    """Above the table at random, turned and tilted at random; calm: always at one place, upright.

    From one start, nothing but the picture of the object tells where to go.
    """
    scratch = mujoco.MjData(model)
    for _ in range(50):
        position, rotation = (
            (np.array(CALM_START_M), gripper_rotation(0.0, 0.0, 0.0)) if calm else _random_pose(rng)
        )
        position[2] += table_height_m
        joints, error = solve_ik(model, scratch, HOME_RAD, position, rotation, iterations=60)
        if error < 1e-3:
            return joints
    raise RuntimeError("no reachable start pose in 50 draws")


def _random_pose(
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of a start: position above the table in metres, and rotation."""
    position = rng.uniform((-0.20, -0.15, 0.22), (0.02, 0.15, 0.36))
    roll, pitch = rng.normal(0, 0.25, 2)
    return position, gripper_rotation(float(rng.uniform(-0.8, 0.8)), roll, pitch)


def _passive(name: str, actions: Iterator[NDArray[np.float32]]) -> Iterator[Motion]:
    return (Motion(name, action, action) for action in actions)


def _random_actions(rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    for _ in range(_PASSIVE_STEPS):
        move = rng.uniform(-0.5, 0.5, 6)
        yield np.append(move, rng.integers(0, 2)).astype(np.float32)


def _idle_actions() -> Iterator[NDArray[np.float32]]:
    for _ in range(_PASSIVE_STEPS):
        yield np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
