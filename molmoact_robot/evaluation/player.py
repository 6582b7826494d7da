"""A world and a policy, ready to play trials; leaves one file, one film and one picture per trial."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from molmoact_data.config import build
from molmoact_data.errors import UserError
from molmoact_data.files.storage import Storage
from molmoact_data.files.typed import read_typed
from molmoact_data.pictures.film import load_tokenizer, write_picture
from molmoact_data.policies import (
    EMBEDDED,
    Policy,
    PolicyInfo,
    checkpoint_folder,
    load_policy,
    policy_class,
)
from molmoact_robot.baselines import BASELINES
from molmoact_robot.client import API_KEY_VARIABLE, RemotePolicy
from molmoact_robot.environments.base import World, open_world
from molmoact_robot.evaluation.film import DepthPicture, depth_painter, start_picture, write_film
from molmoact_robot.evaluation.results import TrialResult
from molmoact_robot.rollout import RolloutConfig, Trial, run_episode

EPISODES, TRIALS = "episodes", "trials"
VQVAE_OF_A_CHECKPOINT = "vae-final.pt"


@dataclass(frozen=True)
class PlayerConfig:
    """Everything that one process needs to play trials; plain data, so that it can be sent to another."""

    env: str
    checkpoint: str = ""
    """A model folder, `embedded`, or the name of a baseline; empty with `server`."""
    server: str | None = None
    """`ws://host:port` of a policy server to ask instead. Its API key is read from `API_KEY_VARIABLE`."""
    env_settings: Mapping[str, Any] = field(default_factory=dict)
    policy_options: Mapping[str, Any] = field(default_factory=dict)
    """Of `load_policy`: `device`, `dtype`, `statistics_key`."""
    vqvae: str | None = None
    """Decoder of the depth in films; None = the checkpoint's own, or none."""
    env_python: str | None = None
    """A Python of the environment's own; the model stays in this one and is asked over the wire."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    video: bool = True

    def __post_init__(self) -> None:
        if bool(self.checkpoint) == (self.server is not None):
            raise ValueError("give either --checkpoint or --server")


@dataclass(frozen=True)
class Facts:
    """What is known before the first trial, as plain JSON types."""

    tasks: tuple[str, ...]
    environment: Mapping[str, Any]
    policy: Mapping[str, Any]
    """A `PolicyInfo`."""


class Player:
    """Plays trials one after the other. Close it."""

    def __init__(self, config: PlayerConfig, folder: Path) -> None:
        self.config, self._folder = config, folder
        check_checkpoint(config)
        self.world = open_world(config.env, config.env_settings)
        self.policy = _policy(config, self.world)
        _check_that_they_fit(self.world, self.policy.info)
        self._depth = depth_picture(config) if config.video else None

    @property
    def facts(self) -> Facts:
        return Facts(self.world.tasks, self.world.describe(), asdict(self.policy.info))

    def play(self, trial: Trial) -> TrialResult:
        """Run it and write its files, the result last: a trial without its file was not played."""
        video = self.config.video
        episode = run_episode(self.world, self.policy, trial, self.config.rollout, film=video)
        if episode.frames:
            films = self._folder / EPISODES
            convention = self.world.convention
            names = () if convention is None else convention.names
            write_film(films / f"{trial.name}.mp4", episode, self.world.fps, self._depth, names)
            picture = start_picture(episode)
            assert picture is not None  # there are frames
            write_picture(films / f"{trial.name}.jpg", picture)
        result = TrialResult.of(episode)
        write_result(self._folder, result)
        return result

    def close(self) -> None:
        self.world.close()
        if isinstance(self.policy, RemotePolicy):
            self.policy.close()


def write_result(folder: Path, result: TrialResult) -> None:
    """`trials/NAME.json`, whole or absent."""
    content = json.dumps(asdict(result), indent=1).encode()
    Storage(str(folder)).write_bytes(f"{TRIALS}/{result.trial.name}.json", content)


def read_results(folder: Path) -> list[TrialResult]:
    """What has been played so far. Raises `UserError` for a file that is none of ours."""
    return [_read_result(path) for path in sorted((folder / TRIALS).glob("*.json"))]


def check_checkpoint(config: PlayerConfig) -> None:
    """Raises `UserError` where `--checkpoint` names nothing that acts. Imports nothing heavy."""
    if config.server is None and config.checkpoint not in BASELINES:
        policy_class(checkpoint_folder(config.checkpoint))


def _read_result(path: Path) -> TrialResult:
    try:
        return build(TrialResult, read_typed(dict[str, Any], path))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not the result of a trial: {error}") from error


def _policy(config: PlayerConfig, world: World) -> Policy:
    if config.server is not None:
        return RemotePolicy(config.server, api_key=os.environ.get(API_KEY_VARIABLE))
    if config.checkpoint in BASELINES:
        return BASELINES[config.checkpoint](world)
    return load_policy(config.checkpoint, **config.policy_options)


def _check_that_they_fit(world: World, info: PolicyInfo) -> None:
    if info.action_dim != world.action_dim:
        raise UserError(
            f"the model's actions have {info.action_dim} values (statistics {info.statistics_key!r}) and the "
            f"environment takes {world.action_dim}: they do not belong together."
        )


def depth_picture(config: PlayerConfig) -> DepthPicture | None:
    """How the depth that the policy writes is shown: `--vqvae`, or the checkpoint's own decoder, or not at all."""
    if config.server is not None and config.vqvae is None:
        return None
    own = checkpoint_folder(config.checkpoint) / VQVAE_OF_A_CHECKPOINT
    shipped = EMBEDDED if config.checkpoint == EMBEDDED else None
    name = config.vqvae or (str(own) if own.is_file() else shipped)
    return None if name is None else depth_painter(load_tokenizer(name, "cpu"))
