"""Where trials are played: in this process, in several, or in a Python of the environment's own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from molmoact_data.errors import UserError
from molmoact_data.policies import load_policy
from molmoact_robot.baselines import BASELINES
from molmoact_robot.evaluation.player import Facts, Player, PlayerConfig, check_checkpoint
from molmoact_robot.evaluation.results import TrialResult
from molmoact_robot.evaluation.workers import Workers
from molmoact_robot.rollout import Trial

OWN_PYTHON: Mapping[str, tuple[str, str]] = {
    "libero": ("MOLMOACT_LIBERO_PYTHON", ".venv-libero/bin/python"),
}
"""Environments that never share a Python with the model: the variable that names theirs, and where `make` puts it."""


@dataclass(frozen=True)
class Session:
    """Ready to play."""

    facts: Facts
    play: Callable[[Sequence[Trial]], Iterable[TrialResult]]


@contextlib.contextmanager
def open_session(config: PlayerConfig, folder: Path, jobs: int) -> Iterator[Session]:
    """Load what is needed. Raises `UserError` before anything heavy where a path or a name is wrong."""
    check_checkpoint(config)
    python = environment_python(config)
    if python is not None:
        with (
            _over_the_wire(config) as asking,
            Workers(asking, folder, jobs, python=python) as workers,
        ):
            yield Session(workers.facts, workers.play)
    elif jobs > 1:
        with Workers(config, folder, jobs) as workers:
            yield Session(workers.facts, workers.play)
    else:
        with contextlib.closing(Player(config, folder)) as player:
            yield Session(player.facts, lambda trials: map(player.play, trials))


def environment_python(config: PlayerConfig) -> str | None:
    """The Python that the environment lives in; None = this one. Raises `UserError` where it is not there."""
    if config.env_python is None and config.env not in OWN_PYTHON:
        return None
    variable, usual = OWN_PYTHON.get(config.env, ("", ""))
    python = config.env_python or os.environ.get(variable) or usual
    if not Path(python).is_file():
        if config.env not in OWN_PYTHON:
            raise UserError(
                f"--env-python {python}: there is no such file. Leave it out, or give the python of an environment."
            )
        raise UserError(
            f"the environment {config.env} needs a Python of its own and there is none at {python}. "
            f"Make it with `make {config.env}-env`, or name one with --env-python."
        )
    return python


@contextlib.contextmanager
def _over_the_wire(config: PlayerConfig) -> Iterator[PlayerConfig]:
    """The same, with the model in this process and a server in front of it."""
    plain = dataclasses.replace(config, env_python=None, vqvae=None, policy_options={})
    if config.server is not None or config.checkpoint in BASELINES:
        yield plain
        return
    from molmoact_robot.serving.config import ServeConfig
    from molmoact_robot.serving.server import in_background

    policy = load_policy(config.checkpoint, **config.policy_options)
    with in_background(policy, ServeConfig(port=0)) as url:
        yield dataclasses.replace(plain, checkpoint="", server=url)
