"""The table-top world as an ordinary gymnasium environment.

Actions are `ACTION_NAMES` in -1..1, relative, world axes; the gripper opens above 0.5 (1 = open, 0 = closed), so a
policy that writes -1 for closed works too. `gripper="libero"` reads -1 as open and 1 as closed instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from molmoact_data.config import build
from molmoact_data.errors import unknown_name
from molmoact_data.labels.traces import GRID_MAX
from molmoact_robot.environments.base import ActionConvention, from_libero, same, to_libero
from molmoact_robot.tabletop.control import ACTION_NAMES, CONTROL_HZ, STATE_NAMES
from molmoact_robot.tabletop.episodes import EpisodeConfig, Rollout, start_rollout
from molmoact_robot.tabletop.randomization import Split, Variety
from molmoact_robot.tabletop.scene import FAST, FLAT, FULL, RenderQuality
from molmoact_robot.tabletop.sensor import expose
from molmoact_robot.tabletop.tasks import FAMILIES, succeeded
from molmoact_robot.tabletop.view import SceneRenderer, calibration

GYM_ID = "gym_molmoact/tabletop-v0"
QUALITIES: Mapping[str, RenderQuality] = {"full": FULL, "fast": FAST, "flat": FLAT}
STATE_LIMIT = 4.0
"""Metres and radians that no state of this arm reaches."""
SUCCESS_STEPS = 2
"""A task is fulfilled when its predicate holds after so many steps in a row."""
ANY_TASK = "any"


@dataclass(frozen=True)
class TabletopSettings:
    """How the table-top world is measured in."""

    task: str = ANY_TASK
    """Of a `reset` that names none; `any` draws one per episode."""
    split: Split = "test"
    """`test` has textures, colours and camera poses that `train` never shows."""
    variety: Variety = "full"
    """`calm`: one look for every episode, and on the table only what the task needs."""
    quality: Literal["full", "fast", "flat"] = "full"
    """Of rendering; demonstrations are recorded at `full`."""
    image_size: int = 256
    max_steps: int = 120
    """The scripted expert needs 23 to 60."""
    render: Literal["every-step", "on-demand"] = "every-step"
    """`on-demand`: `step` repeats the pictures of the last `look()`, which is when a policy is asked."""
    gripper: Literal["unit", "libero"] = "unit"

    def __post_init__(self) -> None:
        if self.task not in (ANY_TASK, *FAMILIES):
            raise ValueError(str(unknown_name("task", self.task, (ANY_TASK, *FAMILIES))))
        if not 32 <= self.image_size <= 640:
            raise ValueError(f"image_size must be 32..640 pixels, got {self.image_size}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")


class TabletopEnv(gymnasium.Env[dict[str, Any], NDArray[np.float32]]):
    """One episode at a time. The scene is new at every reset; OpenGL is first touched by the first look.

    Observation: `pixels.image` and `pixels.image2` (front and wrist, RGB uint8 [size, size, 3]) and `agent_pos`,
    float32 [8] (`STATE_NAMES`). Reward 1 and `terminated` when the task is fulfilled, `truncated` at `max_steps`.
    """

    Settings = TabletopSettings
    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012
    tasks = FAMILIES
    measured_with: ClassVar[dict[str, Any]] = {"render": "on-demand"}  # the pictures are the same

    def __init__(
        self,
        settings: TabletopSettings | None = None,
        *,
        render_mode: str | None = "rgb_array",
        **named: Any,
    ) -> None:
        """`settings`, or its fields by name, as `gymnasium.make` passes them."""
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise unknown_name("render mode", str(render_mode), self.metadata["render_modes"])
        self.render_mode = render_mode
        self.settings = settings or build(TabletopSettings, named)
        size = self.settings.image_size
        picture = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "pixels": spaces.Dict({"image": picture, "image2": picture}),
                "agent_pos": spaces.Box(-STATE_LIMIT, STATE_LIMIT, (len(STATE_NAMES),), np.float32),
            }
        )
        self.action_space = spaces.Box(-1, 1, (len(ACTION_NAMES),), np.float32)
        libero = self.settings.gripper == "libero"
        self.convention = (
            ActionConvention(ACTION_NAMES, open_command=-1.0, gripper_command=to_libero)
            if libero
            else ActionConvention(ACTION_NAMES)
        )
        self._max_episode_steps = self.settings.max_steps
        self._gripper = from_libero if libero else same
        self._renderer: SceneRenderer | None = None
        self._rollout: Rollout | None = None
        self._seen: dict[str, Any] = {}
        self._episode = (0, EpisodeConfig())
        self._steps = self._held = 0

    # --- gymnasium ----------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """`options`: `task`, one of `tasks`. Without a seed the next one is drawn from `np_random`."""
        super().reset(seed=seed)
        task = (options or {}).get("task", self.settings.task)
        if task not in (ANY_TASK, *FAMILIES):
            raise unknown_name("task", str(task), FAMILIES)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        config = EpisodeConfig(
            split=self.settings.split,
            image_hw=(self.settings.image_size,) * 2,
            quality=QUALITIES[self.settings.quality],
            family=None if task == ANY_TASK else task,
            variety=self.settings.variety,
        )
        self.close()
        self._episode = number, config
        self._rollout = start_rollout(number, config)
        self._steps = self._held = 0
        return self.look(), self._info()

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        rollout = self._running()
        command = np.array(action, dtype=np.float32)
        if command.shape != self.action_space.shape or not np.isfinite(command).all():
            raise ValueError(f"an action is {len(ACTION_NAMES)} finite numbers, got {action!r}")
        command[-1] = self._gripper(float(command[-1]))
        rollout.world.arm.step(command)
        self._steps += 1
        self._held = self._held + 1 if succeeded(rollout.task, rollout.world) else 0
        seen = self._look_again()
        info = self._info()
        terminated = bool(info["is_success"])
        truncated = not terminated and self._steps >= self.settings.max_steps
        return seen, float(terminated), terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """The front view without its sensor's noise, RGB uint8 [size, size, 3]."""
        return self._open_renderer().colour(self._running().world.arm.data, "front")

    def close(self) -> None:
        """Give the OpenGL context back; the next reset makes another."""
        if self._renderer is not None:
            self._renderer.__exit__(None, None, None)
        self._renderer, self._rollout = None, None

    # --- what more there is (see environments.base) ---------------------------------------------------

    @property
    def task_description(self) -> str:
        """The instruction of the running episode; empty before the first reset."""
        return "" if self._rollout is None else self._rollout.task.instruction

    @property
    def grip_grid(self) -> NDArray[np.float64]:
        """The grip point in the front view, [x, y] on 0..255; may lie outside."""
        return _grip_grid(self._running(), self._episode[1].image_hw)

    @property
    def expert_actions(self) -> Iterator[NDArray[np.float32]]:
        """The scripted demonstrator's next actions, each for the state that the world is in when it is asked for."""
        return (motion.action_7 for motion in self._running().motions)

    def expert_path(self) -> NDArray[np.float64]:
        """Where the demonstrator's grip goes in this episode, [T, 2] on 0..255, from a second run of the scene."""
        number, config = self._episode
        again = start_rollout(number, config)
        points = [_grip_grid(again, config.image_hw)]
        for motion in again.motions:
            again.world.arm.step(motion.action_7)
            points.append(_grip_grid(again, config.image_hw))
        return np.stack(points)

    def look(self) -> dict[str, Any]:
        """The present observation. A picture is a function of seed and step, however often one looks."""
        number, config = self._episode
        world, look = self._running().world, self._running().look
        renderer = self._open_renderer()
        noise = np.random.default_rng([number, config.split == "test", 2, self._steps])
        views = (("image", "front", look.front_sensor), ("image2", "wrist", look.wrist_sensor))
        pixels = {
            name: expose(renderer.colour(world.arm.data, camera), sensor, noise)
            for name, camera, sensor in views
        }
        self._seen = {"pixels": pixels, "agent_pos": world.arm.state()}
        return self._seen

    def versions(self) -> dict[str, str]:
        """What decides how the scene moves and looks."""
        return {
            "mujoco": metadata.version("mujoco"),
            "gymnasium": metadata.version("gymnasium"),
            "gl_backend": os.environ.get("MUJOCO_GL", "default"),
        }

    def _look_again(self) -> dict[str, Any]:
        if self.settings.render == "every-step":
            return self.look()
        pixels = {name: picture.copy() for name, picture in self._seen["pixels"].items()}
        return {"pixels": pixels, "agent_pos": self._running().world.arm.state()}

    def _info(self) -> dict[str, Any]:
        rollout = self._running()
        return {
            "is_success": self._held >= SUCCESS_STEPS,
            "task": rollout.task.family,
            "seed": self._episode[0],
        }

    def _running(self) -> Rollout:
        if self._rollout is None:
            raise gymnasium.error.ResetNeeded("no episode is running: call reset() first")
        return self._rollout

    def _open_renderer(self) -> SceneRenderer:
        if self._renderer is None:
            _, config = self._episode
            model = self._running().world.arm.model
            shadows = config.quality.shadow_px > 0
            self._renderer = SceneRenderer(model, config.image_hw, shadows=shadows)
        return self._renderer


def _grip_grid(rollout: Rollout, image_hw: tuple[int, int]) -> NDArray[np.float64]:
    arm = rollout.world.arm
    pixel_12, _ = calibration(arm.model, arm.data, "front", image_hw).project(
        arm.grip_pose()[0][None]
    )
    return pixel_12[0] / (np.array(image_hw[::-1]) - 1) * GRID_MAX


def register() -> None:
    """Make `gymnasium.make(GYM_ID)` known; harmless when repeated."""
    if GYM_ID not in gymnasium.registry:
        gymnasium.register(GYM_ID, entry_point="molmoact_robot.environments.tabletop:TabletopEnv")


register()
