"""Points without looking: recorded positions or joints, projected through a calibrated camera.

The calibration is a YAML file (strict keys; see docs/teachers.md):

    camera:
      width: 640
      height: 480
      intrinsics: [[600, 0, 319.5], [0, 600, 239.5], [0, 0, 1]]
      world_to_camera: [[0, -1, 0, 0], [0, 0, -1, 0.4], [1, 0, 0, 0.8], [0, 0, 0, 1]]
    arms:
      - column: observation.state
        position: [0, 1, 2]                # where x, y, z are in the column, metres
        rotation: [3, 4, 5]                # needed only for a tool offset
        rotation_format: rotation_vector
        tool_offset: [0, 0, 0.103]         # grip point in the recorded body's own frame

or, from joints: `joints: [0, 1, 2]`, `joint_unit: degree` and a `chain` of URDF-like joints.
The gripper is projected whether or not something hides it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from molmoact_data.config import build, load_yaml
from molmoact_data.errors import UserError
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.labels.projection import (
    ROTATION_SIZES,
    Camera,
    Joint,
    RotationFormat,
    forward_kinematics,
    poses,
    project,
    rotation_matrices,
)
from molmoact_data.teachers.column import points_from_unit


@dataclass(frozen=True)
class Arm:
    """Where the grip point of one arm comes from."""

    column: str
    """Numeric column [T, S] of the dataset."""
    position: tuple[int, ...] = ()
    """Indices of x, y, z in the column; empty = forward kinematics from `joints`."""
    rotation: tuple[int, ...] = ()
    """Indices of the body's rotation; empty = not recorded, and then no tool offset."""
    rotation_format: RotationFormat = "quaternion_wxyz"
    joints: tuple[int, ...] = ()
    """Indices of the joint values, in the order of the chain's moving joints."""
    joint_unit: Literal["radian", "degree"] = "radian"
    """Of revolute joints; prismatic ones are metres."""
    chain: tuple[Joint, ...] = ()
    """From the world to the body, as in a URDF."""
    tool_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Grip point in the body's own frame, metres."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    def __post_init__(self) -> None:
        if min((*self.position, *self.rotation, *self.joints), default=0) < 0:
            raise ValueError("indices count from 0; a negative one is no place in the column")
        if not all(map(math.isfinite, self.tool_offset)):
            raise ValueError("tool_offset must be finite metres")
        moving = sum(joint.kind != "fixed" for joint in self.chain)
        if bool(self.position) == bool(self.joints):
            raise ValueError("an arm has either `position` or `joints` (with a `chain`)")
        if self.position and len(self.position) != 3:
            raise ValueError("position needs three indices: x, y, z")
        if len(self.joints) != moving:
            raise ValueError(f"{len(self.joints)} joints for {moving} moving joints of the chain")
        if self.rotation and len(self.rotation) != ROTATION_SIZES[self.rotation_format]:
            raise ValueError(
                f"{self.rotation_format} needs {ROTATION_SIZES[self.rotation_format]} indices"
            )
        if self.position and any(self.tool_offset) and not self.rotation:
            raise ValueError("a tool_offset needs the body's rotation")


@dataclass(frozen=True)
class Calibration:
    """One camera and the arms that it sees, in the order of the record's arms."""

    camera: Camera
    arms: tuple[Arm, ...]

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError("a calibration needs at least one arm")


@dataclass(frozen=True)
class ProjectionSettings:
    """What a run says of this teacher; fields are `TeacherConfig`'s."""

    pointer_calibration: str | None = None

    def __post_init__(self) -> None:
        if self.pointer_calibration is None:
            raise ValueError("--pointer projection needs --pointer-calibration FILE.yaml")


class ProjectedPoints:
    """`ColumnPointer` from a calibration file."""

    Settings = ProjectionSettings

    @classmethod
    def load(cls, settings: ProjectionSettings, device: str) -> ProjectedPoints:
        """As a run asks for it."""
        assert settings.pointer_calibration is not None
        return cls(settings.pointer_calibration)

    def __init__(self, calibration: str) -> None:
        """`calibration`: path of the YAML file."""
        path = Path(calibration)
        self.calibration = build(Calibration, load_yaml(path))
        self.num_arms = len(self.calibration.arms)
        self.columns = tuple(dict.fromkeys(arm.column for arm in self.calibration.arms))
        self._revision = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"

    def describe(self) -> dict[str, str]:
        """The revision is that of the calibration file; the points are as licensed as the dataset."""
        return {
            "name": "projection",
            "revision": self._revision,
            "licence": "that of the dataset",
        }

    def point_columns(
        self, columns: Mapping[str, NDArray[np.generic]], image_hw: tuple[int, int]
    ) -> GripperPoints:
        """Columns of one episode -> points of its T frames; behind the camera or outside = not found."""
        camera = self.calibration.camera
        self._check_aspect(image_hw)
        pixel_TA2 = np.stack(
            [project(grip_points(columns, arm), camera) for arm in self.calibration.arms], axis=1
        )
        return points_from_unit(pixel_TA2 / np.array([camera.width - 1, camera.height - 1]))

    def _check_aspect(self, image_hw: tuple[int, int]) -> None:
        camera = self.calibration.camera
        height, width = image_hw
        if abs(camera.width / camera.height - width / height) > 0.01 * width / height:
            raise UserError(
                f"the camera is calibrated for {camera.width}x{camera.height}, the frames are "
                f"{width}x{height}: another aspect ratio, so they were cropped. Calibrate the cropped picture."
            )


def grip_points(columns: Mapping[str, NDArray[np.generic]], arm: Arm) -> NDArray[np.float64]:
    """The grip point of one arm in the world, metres [T,3]."""
    column_TS = columns[arm.column].astype(np.float64)
    indices = (*arm.position, *arm.rotation, *arm.joints)
    if column_TS.ndim != 2 or max(indices) >= column_TS.shape[1]:
        raise UserError(
            f"the calibration names index {max(indices)} of {arm.column!r}, "
            f"which has the shape {list(column_TS.shape)}."
        )
    pose_T44 = _body_poses(column_TS, arm)
    return pose_T44[:, :3, :3] @ np.array(arm.tool_offset) + pose_T44[:, :3, 3]


def _body_poses(column_TS: NDArray[np.float64], arm: Arm) -> NDArray[np.float64]:
    if arm.position:
        rotation_T33 = np.tile(np.eye(3), (len(column_TS), 1, 1))
        if arm.rotation:
            recorded = column_TS[:, list(arm.rotation)]
            rotation_T33 = rotation_matrices(recorded, arm.rotation_format)
        return poses(rotation_T33, column_TS[:, list(arm.position)])
    values_TJ = column_TS[:, list(arm.joints)]
    moving = [joint for joint in arm.chain if joint.kind != "fixed"]
    if arm.joint_unit == "degree":
        turning = np.array([joint.kind == "revolute" for joint in moving])
        values_TJ = np.where(turning, np.deg2rad(values_TJ), values_TJ)
    return forward_kinematics(arm.chain, values_TJ)
