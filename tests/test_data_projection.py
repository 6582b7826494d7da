"""Projected points against OpenCV, a plain loop, and the simulator's own truth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from molmoact_data.errors import UserError
from molmoact_data.labels.pointing import ColumnPointer
from molmoact_data.labels.projection import (
    Camera,
    Joint,
    forward_kinematics,
    project,
    rotation_matrices,
)
from molmoact_data.teachers.projection import ProjectedPoints


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    return cv2.Rodrigues(rng.normal(size=3))[0]


def random_camera(rng: np.random.Generator, **options: Any) -> Camera:
    extrinsics = np.eye(4)
    extrinsics[:3, :3] = cv2.Rodrigues(0.2 * rng.normal(size=3))[0]
    extrinsics[:3, 3] = rng.normal(size=3) * 0.1 + [0, 0, 2]
    intrinsics = [[400.0, 0, 170], [0, 410.0, 115], [0, 0, 1]]
    return Camera(321, 241, totuple(intrinsics), totuple(extrinsics), **options)


def totuple(rows: Any) -> tuple:
    return tuple(tuple(float(x) for x in row) for row in rows)


@pytest.mark.parametrize(
    "distortion", [(), (0.1, -0.05, 0.01, -0.02), (0.1, -0.05, 0.01, -0.02, 0.03)]
)
def test_projection_equals_opencv(distortion: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    camera = random_camera(rng, distortion=distortion)
    points = rng.uniform(-0.5, 0.5, (50, 3))
    extrinsics = np.array(camera.world_to_camera)
    expected, _ = cv2.projectPoints(
        points, extrinsics[:3, :3], extrinsics[:3, 3], np.array(camera.intrinsics),
        np.array(distortion) if distortion else None,
    )  # fmt: skip
    np.testing.assert_allclose(project(points, camera), expected[:, 0], atol=1e-9)


def test_behind_the_camera_is_not_found() -> None:
    camera = random_camera(np.random.default_rng(0))
    assert np.isnan(project(np.array([[0.0, 0, -5]]), camera)).all()


def test_continuous_coordinates_are_half_a_pixel_off() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(-0.5, 0.5, (5, 3))
    at_zero = random_camera(np.random.default_rng(2))
    at_half = random_camera(np.random.default_rng(2), first_pixel_centre=0.5)
    np.testing.assert_allclose(project(points, at_zero) - project(points, at_half), 0.5)


def test_rotation_formats_agree_with_opencv() -> None:
    vector = np.random.default_rng(3).normal(size=(20, 3))
    vector[0] = 0
    expected = np.stack([cv2.Rodrigues(v)[0] for v in vector])
    half = np.linalg.norm(vector, axis=1, keepdims=True) / 2
    wxyz = np.concatenate([np.cos(half), vector / 2 * np.sinc(half / np.pi)], axis=1)
    for given, rotation_format in [
        (vector, "rotation_vector"), (-2 * wxyz, "quaternion_wxyz"),
        (wxyz[:, [1, 2, 3, 0]], "quaternion_xyzw"),
    ]:  # fmt: skip
        np.testing.assert_allclose(rotation_matrices(given, rotation_format), expected, atol=1e-12)
    yaw = rotation_matrices(np.array([[0.3, 0, 0.7]]), "euler_xyz")[0]
    roll = cv2.Rodrigues(np.array([0.3, 0, 0]))[0]
    np.testing.assert_allclose(yaw, cv2.Rodrigues(np.array([0, 0, 0.7]))[0] @ roll, atol=1e-12)


def test_planar_chain_has_its_textbook_position() -> None:
    """Two links of 0.3 m and 0.2 m: x = 0.3 cos a + 0.2 cos(a+b), y likewise; a slide lifts by c."""
    chain = [
        Joint((0, 0, 0.1)), Joint((0.3, 0, 0)), Joint((0.2, 0, 0), kind="prismatic"),
        Joint((0, 0, 0.05), kind="fixed"),
    ]  # fmt: skip
    a, b, c = values = np.random.default_rng(4).uniform(-1, 1, (3, 10))
    expected = np.stack(
        [0.3 * np.cos(a) + 0.2 * np.cos(a + b), 0.3 * np.sin(a) + 0.2 * np.sin(a + b), 0.15 + c],
        axis=1,
    )
    np.testing.assert_allclose(forward_kinematics(chain, values.T)[:, :3, 3], expected, atol=1e-12)


def calibration_file(folder: Path, arm: dict[str, Any], camera: Camera) -> str:
    told = {
        "width": camera.width,
        "height": camera.height,
        "intrinsics": [list(row) for row in camera.intrinsics],
        "world_to_camera": [list(row) for row in camera.world_to_camera],
    }
    path = folder / "calibration.yaml"
    path.write_text(yaml.safe_dump({"camera": told, "arms": [arm]}))
    return str(path)


def test_recorded_pose_and_tool_offset(tmp_path: Path) -> None:
    """Against a loop over the frames with OpenCV's Rodrigues."""
    rng = np.random.default_rng(5)
    camera = random_camera(rng)
    state = rng.uniform(-0.2, 0.2, (12, 8)).astype(np.float32)
    arm = {
        "column": "observation.state", "position": [1, 2, 3], "rotation": [4, 5, 6],
        "rotation_format": "rotation_vector", "tool_offset": [0, 0.01, 0.1],
    }  # fmt: skip
    pointer = ProjectedPoints(calibration_file(tmp_path, arm, camera))
    assert isinstance(pointer, ColumnPointer)
    assert pointer.columns == ("observation.state",)
    points = pointer.point_columns({"observation.state": state}, (241, 321))
    for row, xy in zip(state.astype(np.float64), points.xy_NA2[:, 0], strict=True):
        tip = cv2.Rodrigues(row[4:7])[0] @ [0, 0.01, 0.1] + row[1:4]
        u, v, w = np.array(camera.intrinsics) @ (np.array(camera.world_to_camera) @ [*tip, 1])[:3]
        np.testing.assert_allclose(xy, [u / w / 320, v / w / 240], rtol=1e-5)
    half = pointer.point_columns({"observation.state": state}, (120, 160))
    np.testing.assert_array_equal(half.xy_NA2, points.xy_NA2)


def test_degrees_and_radians(tmp_path: Path) -> None:
    camera = random_camera(np.random.default_rng(6))
    arm = {
        "column": "state", "joints": [0], "joint_unit": "degree",
        "chain": [{"xyz": [0, 0, 0]}, {"xyz": [0.1, 0, 0], "kind": "fixed"}],
    }  # fmt: skip
    in_degrees = ProjectedPoints(calibration_file(tmp_path, arm, camera))
    a = in_degrees.point_columns({"state": np.array([[30.0]])}, (241, 321))
    in_radians = ProjectedPoints(
        calibration_file(tmp_path, {**arm, "joint_unit": "radian"}, camera)
    )
    b = in_radians.point_columns({"state": np.array([[np.pi / 6]])}, (241, 321))
    np.testing.assert_allclose(a.xy_NA2, b.xy_NA2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positon": [0, 1, 2]}, "positon"),
        ({"position": [0, 1]}, "three indices"),
        ({"tool_offset": [0, 0, 1]}, "needs the body's rotation"),
        ({"joints": [1]}, "either `position` or `joints`"),
        ({"rotation": [3, 4, 5]}, "quaternion_wxyz needs 4"),
    ],
)
def test_wrong_calibrations_are_named(tmp_path: Path, change: dict, message: str) -> None:
    arm = {"column": "state", "position": [0, 1, 2], **change}
    with pytest.raises(UserError, match=message):
        ProjectedPoints(calibration_file(tmp_path, arm, random_camera(np.random.default_rng(7))))


def test_cropped_frames_and_short_columns_are_refused(tmp_path: Path) -> None:
    arm = {"column": "state", "position": [0, 1, 2]}
    pointer = ProjectedPoints(
        calibration_file(tmp_path, arm, random_camera(np.random.default_rng(8)))
    )
    with pytest.raises(UserError, match="another aspect ratio"):
        pointer.point_columns({"state": np.zeros((3, 3))}, (256, 256))
    with pytest.raises(UserError, match="names index 2"):
        pointer.point_columns({"state": np.zeros((3, 2))}, (241, 321))


def test_projection_is_exact_in_simulation(tmp_path: Path) -> None:
    """The recorded state, and the joints through the model's own chain, against MuJoCo's grip site and camera."""
    mujoco = pytest.importorskip("mujoco", reason="the simulator is not installed")
    from molmoact_robot.tabletop.camera import PinholeCamera, intrinsics, world_to_camera
    from molmoact_robot.tabletop.episodes import EpisodeConfig, start_rollout

    arm = start_rollout(3, EpisodeConfig(split="test", policy="random")).world.arm
    model, data = arm.model, arm.data
    view = model.camera("front").id
    rng = np.random.default_rng(0)
    states, joints, pixels = [], [], []
    for _ in range(8):
        arm.step(np.append(rng.uniform(-0.5, 0.5, 6), 1).astype(np.float32))
        mujoco.mj_forward(model, data)  # positions of bodies lag one step behind the joints
        camera = PinholeCamera(
            intrinsics(float(model.cam_fovy[view]), (256, 256)),
            world_to_camera(data.cam_xpos[view], data.cam_xmat[view].reshape(3, 3)),
            (256, 256),
        )
        states.append(arm.state())
        joints.append(np.rad2deg(data.qpos[:7]))
        pixels.append(camera.project(arm.grip_pose()[0][None])[0][0])

    told = {**camera.to_json(), "first_pixel_centre": 0.5}
    recorded = {"column": "state", "position": [0, 1, 2]}
    chain = [*model_chain(mujoco, model)]
    by_joints = {
        "column": "joints", "joints": list(range(7)), "joint_unit": "degree", "chain": chain,
        "tool_offset": model.site_pos[0].tolist(),
    }  # fmt: skip
    path = tmp_path / "calibration.yaml"
    path.write_text(yaml.safe_dump({"camera": told, "arms": [recorded, by_joints]}))
    pointer = ProjectedPoints(str(path))
    columns = {"state": np.stack(states), "joints": np.stack(joints)}
    points = pointer.point_columns(columns, (256, 256))
    pixel_TA2 = points.xy_NA2 * 255
    np.testing.assert_allclose(pixel_TA2[:, 1], np.stack(pixels), atol=1e-3)
    np.testing.assert_allclose(pixel_TA2[:, 0], np.stack(pixels), atol=1e-3)
    assert np.ptp(pixels, axis=0).max() > 5  # it moved


def model_chain(mujoco: Any, model: Any) -> Iterator[dict[str, Any]]:
    """The bodies from the world to the grip site, as URDF-like joints."""
    bodies = [int(model.site_bodyid[0])]
    while bodies[0]:
        bodies.insert(0, int(model.body_parentid[bodies[0]]))
    for body in bodies[1:]:
        matrix = np.zeros(9)
        mujoco.mju_quat2Mat(matrix, model.body_quat[body])
        r = matrix.reshape(3, 3)
        pitch = math.atan2(-r[2, 0], math.hypot(r[0, 0], r[1, 0]))
        rpy = [math.atan2(r[2, 1], r[2, 2]), pitch, math.atan2(r[1, 0], r[0, 0])]
        kind = "revolute" if model.body_jntnum[body] else "fixed"
        yield {"xyz": model.body_pos[body].tolist(), "rpy": rpy, "kind": kind}
