"""Policies that need no model: what a number is to be compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.policies import ActionChunk, Observation, Policy, PolicyInfo
from molmoact_robot.environments.base import World


class Baseline:
    """What both share: no camera, no checkpoint, one action per question."""

    name = ""

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def info(self) -> PolicyInfo:
        return PolicyInfo(
            family="baseline",
            checkpoint=self.name,
            sha256="",
            num_cameras=0,
            action_dim=self._world.action_dim,
            horizon=1,
            state_dim=None,
            statistics_key="",
        )

    def reset(self, seed: int | None = None) -> None:
        """Nothing is remembered."""

    def _idle(self) -> NDArray[np.float32]:
        """No motion, in the model's terms: the gripper open."""
        action = np.zeros(self._world.action_dim, dtype=np.float32)
        if self._world.convention is not None:
            action[-1] = 1.0
        return action


class IdlePolicy(Baseline):
    """Does nothing with open fingers: the lower bound."""

    name = "idle"

    def act(
        self, observation: Observation, *, trace: Sequence[Sequence[int]] | None = None
    ) -> ActionChunk:
        """Zero motion."""
        return ActionChunk(self._idle()[None])


class ExpertPolicy(Baseline):
    """The environment's scripted demonstrator, which looks at the physics: the upper bound."""

    name = "expert"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        if not hasattr(type(world.environment), "expert_actions"):
            raise UserError("this environment has no scripted expert.")
        self._episode: str | None = None
        self._actions: Iterator[NDArray[np.float32]] = iter(())
        self._last = self._idle()

    def reset(self, seed: int | None = None) -> None:
        self._episode = None

    def act(
        self, observation: Observation, *, trace: Sequence[Sequence[int]] | None = None
    ) -> ActionChunk:
        """The next action of the script; after its end: stay, and keep the grip."""
        if self._episode != observation.episode:
            self._episode, self._last = observation.episode, self._idle()
            self._actions = self._world.environment.expert_actions
        action = next(self._actions, None)
        stay = np.append(np.zeros_like(self._last[:-1]), self._last[-1])
        self._last = stay if action is None else action
        return ActionChunk(self._last[None])


BASELINES: Mapping[str, Callable[[World], Policy]] = {
    "expert": ExpertPolicy,
    "idle": IdlePolicy,
}
"""Names that `--checkpoint` takes instead of a folder."""
