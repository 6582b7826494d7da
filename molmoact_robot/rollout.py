"""One episode: observe, ask for a chunk, execute some of it, observe again, until the world says that it is over.

Needs numpy alone. Letters: T executed steps, D action dimensions, P trace points.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.labels.traces import GRID_MAX, subsample
from molmoact_data.policies import ActionChunk, Observation, Policy, PredictionFailed
from molmoact_robot.environments.base import EnvironmentFailed, World

Ending = Literal["success", "timeout", "malformed_answer", "environment_error"]
ENDINGS: tuple[Ending, ...] = ("success", "timeout", "malformed_answer", "environment_error")
"""`timeout`: the environment ended the episode, by its clock or otherwise, and the task was not fulfilled.
`malformed_answer`: too many answers in a row were no actions. `environment_error`: the world itself broke."""

WINDOW = 16
"""How far ahead on the expert's path the nearest point is looked for, in its steps."""


@dataclass(frozen=True)
class RolloutConfig:
    """How a policy is played."""

    execute: int | None = None
    """Steps of a chunk that are executed before the next question; None = all."""
    steer: Literal["none", "expert"] = "none"
    """`expert`: every question carries the rest of the demonstrator's path as a trace (an upper bound)."""
    max_steps: int | None = None
    """At most so many per episode, where the environment allows more; None = the environment decides."""
    max_failures_in_a_row: int = 10
    """An episode ends after so many answers in a row that are no actions; each is held for one step."""

    def __post_init__(self) -> None:
        for name in ("execute", "max_steps", "max_failures_in_a_row"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Trial:
    """One episode to play: the `index`-th of its task."""

    task: str
    index: int
    seed: int

    @property
    def name(self) -> str:
        """Also the stem of its files."""
        return f"{self.task.replace('/', '-')}-{self.index:03d}"


@dataclass(frozen=True)
class Decision:
    """One question: what the robot saw at `step`, and the answer, or why there was none."""

    step: int
    observation: Observation
    chunk: ActionChunk | None
    failure: str
    """A `PredictionFailed.reason`; empty where there is a chunk."""
    seconds: float


@dataclass
class Episode:
    """What happened."""

    trial: Trial
    instruction: str = ""
    ended: Ending = "timeout"
    message: str = ""
    """One line about an `environment_error` or the last failed answer."""
    decisions: list[Decision] = field(default_factory=list)
    actions: list[NDArray[np.float32]] = field(default_factory=list)
    """[T] of [D], as sent to the environment."""
    grips: list[NDArray[np.float64] | None] = field(default_factory=list)
    """[T + 1] of [x, y] on 0..255 of the first picture."""
    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    """[T + 1] pictures for a film; empty where none is made."""

    @property
    def success(self) -> bool:
        return self.ended == "success"

    @property
    def failures(self) -> dict[str, int]:
        """Reason -> how many answers were no actions."""
        reasons = [d.failure for d in self.decisions if d.failure]
        return {reason: reasons.count(reason) for reason in sorted(set(reasons))}

    def path_errors(self) -> list[float]:
        """Per predicted trace: its mean distance to the path really taken from there, on the 0..255 grid.

        Both are the same number of points, evenly spaced by count over what was left of the episode: what the
        label of that frame would have been.
        """
        errors = []
        for decision in self.decisions:
            trace = None if decision.chunk is None else decision.chunk.trace_P2
            taken = [point for point in self.grips[decision.step :] if point is not None]
            if trace is not None and len(trace) > 1 and len(taken) >= len(trace):
                really = np.stack(subsample(taken, len(trace)))
                errors.append(float(np.linalg.norm(trace - really, axis=1).mean()))
        return errors


def run_episode(
    world: World, policy: Policy, trial: Trial, config: RolloutConfig, *, film: bool = False
) -> Episode:
    """Play one trial. A pure function of (world, policy, trial, config) where policy and world are.

    Raises `UserError` where the two do not fit; whatever the world raises ends the episode and is kept in it.
    """
    episode = Episode(trial)
    try:
        world.start(trial.task, trial.index, trial.seed)
        policy.reset(trial.seed)
        guide = Guide(world) if config.steer == "expert" else None
        _record(episode, world, film=film)
        _play(world, policy, episode, config, guide, film=film)
    except EnvironmentFailed as error:
        episode.ended, episode.message = "environment_error", str(error).splitlines()[0]
    return episode


def _play(
    world: World,
    policy: Policy,
    episode: Episode,
    config: RolloutConfig,
    guide: Guide | None,
    *,
    film: bool,
) -> None:
    failed_in_a_row = 0
    while config.max_steps is None or len(episode.actions) < config.max_steps:
        decision = _ask(world, policy, episode, guide)
        failed_in_a_row = failed_in_a_row + 1 if decision.chunk is None else 0
        if failed_in_a_row == config.max_failures_in_a_row or (
            decision.chunk is None and world.convention is None
        ):
            episode.ended = "malformed_answer"
            return
        for action in _commands(world, episode, decision, config):
            outcome = world.step(action)
            episode.actions.append(action)
            _record(episode, world, film=film)
            if outcome.over or outcome.success:
                episode.ended = "success" if outcome.success else "timeout"
                return
            if len(episode.actions) == config.max_steps:
                return


def _ask(world: World, policy: Policy, episode: Episode, guide: Guide | None) -> Decision:
    step = len(episode.actions)
    blind = policy.info.num_cameras == 0
    observation = world.observe(episode.trial.name, step, blind=blind)
    episode.instruction = observation.instruction
    began = time.perf_counter()
    chunk, failure = None, ""
    try:
        trace = None if guide is None else guide.rest_of_the_path()
        chunk = policy.act(first_cameras(observation, policy.info.num_cameras), trace=trace)
    except PredictionFailed as error:
        failure, episode.message = error.reason, error.message
    decision = Decision(step, observation, chunk, failure, time.perf_counter() - began)
    episode.decisions.append(decision)
    return decision


def first_cameras(observation: Observation, count: int) -> Observation:
    """The observation with the first `count` images, which is how many the model reads; 0 = it reads none."""
    if len(observation.images) <= count or count == 0:
        return observation
    images = dict(list(observation.images.items())[:count])
    return dataclasses.replace(observation, images=images)


def _commands(
    world: World, episode: Episode, decision: Decision, config: RolloutConfig
) -> list[NDArray[np.float32]]:
    """What is executed before the next question, in the environment's terms. No answer: hold for one step."""
    convention = world.convention
    if decision.chunk is None:
        assert convention is not None  # _play ends the episode otherwise
        return [convention.hold(episode.actions[-1] if episode.actions else None)]
    actions_HD = decision.chunk.actions_HD[: config.execute]
    if actions_HD.shape[1] != world.action_dim:
        raise UserError(
            f"the policy answers {actions_HD.shape[1]} values per step and the environment takes "
            f"{world.action_dim}: they do not belong together."
        )
    if convention is None:
        return [np.asarray(action, dtype=np.float32) for action in actions_HD]
    return [convention.to_environment(action) for action in actions_HD]


def _record(episode: Episode, world: World, *, film: bool) -> None:
    episode.grips.append(world.grip_grid)
    if film:
        episode.frames.append(world.frame())


class Guide:
    """The demonstrator's path as a trace: what a perfect planner would have drawn."""

    def __init__(self, world: World) -> None:
        path = getattr(world.environment, "expert_path", None)
        if path is None:
            raise UserError(
                "steering by the expert's path needs an environment that has an expert."
            )
        self._path_T2 = np.asarray(path())
        self._world = world
        self._reached = 0

    def rest_of_the_path(self) -> Sequence[Sequence[int]]:
        """From where the gripper is now to the end, at most five integer points on 0..255.

        Progress along the path never goes back, so that a path that crosses itself is followed once.
        """
        now = self._world.grip_grid
        assert now is not None
        ahead = np.linalg.norm(self._path_T2[self._reached :] - now, axis=1)
        self._reached += int(np.argmin(ahead[:WINDOW]))
        points = subsample([now, *self._path_T2[self._reached + 1 :]])
        points = points if len(points) > 1 else [now, self._path_T2[-1]]
        return np.clip(np.rint(np.stack(points)), 0, GRID_MAX).astype(int).tolist()
