"""The arm, the object acted on and where it goes: what tasks and the scripted policy look at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_robot.tabletop.arm import NUM_JOINTS
from molmoact_robot.tabletop.control import ArmController

SUBJECT, TARGET = "object_0", "object_1"


def yaw_of(rotation_33: NDArray[np.float64]) -> float:
    """Heading of the body's x axis seen from above."""
    return float(np.arctan2(rotation_33[1, 0], rotation_33[0, 0]))


class World:
    """Read access to the physics state by role instead of by body number."""

    def __init__(self, arm: ArmController, table_height_m: float) -> None:
        self.arm = arm
        self.table_height_m = table_height_m
        self.subject_start_position = self.subject_position
        self.subject_start_rotation = self.subject_rotation

    @property
    def _data(self) -> Any:
        return self.arm.data

    def _body(self, name: str) -> int:
        return int(self.arm.model.body(name).id)

    @property
    def subject_position(self) -> NDArray[np.float64]:
        return self._data.xpos[self._body(SUBJECT)].copy()

    @property
    def subject_rotation(self) -> NDArray[np.float64]:
        return self._data.xmat[self._body(SUBJECT)].reshape(3, 3).copy()

    @property
    def target_position(self) -> NDArray[np.float64]:
        return self._data.xpos[self._body(TARGET)].copy()

    @property
    def fingers_open(self) -> bool:
        return bool(self._data.qpos[NUM_JOINTS] > 0.03)

    def subject_touches_target(self) -> bool:
        pair = {self._body(SUBJECT), self._body(TARGET)}
        bodies = self.arm.model.geom_bodyid
        contacts = self._data.contact[: self._data.ncon]
        return any({int(bodies[c.geom1]), int(bodies[c.geom2])} == pair for c in contacts)
