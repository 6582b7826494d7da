"""Rotation vectors and matrices (world frame, right-handed, radians)."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

# Fingers straight down, opening along the robot's y.
POINTING_DOWN = np.diag([1.0, -1.0, -1.0])


def matrix_from_vector(rotation_3: NDArray[np.float64]) -> NDArray[np.float64]:
    """Axis times angle -> [3,3]."""
    angle = float(np.linalg.norm(rotation_3))
    if angle < 1e-12:
        return np.eye(3)
    quaternion, matrix = np.zeros(4), np.zeros(9)
    mujoco.mju_axisAngle2Quat(quaternion, np.asarray(rotation_3, float) / angle, angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)


def vector_from_matrix(matrix_33: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3,3] -> axis times angle, angle in 0..pi."""
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(matrix_33).ravel())
    if quaternion[0] < 0:
        quaternion = -quaternion
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def gripper_rotation(yaw_rad: float, roll_rad: float, pitch_rad: float) -> NDArray[np.float64]:
    """Straight down, turned by yaw about the vertical, then tilted about the world's x and y."""
    yaw = matrix_from_vector(np.array([0.0, 0.0, yaw_rad]))
    tilt = matrix_from_vector(np.array([roll_rad, pitch_rad, 0.0]))
    return tilt @ yaw @ POINTING_DOWN
