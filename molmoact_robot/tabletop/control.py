"""Delta end-effector control: an action becomes joint targets through damped least squares."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from molmoact_robot.tabletop.arm import FINGER_OPEN_M, GRIP_SITE, HOME_RAD, NUM_JOINTS
from molmoact_robot.tabletop.rotation import matrix_from_vector, vector_from_matrix

CONTROL_HZ = 10
PHYSICS_STEPS = 50  # of 2 ms
MAX_STEP_M = 0.05
MAX_TURN_RAD = 0.5
MIN_CLEARANCE_M = 0.008
ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
STATE_NAMES = ("x", "y", "z", "rx", "ry", "rz", "left_finger", "right_finger")

_DAMPING = 1e-4
_POSTURE_GAIN = 0.3


def solve_ik(
    model: Any,
    scratch: Any,
    start_7: NDArray[np.float64],
    position_3: NDArray[np.float64],
    rotation_33: NDArray[np.float64],
    *,
    iterations: int = 20,
) -> tuple[NDArray[np.float64], float]:
    """Joint angles [7] that bring the grip point there, and the residual (metres or radians, largest).

    `scratch` is an `MjData` of `model` whose state is overwritten. The null space drifts to `HOME_RAD`.
    """
    site = model.site(GRIP_SITE).id
    limits = model.jnt_range[:NUM_JOINTS]
    jacobian = np.zeros((6, model.nv))
    scratch.qpos[:NUM_JOINTS] = start_7
    for _ in range(iterations):
        error = _pose_error(model, scratch, site, position_3, rotation_33)
        if np.abs(error).max() < 1e-4:
            break
        mujoco.mj_jacSite(model, scratch, jacobian[:3], jacobian[3:], site)
        arm = jacobian[:, :NUM_JOINTS]
        inverse = arm.T @ np.linalg.inv(arm @ arm.T + _DAMPING * np.eye(6))
        posture = _POSTURE_GAIN * (HOME_RAD - scratch.qpos[:NUM_JOINTS])
        step = inverse @ error + posture - inverse @ (arm @ posture)
        scratch.qpos[:NUM_JOINTS] = np.clip(
            scratch.qpos[:NUM_JOINTS] + step, limits[:, 0], limits[:, 1]
        )
    error = _pose_error(model, scratch, site, position_3, rotation_33)
    return scratch.qpos[:NUM_JOINTS].copy(), float(np.abs(error).max())


def _pose_error(
    model: Any,
    data: Any,
    site: int,
    position_3: NDArray[np.float64],
    rotation_33: NDArray[np.float64],
) -> NDArray[np.float64]:
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    reached = data.site_xmat[site].reshape(3, 3)
    turn = vector_from_matrix(rotation_33 @ reached.T)
    return np.concatenate([position_3 - data.site_xpos[site], turn])


class ArmController:
    """Holds the commanded pose; one `step` is one action and 0.1 s of physics."""

    def __init__(self, model: Any, table_height_m: float, start_7: NDArray[np.float64]) -> None:
        self.model = model
        self.data = mujoco.MjData(model)
        self._scratch = mujoco.MjData(model)
        self._site = model.site(GRIP_SITE).id
        self._floor_m = table_height_m + MIN_CLEARANCE_M
        self.data.qpos[:NUM_JOINTS] = start_7
        self.data.qpos[NUM_JOINTS : NUM_JOINTS + 2] = FINGER_OPEN_M
        self.data.ctrl[:NUM_JOINTS] = start_7
        self.data.ctrl[NUM_JOINTS:] = FINGER_OPEN_M
        mujoco.mj_forward(model, self.data)
        self.target_position_3, self.target_rotation_33 = self.grip_pose()
        for _ in range(150):  # objects settle
            mujoco.mj_step(model, self.data)

    def grip_pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Reached position [3] in metres and rotation [3,3], world frame."""
        rotation = self.data.site_xmat[self._site].reshape(3, 3)
        return self.data.site_xpos[self._site].copy(), rotation.copy()

    def state(self) -> NDArray[np.float32]:
        """`STATE_NAMES`: metres, rotation vector in radians, finger openings in metres."""
        position, rotation = self.grip_pose()
        fingers = self.data.qpos[NUM_JOINTS : NUM_JOINTS + 2]
        parts = [position, vector_from_matrix(rotation), fingers]
        return np.concatenate(parts).astype(np.float32)

    def step(self, action_7: NDArray[np.float32]) -> None:
        """Six values in -1..1 (`MAX_STEP_M`, `MAX_TURN_RAD`, world axes) and the gripper, 1 = open, 0 = closed."""
        move = np.clip(np.asarray(action_7[:6], np.float64), -1, 1)
        self.target_position_3 = self.target_position_3 + move[:3] * MAX_STEP_M
        self.target_position_3[2] = max(self.target_position_3[2], self._floor_m)
        turn = matrix_from_vector(move[3:] * MAX_TURN_RAD)
        self.target_rotation_33 = turn @ self.target_rotation_33
        before = self.data.ctrl[:NUM_JOINTS].copy()
        self._scratch.qpos[:] = self.data.qpos
        after, _ = solve_ik(
            self.model, self._scratch, before, self.target_position_3, self.target_rotation_33
        )
        self.data.ctrl[NUM_JOINTS:] = FINGER_OPEN_M if action_7[6] > 0.5 else 0.0
        for i in range(PHYSICS_STEPS):
            self.data.ctrl[:NUM_JOINTS] = before + (after - before) * (i + 1) / PHYSICS_STEPS
            mujoco.mj_step(self.model, self.data)
