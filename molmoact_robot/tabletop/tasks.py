"""What the robot is asked to do, in words, and when it has been done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from molmoact_robot.tabletop.layout import sample_distractors, sample_layout
from molmoact_robot.tabletop.objects import GRASPABLE, KINDS, Placed
from molmoact_robot.tabletop.randomization import Split
from molmoact_robot.tabletop.world import World, yaw_of

Family = Literal["pick", "on", "in", "stack", "turn", "pour"]
FAMILIES: tuple[Family, ...] = ("pick", "on", "in", "stack", "turn", "pour")

LIFTED_M = 0.06
POUR_TILT_RAD = np.deg2rad(45)
# The hand tips towards the robot, which it can only do over the near half of the table.
POUR_MAX_X_M = -0.05
POUR_REACH_M = 0.10
TURN_TOLERANCE_RAD = np.deg2rad(20)
PLACE_RADIUS_M = {"on": 0.05, "in": 0.05, "stack": 0.02}


@dataclass(frozen=True)
class Task:
    """The first object is acted on; the second is where it goes, except for `pick` and `turn`."""

    family: Family
    instruction: str
    objects: tuple[Placed, ...]
    turn_rad: float = 0.0
    """`turn` only: seen from above, positive is to the left."""


def sample_task(
    rng: np.random.Generator, split: Split, family: Family | None = None, *, alone: bool = False
) -> Task:
    """`alone`: no distractors and no clutter."""
    family = family or FAMILIES[int(rng.integers(len(FAMILIES)))]
    subject = {"stack": "cube", "turn": "block", "pour": "can"}.get(family)
    kinds = [subject or str(rng.choice(GRASPABLE))]
    target = {"on": "plate", "in": "bowl", "stack": "cube", "pour": "bowl"}.get(family)
    if target:
        kinds.append(target)
    if not alone:
        kinds += sample_distractors(rng)
    objects = _sample_objects(rng, split, family, kinds, alone=alone)
    turn_rad = float(rng.choice((-1.0, 1.0))) * np.pi / 2 if family == "turn" else 0.0
    return Task(family, _instruction(family, objects, turn_rad), objects, turn_rad)


def _sample_objects(
    rng: np.random.Generator, split: Split, family: Family, kinds: list[str], *, alone: bool
) -> tuple[Placed, ...]:
    clutter = 0 if alone else int(rng.integers(0, 3))
    while True:
        objects = sample_layout(rng, split, kinds, clutter=clutter)
        if family != "pour" or objects[1].xy_m[0] < POUR_MAX_X_M:
            return tuple(objects)


def _instruction(family: Family, objects: tuple[Placed, ...], turn_rad: float) -> str:
    named = [f"the {o.colour} {o.kind}" for o in objects]
    match family:
        case "pick":
            return f"pick up {named[0]}"
        case "turn":
            side = "left" if turn_rad > 0 else "right"
            return f"turn {named[0]} a quarter turn to the {side}"
        case "on" | "in":
            return f"put {named[0]} {family} {named[1]}"
        case "stack":
            return f"stack {named[0]} on {named[1]}"
        case "pour":
            return f"pour from {named[0]} into {named[1]}"


def succeeded(task: Task, world: World) -> bool:
    """Decided from the physics state alone; `world` remembers where the object started."""
    match task.family:
        case "pick":
            return bool(world.subject_position[2] - world.subject_start_position[2] > LIFTED_M)
        case "turn":
            return _turned(task, world)
        case "pour":
            return _pouring(world)
    offset = world.subject_position - world.target_position
    near = np.hypot(*offset[:2]) < PLACE_RADIUS_M[task.family]
    return bool(near and offset[2] > 0 and world.fingers_open and world.subject_touches_target())


def _turned(task: Task, world: World) -> bool:
    turned = yaw_of(world.subject_rotation) - yaw_of(world.subject_start_rotation)
    error = (turned - task.turn_rad + np.pi) % (2 * np.pi) - np.pi
    half_height = KINDS[task.objects[0].kind].half_height_m
    rests = world.subject_position[2] < world.table_height_m + half_height + 0.01
    return bool(abs(error) < TURN_TOLERANCE_RAD and rests and world.fingers_open)


def _pouring(world: World) -> bool:
    tilt = np.arccos(np.clip(world.subject_rotation[2, 2], -1, 1))
    offset = world.subject_position - world.target_position
    return bool(tilt > POUR_TILT_RAD and np.hypot(*offset[:2]) < POUR_REACH_M and offset[2] > 0.03)
