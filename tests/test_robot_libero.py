"""LIBERO's protocols on a made benchmark with the same five methods, and recorded roll-outs in the real one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from golden import GOLDEN
from PIL import Image
from scipy.spatial.transform import Rotation

from molmoact_data.errors import UserError
from molmoact_robot.environments import libero
from molmoact_robot.environments.base import World
from molmoact_robot.environments.libero import LiberoEnv, LiberoSettings

ROOT = Path(__file__).resolve().parent.parent
PYTHON = Path(os.environ.get("MOLMOACT_LIBERO_PYTHON", ROOT / ".venv-libero/bin/python"))
ROLLOUTS = ROOT.parent / "shared/data/libero_rollouts_v21"
REPLAY = GOLDEN / "closed-loop/libero_replay_mujoco-3.3.7.json"
real = [
    pytest.mark.libero,
    pytest.mark.skipif(not PYTHON.is_file(), reason="LIBERO is not installed (make libero-env)"),
    pytest.mark.skipif(not ROLLOUTS.is_dir(), reason="the recorded roll-outs are not here"),
    pytest.mark.skipif(not REPLAY.is_file(), reason="the golden answers are not here"),
]


class Made:
    """Both the benchmark and its environment; writes down what is called."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.done_at = 10**6
        self.steps = 0

    def make(self, suite, task, *, resolution, camera_observations):
        self.calls.append(("make", suite, task, resolution, camera_observations))
        self.resolution = resolution
        return self

    def instruction(self, suite, task):
        return f"do {task}"

    def initial_states(self, suite, task):
        return np.arange(50.0)[:, None]

    def versions(self):
        return {"mujoco": "made"}

    def seed(self, seed):
        self.calls.append(("seed", seed))

    def reset(self):
        self.calls.append("reset")

    def set_init_state(self, state):
        self.calls.append(("state", float(state[0])))
        self.steps = 0
        return self._seen()

    def step(self, action):
        self.calls.append(("step", tuple(action)))
        self.steps += 1
        return self._seen(), 0.0, self.steps >= self.done_at, {}

    def check_success(self):
        self.calls.append("check_success")
        return self.steps >= self.done_at

    def close(self):
        self.calls.append("close")

    def _seen(self):
        picture = np.zeros((self.resolution, self.resolution, 3), np.uint8)
        picture[0, 0] = 255
        return {
            "agentview_image": picture,
            "robot0_eye_in_hand_image": picture,
            "robot0_eef_pos": np.array([0.1, 0.2, 0.3]),
            "robot0_eef_quat": np.array([0.0, 0.0, 0.0, -1.0]),
            "robot0_gripper_qpos": np.array([0.04, -0.04]),
        }

    def take(self):
        calls, self.calls = self.calls, []
        return calls


def start(env, trial, seed=0, task=0):
    return env.reset(seed=seed, options={"task": env.tasks[task], "trial": trial})


WAIT = ("step", (0, 0, 0, 0, 0, 0, -1))


# --- the protocols --------------------------------------------------------------------------------


def test_the_reference_seeds_once_per_task_and_resets_once_per_trial() -> None:
    made = Made()
    env = LiberoEnv(LiberoSettings(), made)
    start(env, 0, seed=7)
    assert made.take() == [
        ("make", "libero_spatial", 0, 256, True), ("seed", 0), "reset", ("state", 0.0), *[WAIT] * 10,
    ]  # fmt: skip
    start(env, 1, seed=8)
    assert made.take() == ["reset", ("state", 1.0), *[WAIT] * 10]


def test_skipped_trials_are_reset_too_and_an_earlier_one_begins_again() -> None:
    """Furniture depends on the number of resets: trial 3 alone must stand as it stands after 0, 1 and 2."""
    made = Made()
    env = LiberoEnv(LiberoSettings(), made)
    start(env, 3)
    assert made.take()[:6] == [
        ("make", "libero_spatial", 0, 256, True), ("seed", 0), "reset", "reset", "reset", "reset",
    ]  # fmt: skip
    start(env, 1)
    assert made.take()[:5] == [
        "close", ("make", "libero_spatial", 0, 256, True), ("seed", 0), "reset", "reset",
    ]  # fmt: skip
    start(env, 0, task=4)
    assert made.take()[:4] == [
        "close",
        ("make", "libero_spatial", 4, 256, True),
        ("seed", 0),
        "reset",
    ]


@pytest.mark.parametrize(
    "settings", [LiberoSettings(preset="lerobot"), LiberoSettings(fixture_seed="every-reset")]
)
def test_seeded_at_every_reset_no_other_trial_matters(settings) -> None:
    made = Made()
    env = LiberoEnv(settings, made)
    start(env, 52, seed=60)
    assert made.take()[1:4] == [("seed", 60), "reset", ("state", 2.0)]
    start(env, 1, seed=9)
    assert made.take()[:3] == [("seed", 9), "reset", ("state", 1.0)]


@pytest.mark.parametrize(
    ("preset", "suite", "steps"),
    [("reference", "libero_spatial", 220), ("reference", "libero_object", 280),
     ("reference", "libero_goal", 300), ("reference", "libero_10", 520), ("reference", "libero_90", 400),
     ("lerobot", "libero_spatial", 280), ("lerobot", "libero_10", 520)],
)  # fmt: skip
def test_an_episode_lasts_as_long_as_the_protocol_says_not_counting_waits(
    preset, suite, steps
) -> None:
    made = Made()
    env = LiberoEnv(LiberoSettings(suite=suite, preset=preset), made)
    start(env, 0)
    for number in range(1, steps + 1):
        *_, truncated, _ = env.step(np.zeros(7, np.float32))
        assert truncated == (number == steps)
    assert len(env.tasks) == (90 if suite == "libero_90" else 10)


@pytest.mark.parametrize(("preset", "asked"), [("reference", False), ("lerobot", True)])
def test_success_is_told_by_what_the_protocol_trusts(preset, asked) -> None:
    made = Made()
    env = LiberoEnv(LiberoSettings(preset=preset), made)
    start(env, 0)
    made.done_at = made.steps + 2
    results = [env.step(np.zeros(7, np.float32)) for _ in range(2)]
    assert [r[4]["is_success"] for r in results] == [False, True]
    assert [r[2] for r in results] == [False, True]
    assert ("check_success" in made.calls) == asked


def test_lerobots_reported_numbers_wait_longer() -> None:
    made = Made()
    start(LiberoEnv(LiberoSettings(preset="lerobot", wait_steps=50), made), 0)
    assert made.calls.count(WAIT) == 50
    assert made.calls[0] == ("make", "libero_spatial", 0, 360, True)


def test_the_gripper_and_a_hold_in_liberos_terms() -> None:
    convention = LiberoEnv.convention
    sent = convention.to_environment(np.array([0, 0, 0, 0, 0, 0, 0.9], np.float32))
    assert sent[-1] == -1, "open"
    assert convention.hold(np.array([1, 1, 1, 1, 1, 1, 1], np.float32)).tolist() == [0] * 6 + [1]


def test_what_the_policy_sees(tmp_path) -> None:
    env = LiberoEnv(LiberoSettings(preset="lerobot"), Made())
    seen, _ = start(env, 0)
    assert list(seen["pixels"]) == ["image", "image2"]
    assert seen["pixels"]["image"].shape == (360, 360, 3)
    assert seen["pixels"]["image"][-1, -1].tolist() == [255] * 3, "turned by 180 degrees"
    np.testing.assert_allclose(seen["agent_pos"], [0.1, 0.2, 0.3, 0, 0, 0, 0.04, -0.04], atol=1e-6)
    observation = World(env).observe("e", 0)
    assert observation.instruction == "do 0"
    reference, _ = start(LiberoEnv(LiberoSettings(), Made()), 0)
    assert reference["pixels"]["image"].shape == (256, 256, 3)


def test_the_crop_is_the_middle_nine_tenths_of_the_area() -> None:
    """A ramp from 0 to 255 over 256 columns: after the crop it starts at 7 and ends at 248."""
    ramp = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (256, 1, 3))
    prepared = libero.prepare_picture(ramp)
    assert prepared.shape == (256, 256, 3)
    row = prepared[128, :, 0].astype(int)
    assert abs(row[0] - 7) <= 1
    assert abs(row[-1] - 248) <= 1
    assert abs(row[128] - 128) <= 1
    assert pytest.approx(0.9, abs=0.007) == (242 / 256) ** 2


def test_rotations_keep_the_sign_of_the_quaternion() -> None:
    for vector in np.random.default_rng(0).normal(size=(20, 3)):
        quaternion = Rotation.from_rotvec(vector).as_quat()
        ours = libero.axis_angle(quaternion)
        np.testing.assert_allclose(
            Rotation.from_rotvec(ours).as_matrix(),
            Rotation.from_rotvec(vector).as_matrix(),
            atol=1e-9,
        )
        flipped = libero.axis_angle(-quaternion)
        angle = np.linalg.norm(ours) + np.linalg.norm(flipped)
        assert angle == pytest.approx(2 * np.pi), "the other turn, as in the training data"
    np.testing.assert_array_equal(libero.axis_angle(np.array([0, 0, 0, 1.0])), 0)


@pytest.mark.parametrize(
    ("version", "message"), [("3.8.1", "3.8.1 is untested or known"), (None, "lacks")]
)
def test_a_wrong_environment_is_one_line(monkeypatch, version, message) -> None:
    def installed(name):
        if version is None:
            raise libero.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(libero.metadata, "version", installed)
    with pytest.raises(UserError, match=message):
        libero.open_backend()


def test_without_its_python_eval_says_how_to_make_it(molmoact, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MOLMOACT_LIBERO_PYTHON", "/nowhere/python")
    code, _, err = molmoact(
        "eval", "--env", "libero", "--checkpoint", "idle", "--output-path", tmp_path / "d"
    )
    assert code == 2
    assert "none at /nowhere/python. Make it with `make libero-env`" in err


# --- the real one ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replayed():
    command = [str(PYTHON), str(ROOT / "tests/libero_replay.py"), str(ROLLOUTS), str(REPLAY)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("mark", [pytest.param(None, marks=real)])
def test_recorded_rollouts_end_as_recorded_at_the_recorded_step(replayed, number, mark) -> None:
    """Of the released MolmoAct: its actions through our waits, resets, gripper and success."""
    found, row = replayed["rows"][number], json.loads(REPLAY.read_text())["rows"][number]
    assert replayed["versions"]["mujoco"] == "3.3.7"
    assert (found["success"], found["steps"]) == (row["success"], row["recorded_rows"])
    np.testing.assert_allclose(
        found["state_after_wait"][:3], row["state_after_wait"][:3], atol=1e-6
    )
    assert (
        found["instruction"]
        == "pick up the black bowl next to the ramekin and place it on the plate"
    )


@pytest.mark.parametrize("mark", [pytest.param(None, marks=real)])
def test_a_closed_loop_over_the_wire_in_the_real_benchmark(mark, molmoact, tmp_path) -> None:
    """Two chunks of a policy that lives here; the worker never sees more than its address."""
    from made_worlds import FunctionPolicy

    from molmoact_data.policies import ActionChunk
    from molmoact_robot.serving.config import ServeConfig
    from molmoact_robot.serving.server import in_background

    rise = ActionChunk(np.array([[0, 0, 0.5, 0, 0, 0, 1]] * 8, np.float32))
    policy = FunctionPolicy(lambda _: rise, action_dim=7, horizon=8, num_cameras=2)
    with in_background(policy, ServeConfig(port=0)) as url:
        code, _, err = molmoact(
            "eval", "--env", "libero", "--env-python", PYTHON, "--server", url, "--tasks", "libero_spatial-1",
            "--trials", 1, "--max-steps", 16, "--env-arg", "render=on-demand", "--output-path", tmp_path / "d",
        )  # fmt: skip
    assert code == 0, err
    results = json.loads((tmp_path / "d/results.json").read_text())
    assert results["trials"][0]["ended"] == "timeout"
    assert results["trials"][0]["predictions"] == 2
    assert results["environment"]["versions"]["mujoco"] == "3.3.7"
    first = next(iter(policy.observations[1].images.values()))  # 0 is the warm-up
    golden = np.asarray(
        Image.open(GOLDEN / "closed-loop/libero_spatial_task1_init0_agentview.png").convert("RGB")
    )
    error = np.mean((first.astype(float) - libero.prepare_picture(golden)) ** 2)
    assert 10 * np.log10(255**2 / error) > 30, "the golden view after the same JPEG and crop"
    assert (tmp_path / "d/episodes/libero_spatial-1-000.mp4").is_file()
