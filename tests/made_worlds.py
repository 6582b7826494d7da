"""A world of one dimension and policies for it: what roll-outs are tested with where no picture matters."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from molmoact_data.policies import ActionChunk, Observation, PolicyInfo, PredictionFailed
from molmoact_robot.environments.base import ActionConvention

NAMES = ("x", "gripper")
SIZE = 32


class LineEnv(gymnasium.Env):
    """Walk from `seed % 3` tenths of the way to 1; `closed` must be done with a closed gripper.

    The bright column of the picture is where the walker is. `broken` raises at its second step.
    """

    metadata = {"render_fps": 5}  # noqa: RUF012
    tasks = ("open", "closed", "broken")

    def __init__(self, limit: int = 12) -> None:
        picture = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "pixels": spaces.Dict({"image": picture}),
                "agent_pos": spaces.Box(-9, 9, (1,), np.float32),
            }
        )
        self.action_space = spaces.Box(-1, 1, (len(NAMES),), np.float32)
        self.convention = ActionConvention(NAMES)
        self.limit = limit
        self.received: list[NDArray[np.float32]] = []
        self.x, self.steps, self.task = 0.0, 0, "open"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task = (options or {}).get("task", "open")
        self.x, self.steps = (seed or 0) % 3 / 10, 0
        self.received = []
        return self._seen(), {"is_success": False}

    def step(self, action):
        self.steps += 1
        if self.task == "broken" and self.steps == 2:
            raise ZeroDivisionError("the floor is gone")
        self.received.append(np.array(action))
        self.x += float(action[0]) / 10
        wanted = 0.0 if self.task == "closed" else 1.0
        done = self.x >= 0.999 and action[1] == wanted
        return self._seen(), float(done), done, self.steps >= self.limit, {"is_success": done}

    @property
    def task_description(self) -> str:
        return f"walk to the end, {self.task}"

    @property
    def grip_grid(self):
        return np.array([255 * self.x, 128.0])

    def render(self):
        return self._seen()["pixels"]["image"]

    def _seen(self) -> dict[str, Any]:
        picture = np.zeros((SIZE, SIZE, 3), np.uint8)
        picture[:, int(np.clip(self.x, 0, 1) * (SIZE - 1))] = 255
        return {"pixels": {"image": picture}, "agent_pos": np.array([self.x], np.float32)}


class UnspokenEnv(LineEnv):
    """Does not say what its actions mean."""

    def __init__(self) -> None:
        super().__init__()
        del self.convention


class FunctionPolicy:
    """Answers what a function of the observation says; it may raise `PredictionFailed`."""

    def __init__(self, answer: Callable[[Observation], ActionChunk], **info: Any) -> None:
        self.answer = answer
        self.observations: list[Observation] = []
        self.seeds: list[int | None] = []
        self.traces: list[Sequence[Sequence[int]] | None] = []
        given = {
            "family": "made", "checkpoint": "made", "sha256": "0" * 64, "num_cameras": 1, "action_dim": 2,
            "horizon": 4, "state_dim": None, "statistics_key": "made",
        }  # fmt: skip
        self.info = PolicyInfo(**{**given, **info})

    def reset(self, seed: int | None = None) -> None:
        self.seeds.append(seed)

    def act(self, observation, *, trace=None) -> ActionChunk:
        self.observations.append(observation)
        self.traces.append(trace)
        return self.answer(observation)


def walk(gripper: float = 1.0, horizon: int = 4) -> ActionChunk:
    """Full speed ahead."""
    return ActionChunk(np.array([[1.0, gripper]] * horizon, np.float32))


class WalkerPolicy(FunctionPolicy):
    """The policy of a made checkpoint: walks; the folder's config.json says with what gripper, and when it stumbles."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(self._walk, checkpoint=config["name"])
        self.config = config

    @classmethod
    def from_folder(cls, folder: Path, **options: Any) -> WalkerPolicy:
        return cls(json.loads((folder / "config.json").read_text()))

    def _walk(self, observation: Observation) -> ActionChunk:
        if observation.step in self.config.get("stumbles", ()):
            raise PredictionFailed("bad_text", "the answer ends in the middle")
        return walk(self.config["gripper"])
