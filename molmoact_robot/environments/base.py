"""What a roll-out needs of a world, and what an action means in it.

An environment is a `gymnasium.Env` after LeRobot's conventions: the observation is
`{"pixels": {camera: RGB uint8 [H, W, 3]}, "agent_pos": float32 [S]}` with the external camera first, the attribute
`task_description` is the instruction, `info["is_success"]` holds after every step, and `reset` takes
`options={"task": name, "trial": number}`. What more it offers is used where it is there:

- `tasks`: the names that `reset` knows; without it there is one, `default`.
- `convention`: an `ActionConvention`; without it a failed prediction ends the episode instead of being held.
- `look()`: the present observation, for environments whose `step` repeats the pictures of the last look.
- `grip_grid`: the gripper in the first picture now, [x, y] on 0..255; without it no path error is known.
- `expert_actions`, `expert_path()`: a demonstrator; what the policy `expert` and steering by the true path need.
- `Settings`, `measured_with`: the dataclass it is made from, and what an evaluation sets in it where nobody does.
- `settings`, `versions()`: what decides the outcome, for the result file.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data.config import as_dict, build
from molmoact_data.errors import UserError, unknown_name
from molmoact_data.policies import Observation

ENVIRONMENTS: Mapping[str, str] = {
    "tabletop": "molmoact_robot.environments.tabletop:TabletopEnv",
    "libero": "molmoact_robot.environments.libero:LiberoEnv",
}
"""Name of `--env` -> its class. `module:Class` names one of the user's own."""
DEFAULT_TASK = "default"


class EnvironmentFailed(Exception):
    """The world broke, not the policy: its own code raised, or it broke the rules of this module."""


def same(gripper: float) -> float:
    """The environment reads the gripper as the models of this project write it: 1 = open, 0 = closed."""
    return gripper


def to_libero(gripper: float) -> float:
    """1 = open, 0 = closed -> LIBERO's -1 = open, 1 = closed; exactly 0.5 commands nothing, as in the reference."""
    return float(-np.sign(2 * gripper - 1))


def from_libero(command: float) -> float:
    """LIBERO's command -> 1 = open, 0 = closed."""
    return 1.0 if command < 0 else 0.0


@dataclass(frozen=True)
class ActionConvention:
    """What the numbers of an action mean to one environment; relative motion, so that zero is no motion.

    names: one per dimension, the gripper last. open_command: what opens the gripper, in the environment's terms.
    gripper_command: the model's gripper (1 = open, 0 = closed) -> the environment's.
    """

    names: tuple[str, ...]
    open_command: float = 1.0
    gripper_command: Callable[[float], float] = same

    def to_environment(self, action_D: NDArray[np.float32]) -> NDArray[np.float32]:
        """A model's action [D] -> the environment's."""
        out = np.array(action_D, dtype=np.float32)
        out[-1] = self.gripper_command(float(out[-1]))
        return out

    def hold(self, last_D: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """No motion and the last gripper command, both in the environment's terms; before the first action: open."""
        out = np.zeros(len(self.names), dtype=np.float32)
        out[-1] = self.open_command if last_D is None else last_D[-1]
        return out


@dataclass(frozen=True)
class Outcome:
    """After one step: whether the task is fulfilled, and whether the episode is over."""

    success: bool
    over: bool


class World:
    """One environment as the roll-out sees it. What the environment raises becomes `EnvironmentFailed`."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self._seen: Mapping[str, Any] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(getattr(self.environment, "tasks", (DEFAULT_TASK,)))

    @property
    def convention(self) -> ActionConvention | None:
        return getattr(self.environment, "convention", None)

    @property
    def action_dim(self) -> int:
        return int(self.environment.action_space.shape[0])

    @property
    def num_cameras(self) -> int:
        return len(self.environment.observation_space["pixels"].spaces)

    @property
    def fps(self) -> float:
        return float(self.environment.metadata.get("render_fps", 10))

    @property
    def grip_grid(self) -> NDArray[np.float64] | None:
        """[x, y] on 0..255 of the first picture, possibly outside; None = the environment does not say."""
        point = getattr(self.environment, "grip_grid", None)
        return None if point is None else np.asarray(point, dtype=np.float64)

    def describe(self) -> dict[str, Any]:
        """What decides the outcome of an episode, as plain JSON types."""
        settings = getattr(self.environment, "settings", None)
        versions = getattr(self.environment, "versions", dict)
        return {
            "settings": as_dict(settings) if dataclasses.is_dataclass(settings) else {},
            "versions": dict(versions()),
        }

    def start(self, task: str, trial: int, seed: int) -> None:
        """A fresh episode."""
        options = {"task": task, "trial": trial}
        self._seen, _ = self._call(self.environment.reset, seed=seed, options=options)

    def observe(self, episode: str, step: int, *, blind: bool = False) -> Observation:
        """What the robot sees now; `blind` for a policy that reads no picture, which may then be an old one."""
        look = None if blind else getattr(self.environment, "look", None)
        seen = self._seen if look is None else self._call(look)
        return self._call(_observation, seen, self.environment, episode, step)

    def step(self, action_D: NDArray[np.float32]) -> Outcome:
        """Execute one action in the environment's own terms."""
        self._seen, _, terminated, truncated, info = self._call(self.environment.step, action_D)
        if "is_success" not in info:
            raise EnvironmentFailed("info has no is_success, so no success can be counted")
        return Outcome(bool(info["is_success"]), bool(terminated or truncated))

    def frame(self) -> NDArray[np.uint8]:
        """The scene now, for a film."""
        return np.asarray(self._call(self.environment.render), dtype=np.uint8)

    def close(self) -> None:
        self.environment.close()

    def _call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except (UserError, EnvironmentFailed):
            raise
        except Exception as error:
            raise EnvironmentFailed(f"{type(error).__name__}: {error}") from error


def _observation(seen: Mapping[str, Any], environment: Any, episode: str, step: int) -> Observation:
    state = seen.get("agent_pos")
    instruction = str(environment.task_description)
    if not instruction:
        raise EnvironmentFailed("task_description is empty: there is nothing to do")
    return Observation(
        images={name: np.asarray(image) for name, image in seen["pixels"].items()},
        instruction=instruction,
        state=None if state is None else np.asarray(state, dtype=np.float32),
        episode=episode,
        step=step,
    )


def open_world(name: str, settings: Mapping[str, Any]) -> World:
    """The environment of `--env NAME` with its `--env-arg` settings; a misspelt one names its nearest match."""
    if name not in ENVIRONMENTS and ":" not in name:
        raise unknown_name("environment", name, ENVIRONMENTS)
    kind = resolve(ENVIRONMENTS.get(name, name))
    settings_type = getattr(kind, "Settings", None)
    if settings_type is not None:
        usual = getattr(kind, "measured_with", {})
        return World(kind(build(settings_type, {**usual, **settings})))
    try:
        return World(kind(**settings))
    except TypeError as error:
        raise UserError(f"{name} cannot be made: {error}.") from error


def resolve(spelled: str) -> Any:
    """`module:Attribute` -> the attribute; what is missing is said in one line."""
    module_name, _, attribute = spelled.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{spelled} cannot be imported: there is no module {error.name!r}. "
            "The environments that ship need: pip install 'molmoact[robot]'"
        ) from error
    if not hasattr(module, attribute):
        raise UserError(
            f"{spelled}: the module {module_name} has no {attribute!r}. Give module:Class, a gymnasium class in it."
        )
    return getattr(module, attribute)


def parse_settings(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """`["split=test", "image_size=128"]` of `flag` -> a mapping; values are read as JSON where they are JSON."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"{flag} wants KEY=VALUE, got {pair!r}.")
        try:
            settings[key.replace("-", "_")] = json.loads(value)
        except ValueError:
            settings[key.replace("-", "_")] = value
    return settings
