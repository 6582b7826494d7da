"""World points into pictures: rotations, kinematic chains and a calibrated camera. Pure numpy, float64.

Camera axes are x right, y down, z forward (OpenCV). Lengths are metres, angles radians.
Letters: T frames, J joints; `pose_T44` are rigid transforms from the body to the world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RotationFormat = Literal["quaternion_wxyz", "quaternion_xyzw", "rotation_vector", "euler_xyz"]
ROTATION_SIZES: dict[RotationFormat, int] = {
    "quaternion_wxyz": 4,
    "quaternion_xyzw": 4,
    "rotation_vector": 3,
    "euler_xyz": 3,
}


def rotation_matrices(values_TR: Array, rotation_format: RotationFormat) -> Array:
    """Recorded rotations [T, 3 or 4] -> matrices [T,3,3].

    `euler_xyz` = roll, pitch, yaw about fixed axes (URDF): Rz(yaw) Ry(pitch) Rx(roll).
    """
    match rotation_format:
        case "quaternion_wxyz":
            return _from_quaternion(values_TR)
        case "quaternion_xyzw":
            return _from_quaternion(values_TR[:, [3, 0, 1, 2]])
        case "rotation_vector":
            angle_T = np.linalg.norm(values_TR, axis=1)
            axis_T3 = values_TR / np.where(angle_T == 0, 1, angle_T)[:, None]
            return axis_rotation(axis_T3, angle_T)
        case "euler_xyz":
            x, y, z = (
                axis_rotation(np.broadcast_to(axis, (len(values_TR), 3)), values_TR[:, i])
                for i, axis in enumerate(np.eye(3))
            )
            return z @ y @ x


def _from_quaternion(wxyz_T4: Array) -> Array:
    wxyz_T4 = wxyz_T4 / np.linalg.norm(wxyz_T4, axis=1, keepdims=True)
    sine_T = np.linalg.norm(wxyz_T4[:, 1:], axis=1)
    axis_T3 = wxyz_T4[:, 1:] / np.where(sine_T == 0, 1, sine_T)[:, None]
    return axis_rotation(axis_T3, 2 * np.arctan2(sine_T, wxyz_T4[:, 0]))


def axis_rotation(axis_T3: Array, angle_T: Array) -> Array:
    """Rodrigues: unit axes [T,3] and angles [T] -> matrices [T,3,3]; a zero axis is no rotation."""
    x, y, z = np.moveaxis(axis_T3, 1, 0)
    zero = np.zeros_like(x)
    cross_T33 = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    sine, versine = np.sin(angle_T)[:, None, None], 1 - np.cos(angle_T)[:, None, None]
    return np.eye(3) + sine * cross_T33 + versine * cross_T33 @ cross_T33


def poses(rotation_T33: Array, translation_T3: Array) -> Array:
    """Rotations and translations -> [T,4,4]."""
    pose_T44 = np.tile(np.eye(4), (len(translation_T3), 1, 1))
    pose_T44[:, :3, :3] = rotation_T33
    pose_T44[:, :3, 3] = translation_T3
    return pose_T44


@dataclass(frozen=True)
class Joint:
    """One joint as a URDF tells it: a fixed origin in the parent link, then motion about or along an axis."""

    xyz: tuple[float, float, float]
    """Origin in the parent link, metres."""
    rpy: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Orientation of the origin, radians."""
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """In the joint's own frame."""
    kind: Literal["revolute", "prismatic", "fixed"] = "revolute"
    """`fixed` takes no value from the joints' column."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012


def forward_kinematics(chain: Sequence[Joint], values_TJ: Array) -> Array:
    """Joint values [T,J] (radians or metres, one per moving joint) -> pose [T,4,4] of the last link."""
    frames = len(values_TJ)
    pose_T44 = np.tile(np.eye(4), (frames, 1, 1))
    moving = iter(values_TJ.T)
    for joint in chain:
        origin = poses(rotation_matrices(np.array([joint.rpy]), "euler_xyz"), np.array([joint.xyz]))
        pose_T44 = pose_T44 @ origin
        if joint.kind == "fixed":
            continue
        value_T = next(moving)
        axis_T3 = np.broadcast_to(np.array(joint.axis) / np.linalg.norm(joint.axis), (frames, 3))
        if joint.kind == "revolute":
            motion = poses(axis_rotation(axis_T3, value_T), np.zeros((frames, 3)))
        else:
            motion = poses(np.eye(3), axis_T3 * value_T[:, None])
        pose_T44 = pose_T44 @ motion
    return pose_T44


@dataclass(frozen=True)
class Camera:
    """A calibrated pinhole camera."""

    width: int
    """Of the calibrated picture, pixels."""
    height: int
    intrinsics: tuple[tuple[float, float, float], ...]
    """3x3, pixels."""
    world_to_camera: tuple[tuple[float, float, float, float], ...]
    """4x4, metres; the world is the frame in which the positions are recorded (often the robot's base)."""
    first_pixel_centre: float = 0.0
    """Coordinate of the centre of the first pixel in the intrinsics: 0 for OpenCV's calibration, 0.5 where the
    principal point of a perfect camera is (width/2, height/2), as in simulators."""
    distortion: tuple[float, ...] = ()
    """OpenCV's k1, k2, p1, p2[, k3]; empty = none."""

    # A misspelt key inside the file is an error, not a default.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        if self.first_pixel_centre not in (0, 0.5):
            raise ValueError("first_pixel_centre is 0 or 0.5")
        for name, rows, columns in (("intrinsics", 3, 3), ("world_to_camera", 4, 4)):
            if np.shape(getattr(self, name)) != (rows, columns):
                raise ValueError(f"{name} must be {rows}x{columns} numbers")
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name} must be finite numbers")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a picture of {self.width}x{self.height} pixels is none")
        _refuse_impossible(np.asarray(self.intrinsics), np.asarray(self.world_to_camera))
        if not np.isfinite(self.distortion).all():
            raise ValueError("distortion must be finite numbers")
        if len(self.distortion) not in (0, 4, 5):
            raise ValueError("distortion is k1, k2, p1, p2 and perhaps k3: 0, 4 or 5 numbers")


def _refuse_impossible(intrinsics_33: Array, world_to_camera_44: Array) -> None:
    """A transposed or mixed-up matrix projects somewhere else without a word."""
    if not np.array_equal(intrinsics_33[2], [0, 0, 1]) or min(np.diag(intrinsics_33)) <= 0:
        raise ValueError("intrinsics are [[fx, skew, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0")
    rotation = world_to_camera_44[:3, :3]
    is_rotation = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) and (
        np.linalg.det(rotation) > 0
    )
    if not np.array_equal(world_to_camera_44[3], [0, 0, 0, 1]) or not is_rotation:
        raise ValueError(
            "world_to_camera is a rotation and a shift in metres, [[R, t], [0, 0, 0, 1]]; is it transposed?"
        )


def project(points_T3: Array, camera: Camera) -> Array:
    """World points in metres -> pixel index [T,2], 0 at the centre of the first pixel; NaN behind the camera."""
    world_to_camera = np.array(camera.world_to_camera)
    x, y, z = (points_T3 @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]).T
    in_front = z > 0
    depth = np.where(in_front, z, 1)
    distorted_T2 = _distort(np.stack([x / depth, y / depth], axis=1), camera.distortion)
    homogeneous_T3 = np.concatenate([distorted_T2, np.ones((len(z), 1))], axis=1)
    pixel_T2 = (homogeneous_T3 @ np.array(camera.intrinsics).T)[:, :2]
    pixel_T2 -= camera.first_pixel_centre
    return np.where(in_front[:, None], pixel_T2, np.nan)


def _distort(xy_T2: Array, coefficients: Sequence[float]) -> Array:
    """OpenCV's radial and tangential distortion of normalised image coordinates."""
    if not coefficients:
        return xy_T2
    k1, k2, p1, p2, k3 = (*coefficients, 0.0)[:5]
    x, y = xy_T2.T
    r2 = x**2 + y**2
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
            y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
        ],
        axis=1,
    )
