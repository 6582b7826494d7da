"""The table-top world behind the portal: a scene per visitor, all in one thread, because OpenGL belongs to one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from molmoact_data.policies import Policy
from molmoact_robot.environments.base import World, open_world
from molmoact_robot.portal.conversation import Point
from molmoact_robot.rollout import first_cameras

Result = TypeVar("Result")
MAX_SCENES = 8
"""The oldest scene is closed for a ninth visitor."""


class Scenes:
    """Scenes by visitor. Close it."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="simulator")
        self._worlds: dict[str, World] = {}
        self._steps: dict[str, int] = {}
        self._names = itertools.count()

    def new(self, visitor: str, task: str, seed: int) -> tuple[NDArray[np.uint8], str]:
        """A fresh scene: its front view and what is to be done."""
        return self._run(self._new, visitor, task, seed)

    def follow(
        self, visitor: str, policy: Policy, points: Sequence[Point], execute: int
    ) -> Iterator[tuple[NDArray[np.uint8], str]]:
        """Ask once, along the points where there are two or more, and execute; a view and a line after every step.

        Raises what the policy raises, before anything moves.
        """
        world = self._worlds[visitor]
        episode, step = f"{visitor}-scene", self._steps[visitor]
        observation = self._run(world.observe, episode, step)
        trace = [list(p) for p in points] if len(points) > 1 else None
        chunk = policy.act(first_cameras(observation, policy.info.num_cameras), trace=trace)
        for action in chunk.actions_HD[:execute]:
            assert world.convention is not None
            outcome = self._run(world.step, world.convention.to_environment(action))
            self._steps[visitor] += 1
            words = "done!" if outcome.success else "out of time" if outcome.over else "running"
            yield self._run(world.frame), f"step {self._steps[visitor]}: {words}"
            if outcome.over:
                return

    def close(self) -> None:
        for world in self._worlds.values():
            self._run(world.close)
        self._worlds.clear()
        self._thread.shutdown()

    def _new(self, visitor: str, task: str, seed: int) -> tuple[NDArray[np.uint8], str]:
        while len(self._worlds) >= MAX_SCENES and visitor not in self._worlds:
            self._worlds.pop(next(iter(self._worlds))).close()
        if visitor not in self._worlds:
            self._worlds[visitor] = open_world("tabletop", self._settings)
        world = self._worlds[visitor]
        world.start(task, 0, seed)
        self._steps[visitor] = 0
        return world.frame(), str(world.environment.task_description)

    def _run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        return self._thread.submit(function, *arguments).result()
