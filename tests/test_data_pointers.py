"""Pointers that are no network on this machine, and the cache.

Recorded columns: hand-computed. Projection: against OpenCV and a plain loop. Server: a real HTTP server on
the loopback interface. Cache: what reaches the pointer behind it, after a clean end and after a torn write.
"""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from molmoact_data.adapters.cached_pointer import CachedPointer, EpisodeKey
from molmoact_data.adapters.column_pointer import RecordedPoints, Units
from molmoact_data.adapters.projection_pointer import ProjectedPoints
from molmoact_data.adapters.server_pointer import ServerConfig, ServerPointer
from molmoact_data.errors import UserError
from molmoact_data.pointing import ColumnPointer, GripperPointer, GripperPoints
from molmoact_data.projection import Camera, Joint, forward_kinematics, project, rotation_matrices
from molmoact_data.tracking import PointTracker

IMAGE_HW = (241, 321)


@pytest.mark.parametrize(
    ("units", "recorded"),
    [
        ("pixels", [80, 180]),
        ("unit", [0.25, 0.75]),
        ("percent", [100 * 80 / 321, 100 * 180 / 241]),
        ("grid", [63.75, 191.25]),
    ],
)
def test_every_unit_gives_the_same_point(units: Units, recorded: list[float]) -> None:
    """Pixel (80, 180) of 321 x 241 is a quarter of 320 to the right and three quarters of 240 down."""
    pointer = RecordedPoints("observation.gripper", units)
    assert isinstance(pointer, ColumnPointer)
    points = pointer.point_columns(
        {"observation.gripper": np.array([recorded], np.float32)}, IMAGE_HW
    )
    np.testing.assert_allclose(points.xy_NA2, [[[0.25, 0.75]]], rtol=1e-6)
    assert points.confidence_NA.tolist() == [[1.0]]


def test_missing_and_outside_are_not_found() -> None:
    recorded = np.array(
        [[0, 0], [320, 240], [np.nan, 3], [321, 5], [5, -1], [np.inf, 5]], np.float64
    )
    points = RecordedPoints("p", "pixels").point_columns({"p": recorded}, IMAGE_HW)
    np.testing.assert_array_equal(points.confidence_NA[:, 0], [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(points.xy_NA2[:2, 0], [[0, 0], [1, 1]])
    assert np.isnan(points.xy_NA2[2:]).all()


def test_two_arms() -> None:
    recorded = np.array([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [np.nan, np.nan]]])
    points = RecordedPoints("p", "unit", num_arms=2).point_columns({"p": recorded}, IMAGE_HW)
    np.testing.assert_allclose(points.xy_NA2, recorded.astype(np.float32))
    np.testing.assert_array_equal(points.confidence_NA, [[1, 1], [1, 0]])


def test_column_errors_name_what_to_change() -> None:
    with pytest.raises(UserError, match="Did you mean 'pixels'"):
        RecordedPoints("p", "pixel")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="needs the name of the column"):
        RecordedPoints("", "unit")
    with pytest.raises(UserError, match=r"shape \[T, 3\]; points of 1 arm"):
        RecordedPoints("p", "unit").point_columns({"p": np.zeros((4, 3))}, IMAGE_HW)


# --- projection -------------------------------------------------------------------------------------


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
    from molmoact_data.simulation.camera import PinholeCamera, intrinsics, world_to_camera
    from molmoact_data.simulation.episodes import EpisodeConfig, start_rollout

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


# --- server -----------------------------------------------------------------------------------------


@dataclass
class FakeVLLM:
    """Says where the brightest pixel is; fails as told first."""

    failures: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    logprobs: bool = True
    models: tuple[str, ...] = ("molmo",)
    answer: str | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        image, text = body["messages"][0]["content"]
        png = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
        red = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., 2]
        y, x = np.unravel_index(red.argmax(), red.shape)
        said = f'<point x="{100 * x / red.shape[1]:.1f}" y="{100 * y / red.shape[0]:.1f}" alt="g">'
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": self.answer or said}}
        if self.logprobs:
            content = [
                {"token": "<point", "logprob": -3.0}, {"token": "12.5", "logprob": math.log(0.81)},
                {"token": "25", "logprob": math.log(0.25)},
            ]  # fmt: skip
            choice["logprobs"] = {"content": content}
        assert text == {"type": "text", "text": "point to the robot gripper"}
        return {"choices": [choice]}


@pytest.fixture
def server() -> Iterator[FakeVLLM]:
    state = FakeVLLM()
    lock = threading.Lock()
    running = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self.reply(200, {"data": [{"id": name} for name in state.models]})

        def do_POST(self) -> None:
            nonlocal running
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                running += 1
                state.most_at_once = max(state.most_at_once, running)
                state.requests.append(
                    {"path": self.path, "key": self.headers["Authorization"], **body}
                )
                failure = state.failures.pop(0) if state.failures else None
            if failure:
                self.reply(failure[0], {"error": "told to fail"}, failure[1])
            else:
                self.reply(200, state.complete(body))
            with lock:
                running -= 1

        def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    yield state
    httpd.shutdown()
    httpd.server_close()


QUICK = ServerConfig(first_pause_s=0.001, longest_pause_s=0.01, attempts=3, concurrency=4)
PROMPT = "point to the robot gripper"


def spots(*xy: tuple[int, int]) -> np.ndarray:
    """80 x 100 frames whose reddest pixel is the point."""
    frames = np.zeros((len(xy), 80, 100, 3), np.uint8)
    for frame, (x, y) in zip(frames, xy, strict=True):
        frame[y, x, 0] = 255
    return frames


def test_every_frame_gets_its_own_answer(server: FakeVLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    pointer = ServerPointer(server.url, config=QUICK)
    assert isinstance(pointer, GripperPointer)
    assert pointer.describe()["name"] == "server/molmo"
    where = [(10 * i, 4 * i) for i in range(10)]
    points = pointer.point(spots(*where), PROMPT)
    expected = np.array(where) / [99, 79]
    np.testing.assert_allclose(points.xy_NA2[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(points.confidence_NA, np.sqrt(0.81 * 0.25), rtol=1e-6)
    assert {r["path"] for r in server.requests} == {"/v1/chat/completions"}
    assert {(r["temperature"], r["model"], r["key"]) for r in server.requests} == {
        (0, "molmo", "Bearer secret")
    }
    assert server.most_at_once <= QUICK.concurrency


def test_server_without_logprobs_is_certain(server: FakeVLLM) -> None:
    server.logprobs = False
    points = ServerPointer(server.url, "molmo", config=QUICK).point(spots((1, 1)), PROMPT)
    assert points.confidence_NA.tolist() == [[1.0]]


def test_malformed_answers_of_the_server_are_not_found(server: FakeVLLM) -> None:
    server.answer = "There is no gripper."
    points = ServerPointer(server.url, "molmo", config=QUICK).point(spots((1, 1)), PROMPT)
    assert np.isnan(points.xy_NA2).all()
    assert points.confidence_NA.tolist() == [[0.0]]


def test_transient_failures_are_retried(server: FakeVLLM) -> None:
    server.failures = [(503, {}), (429, {"Retry-After": "0"})]
    points = ServerPointer(server.url, "molmo", config=QUICK).point(spots((50, 40)), PROMPT)
    assert points.xy_NA2[0, 0, 0] == pytest.approx(50 / 99)
    assert len(server.requests) == 3


def test_lasting_failures_stop_with_a_clear_line(server: FakeVLLM) -> None:
    pointer = ServerPointer(server.url, "molmo", config=QUICK)
    server.failures = [(503, {})] * 3
    with pytest.raises(UserError, match=r"after 3 tries \(HTTP 503.*--resume"):
        pointer.point(spots((1, 1)), PROMPT)
    server.failures = [(404, {})]
    with pytest.raises(UserError, match="refuses: HTTP 404"):
        pointer.point(spots((1, 1)), PROMPT)
    assert len(server.requests) == 4  # a 404 is not tried again


def test_wrong_servers_are_named(server: FakeVLLM) -> None:
    server.models = ("a", "b")
    with pytest.raises(UserError, match="the models a, b: say which"):
        ServerPointer(server.url, config=QUICK)
    for model in (None, "molmo"):
        with pytest.raises(UserError, match=r"nothing answers at .*Is the server running"):
            ServerPointer("http://127.0.0.1:9/v1", model, config=QUICK)


# --- cache ------------------------------------------------------------------------------------------


@dataclass
class CountingPointer:
    """Points at x = red/255 of the first pixel; black = not found. Remembers what it was asked."""

    asked: list[int] = field(default_factory=list)
    name: str = "counting"
    num_arms: int = 1

    def describe(self) -> dict[str, str]:
        return {"name": self.name, "revision": "1", "licence": "none"}

    def point(self, rgb_NHWC: np.ndarray, prompt: str) -> GripperPoints:
        red = rgb_NHWC[:, 0, 0, 0]
        self.asked += red.tolist()
        x = np.where(red == 0, np.nan, red / 255).astype(np.float32)
        return GripperPoints(
            np.stack([x, x], axis=1)[:, None], (red / 300).astype(np.float32)[:, None]
        )


EPISODE = EpisodeKey("ds", "rev1", "observation.images.front", 3)


def reds(*values: int) -> np.ndarray:
    return np.stack([np.full((4, 4, 3), v, np.uint8) for v in values])


def test_cached_frames_are_not_asked_again(tmp_path: Path) -> None:
    first, second = CountingPointer(), CountingPointer()
    a = CachedPointer(first, tmp_path, EPISODE).point_frames(reds(7, 0, 9), "p", [0, 1, 2])
    b = CachedPointer(second, tmp_path, EPISODE).point_frames(reds(9, 11, 0), "p", [2, 3, 1])
    assert (first.asked, second.asked) == ([7, 0, 9], [11])
    np.testing.assert_array_equal(b.xy_NA2[[0, 2]], a.xy_NA2[[2, 1]])
    np.testing.assert_array_equal(b.confidence_NA[[0, 2]], a.confidence_NA[[2, 1]])


@pytest.mark.parametrize(
    "change",
    [{"dataset": "x"}, {"revision": "rev2"}, {"camera": "wrist"}, {"episode_index": 4},
     {"prompt": "other"}, {"model": "other"}, {"frame": 1}, {"pixels": 8}],
)  # fmt: skip
def test_everything_that_changes_the_answer_is_in_the_key(tmp_path: Path, change: dict) -> None:
    CachedPointer(CountingPointer(), tmp_path, EPISODE).point_frames(reds(7), "p", [0])
    episode = {k: change.get(k, v) for k, v in vars(EPISODE).items()}
    pointer = CountingPointer(name=change.get("model", "counting"))
    cached = CachedPointer(pointer, tmp_path, EpisodeKey(**episode))
    pixels = reds(change.get("pixels", 7))
    cached.point_frames(pixels, change.get("prompt", "p"), [change.get("frame", 0)])
    assert len(pointer.asked) == 1


@pytest.mark.parametrize("cut", [1, 20, 70])
def test_a_torn_write_loses_one_answer(tmp_path: Path, cut: int) -> None:
    CachedPointer(CountingPointer(), tmp_path, EPISODE).point_frames(reds(7, 8, 9), "p", [0, 1, 2])
    (path,) = tmp_path.glob("*/episode_000003.jsonl")
    path.write_bytes(path.read_bytes()[:-cut])
    pointer = CountingPointer()
    cached = CachedPointer(pointer, tmp_path, EPISODE)
    cached.point_frames(reds(7, 8, 9), "p", [0, 1, 2])
    assert pointer.asked == ([] if cut == 1 else [9])
    again = CountingPointer()
    points = CachedPointer(again, tmp_path, EPISODE).point_frames(reds(7, 8, 9), "p", [0, 1, 2])
    assert again.asked == []
    np.testing.assert_allclose(points.xy_NA2[:, 0, 0], np.array([7, 8, 9], np.float32) / 255)


def test_a_tracker_asks_the_cache_for_its_keyframes(tmp_path: Path) -> None:
    still = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    still[0, 0, 0] = 128
    frames = np.repeat(still, 11, axis=0)
    for asked in (3, 0):
        pointer = CountingPointer()
        tracker = PointTracker(CachedPointer(pointer, tmp_path, EPISODE), "p", point_every=5)
        tracker.push(frames)
        tracked = tracker.finish()
        assert len(pointer.asked) == asked
        assert tracked.from_pointer_T.nonzero()[0].tolist() == [0, 5, 10]
