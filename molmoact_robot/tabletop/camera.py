"""Pinhole maths: world -> camera -> pixel, in one stated convention.

Camera axes are x right, y down, z forward. A *pixel index* is 0 at the centre of the first column
and W-1 at the centre of the last, so that the unit coordinate of `molmoact_data.labels.pointing` is
index / (W-1). The image plane's own continuous coordinate is index + 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# MuJoCo's cameras look along -z with y up.
_FLIP_YZ = np.diag([1.0, -1.0, -1.0])

# The gripper's own fingers and what they hold lie at most this far in front of the grip point.
GRIP_DEPTH_TOLERANCE_M = 0.06


@dataclass(frozen=True)
class PinholeCamera:
    """One calibrated view."""

    intrinsics_33: NDArray[np.float64]
    """Pixels, continuous coordinates (first pixel's centre at 0.5)."""
    world_to_camera_44: NDArray[np.float64]
    """Metres, rigid."""
    image_hw: tuple[int, int]

    def project(self, points_N3: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """World points in metres -> pixel index [N,2] (column, row) and depth along the axis [N] in metres."""
        camera_N3 = points_N3 @ self.world_to_camera_44[:3, :3].T + self.world_to_camera_44[:3, 3]
        homogeneous_N3 = camera_N3 @ self.intrinsics_33.T
        return homogeneous_N3[:, :2] / homogeneous_N3[:, 2:] - 0.5, camera_N3[:, 2]

    def to_json(self) -> dict[str, Any]:
        height, width = self.image_hw
        return {
            "width": width,
            "height": height,
            "intrinsics": self.intrinsics_33.tolist(),
            "world_to_camera": self.world_to_camera_44.tolist(),
        }


def intrinsics(fovy_deg: float, image_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Square pixels, principal point in the middle."""
    height, width = image_hw
    focal = 0.5 * height / np.tan(np.deg2rad(fovy_deg) / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])


def world_to_camera(
    position_3: NDArray[np.float64], mujoco_axes_33: NDArray[np.float64]
) -> NDArray[np.float64]:
    """From MuJoCo's `cam_xpos` and `cam_xmat` (columns are the camera's axes in the world)."""
    rotation = (mujoco_axes_33 @ _FLIP_YZ).T
    transform = np.eye(4)
    transform[:3, :3] = rotation
    transform[:3, 3] = -rotation @ position_3
    return transform


def look_at_axes(
    position_3: NDArray[np.float64], target_3: NDArray[np.float64], roll_rad: float
) -> NDArray[np.float64]:
    """MuJoCo camera axes [3,3] (columns x, y, z) that look at `target_3`; roll turns the image."""
    z = position_3 - target_3
    z = z / np.linalg.norm(z)
    x = np.cross([0.0, 0.0, 1.0], z)
    x = x / np.linalg.norm(x)
    y = np.cross(z, x)
    cos, sin = np.cos(roll_rad), np.sin(roll_rad)
    return np.stack([cos * x + sin * y, cos * y - sin * x, z], axis=1)


def is_visible(
    pixel_2: NDArray[np.float64], depth_m: float, rendered_depth_HW: NDArray[np.float32]
) -> bool:
    """In the frame, in front of the camera, and hidden by nothing but the gripper and its load.

    The grip point lies in the air between the fingers; whatever the depth image shows more than
    `GRIP_DEPTH_TOLERANCE_M` in front of it is something else.
    """
    height, width = rendered_depth_HW.shape
    column, row = np.rint(pixel_2).astype(int)
    if depth_m <= 0 or not (0 <= column < width and 0 <= row < height):
        return False
    return bool(rendered_depth_HW[row, column] >= depth_m - GRIP_DEPTH_TOLERANCE_M)
