"""A scripted expert: a list of phases per task family, each a goal pose, a grip and a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from molmoact_robot.tabletop.control import MAX_STEP_M, MAX_TURN_RAD
from molmoact_robot.tabletop.objects import KINDS
from molmoact_robot.tabletop.rotation import POINTING_DOWN, matrix_from_vector, vector_from_matrix
from molmoact_robot.tabletop.tasks import Task
from molmoact_robot.tabletop.world import World, yaw_of

OPEN, CLOSED = 1.0, 0.0
APPROACH_M = 0.10
CARRY_M = 0.13
# The object's origin above the target's when released; a gripper that opens inside a bowl wedges it.
RELEASE_M = {"on": 0.016, "in": 0.05, "stack": 0.046}
POUR_HEIGHT_M = 0.16
POUR_TURN_RAD = np.deg2rad(65)
_GAIN = 0.6


@dataclass(frozen=True)
class Pose:
    """A goal of the grip point, world frame."""

    position_3: NDArray[np.float64]
    rotation_33: NDArray[np.float64]


@dataclass(frozen=True)
class Style:
    """How this demonstrator moves; drawn once per episode."""

    speed: float
    """Largest part of `MAX_STEP_M` used per step."""
    grasp_tilt_rad: float
    """About the axis along which the fingers open."""
    carry_tilt: tuple[float, float, float]
    """Extra turn of the hand on the way, rotation vector in radians."""
    noise: float
    """Standard deviation added to free motion, in action units."""
    push: float = 0.0
    """The same, of a push that the arm gets and the recorded action does not know: it shows how to come back."""
    disturbed: float = 0.0
    """How often, per step of free motion, the arm is pushed; half as often open fingers close by themselves."""
    grasp_steps: int = 5
    """Steps without motion while the fingers close."""

    @staticmethod
    def sample(rng: np.random.Generator) -> Style:
        roll, pitch, yaw = rng.uniform((-0.45, -0.45, -0.5), (0.45, 0.45, 0.5))
        return Style(
            speed=float(rng.uniform(0.45, 0.9)),
            grasp_tilt_rad=float(rng.choice((-1, 1)) * rng.uniform(0.12, 0.42)),
            carry_tilt=(float(roll), float(pitch), float(yaw)),
            noise=float(rng.uniform(0.01, 0.05)),
        )


STEADY = Style(
    speed=0.7,
    grasp_tilt_rad=0.0,
    carry_tilt=(0.0, 0.0, 0.0),
    noise=0.0,
    push=0.6,
    disturbed=0.2,
    grasp_steps=2,
)
"""Of the calm world: from the same state always the same motion, and many states, for the arm is pushed about."""


@dataclass(frozen=True)
class Phase:
    """Ends when the commanded pose is within the tolerances, or after `max_steps`."""

    name: str
    goal: Callable[[], Pose] | None
    """None = stay for `max_steps`."""
    grip: float
    tolerance_m: float = 0.01
    tolerance_rad: float = 0.08
    max_steps: int = 40
    noisy: bool = False


class Motion(NamedTuple):
    """One step of a demonstrator."""

    phase: str
    action_7: NDArray[np.float32]
    """What is recorded."""
    executed_7: NDArray[np.float32]
    """What the arm does; another one where it is pushed."""


def scripted_actions(
    task: Task, world: World, style: Style, rng: np.random.Generator
) -> Iterator[Motion]:
    """The motion for the state that `world` is in when the next one is asked for."""
    for phase in plan(task, world, style):
        for _ in range(phase.max_steps):
            action = np.zeros(7)
            action[6] = phase.grip
            if phase.goal is not None:
                goal = phase.goal()
                if _reached(world, goal, phase):
                    break
                action[:6] = _towards(world, goal, style.speed)
                if phase.noisy and style.noise:
                    action[:6] += rng.normal(0, style.noise, 6)
            pushed = _pushed(action, style, rng) if phase.noisy else action
            yield Motion(phase.name, _clipped(action), _clipped(pushed))


def _pushed(
    action_7: NDArray[np.float64], style: Style, rng: np.random.Generator
) -> NDArray[np.float64]:
    if style.disturbed == 0 or rng.random() >= style.disturbed:
        return action_7
    pushed = action_7 + np.append(rng.normal(0, style.push, 6), 0.0)
    if action_7[6] == OPEN and rng.random() < 0.5:
        pushed[6] = CLOSED
    return pushed


def _clipped(action_7: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.clip(action_7, -1, 1).astype(np.float32)


def plan(task: Task, world: World, style: Style) -> list[Phase]:
    grasp = _grasp_rotation(task, world, style)
    carry = matrix_from_vector(np.asarray(style.carry_tilt)) @ grasp
    phases = _pick_phases(task, world, grasp, carry, style.grasp_steps)
    match task.family:
        case "pick":
            return [*phases, Phase("hold", None, CLOSED, max_steps=3)]
        case "turn":
            return phases + _turn_phases(task, world, grasp)
        case "pour":
            return phases + _pour_phases(world, grasp)
    return phases + _place_phases(task, world, grasp, carry)


def _grasp_rotation(task: Task, world: World, style: Style) -> NDArray[np.float64]:
    """Fingers across the object's narrow side, tilted about the axis that they open along.

    Of the yaws that grasp alike the one closest to straight ahead is taken (against the coming turn for
    `turn`), so that the last joint stays within its limits.
    """
    period = KINDS[task.objects[0].kind].yaw_period_rad
    yaw = 0.0
    if period is not None:
        preferred = -task.turn_rad / 2
        yaw = yaw_of(world.subject_rotation)
        yaw = (yaw - preferred + period / 2) % period - period / 2 + preferred
    heading = matrix_from_vector(np.array([0.0, 0.0, yaw]))
    tilt = matrix_from_vector(np.array([0.0, style.grasp_tilt_rad, 0.0]))
    return heading @ tilt @ POINTING_DOWN


def _pick_phases(
    task: Task,
    world: World,
    grasp: NDArray[np.float64],
    carry: NDArray[np.float64],
    grasp_steps: int,
) -> list[Phase]:
    half_height = KINDS[task.objects[0].kind].half_height_m
    retreat_axis = -grasp[:, 2]  # back along the fingers
    rise = min(0.004, 0.2 * half_height) + (0.008 if task.family == "pour" else 0.0)

    def at_object(distance_m: float) -> Pose:
        centre = world.subject_position + np.array([0, 0, rise])
        return Pose(centre + distance_m * retreat_axis, grasp)

    lifted = world.subject_start_position + np.array([0, 0, CARRY_M])
    return [
        Phase("reach", lambda: at_object(APPROACH_M), OPEN, 0.012, noisy=True),
        Phase("descend", lambda: at_object(0.0), OPEN, 0.004, 0.04, max_steps=20),
        Phase("grasp", None, CLOSED, max_steps=grasp_steps),
        Phase("lift", lambda: Pose(lifted, carry), CLOSED, 0.015, max_steps=25, noisy=True),
    ]


def _place_phases(
    task: Task, world: World, grasp: NDArray[np.float64], carry: NDArray[np.float64]
) -> list[Phase]:
    release = np.array([0, 0, RELEASE_M[task.family] + KINDS[task.objects[0].kind].half_height_m])
    if task.family == "stack":
        release = np.array([0, 0, RELEASE_M["stack"]])

    def carried_to(height_m: float, rotation: NDArray[np.float64]) -> Pose:
        goal = world.target_position + release + np.array([0, 0, height_m])
        return _with_object_at(world, goal, rotation)

    return [
        Phase("move", lambda: carried_to(CARRY_M - 0.02, carry), CLOSED, 0.03, 0.2, noisy=True),
        Phase("level", lambda: carried_to(0.05, grasp), CLOSED, 0.01, max_steps=25),
        Phase("lower", lambda: carried_to(0.004, grasp), CLOSED, 0.005, max_steps=20),
        *_release_phases(world),
    ]


def _turn_phases(task: Task, world: World, grasp: NDArray[np.float64]) -> list[Phase]:
    turned = matrix_from_vector(np.array([0.0, 0.0, task.turn_rad])) @ grasp
    start = world.subject_start_position

    def at(height_m: float) -> Pose:
        return _with_object_at(world, start + np.array([0, 0, height_m]), turned)

    return [
        Phase("turn", lambda: at(0.06), CLOSED, 0.01, 0.04, noisy=True),
        Phase("lower", lambda: at(0.002), CLOSED, 0.005, 0.04, max_steps=20),
        *_release_phases(world),
    ]


def _pour_phases(world: World, grasp: NDArray[np.float64]) -> list[Phase]:
    tipped = matrix_from_vector(np.array([0.0, POUR_TURN_RAD, 0.0])) @ grasp

    def above(offset_x_m: float, rotation: NDArray[np.float64]) -> Pose:
        goal = world.target_position + np.array([offset_x_m, 0, POUR_HEIGHT_M])
        return _with_object_at(world, goal, rotation)

    return [
        Phase("move", lambda: above(0.04, grasp), CLOSED, 0.02, 0.15, noisy=True),
        Phase("tip", lambda: above(0.04, tipped), CLOSED, 0.02, 0.08),
        Phase("hold", None, CLOSED, max_steps=4),
    ]


def _release_phases(world: World) -> list[Phase]:
    away: list[Pose] = []

    def retreat() -> Pose:
        if not away:
            back = world.arm.target_position_3 - 0.12 * world.arm.target_rotation_33[:, 2]
            away.append(Pose(back, POINTING_DOWN))
        return away[0]

    return [
        Phase("open", None, OPEN, max_steps=4),
        Phase("retreat", retreat, OPEN, 0.02, 0.3, max_steps=14),
        Phase("hold", None, OPEN, max_steps=3),
    ]


def _with_object_at(
    world: World, position_3: NDArray[np.float64], rotation: NDArray[np.float64]
) -> Pose:
    """The grip pose that brings the held object's centre there; the hold is measured, not assumed."""
    grip_3, reached_33 = world.arm.grip_pose()
    in_hand = reached_33.T @ (world.subject_position - grip_3)
    return Pose(position_3 - rotation @ in_hand, rotation)


def _reached(world: World, goal: Pose, phase: Phase) -> bool:
    distance = np.linalg.norm(goal.position_3 - world.arm.target_position_3)
    turn = vector_from_matrix(goal.rotation_33 @ world.arm.target_rotation_33.T)
    return bool(distance < phase.tolerance_m and np.linalg.norm(turn) < phase.tolerance_rad)


def _towards(world: World, goal: Pose, speed: float) -> NDArray[np.float64]:
    """Six action values: proportional to what is left, limited in length."""
    move = _GAIN * (goal.position_3 - world.arm.target_position_3) / MAX_STEP_M
    left = vector_from_matrix(goal.rotation_33 @ world.arm.target_rotation_33.T)
    turn = _GAIN * left / MAX_TURN_RAD
    return np.concatenate([_limit(move, speed), _limit(turn, 0.8 * speed)])


def _limit(vector_3: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    norm = float(np.linalg.norm(vector_3))
    return vector_3 * min(1.0, length / max(norm, 1e-9))
