"""What a robot, a server or an evaluation knows of a model: an observation in, a chunk of actions out.

The robot package knows models only through `Policy`; which class answers for a checkpoint is a string in
`POLICIES`, imported when it is loaded. Needs numpy alone.

Letters: H steps of a chunk, D action dimensions, S state dimensions, P points.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError, unknown_name
from molmoact_data.files.kinds import why_no_model

POLICIES: Mapping[str, str] = {
    "molmoact": "molmoact_train.families.molmoact.policy:MolmoActPolicy",
    "molmoact2": "molmoact_train.families.molmoact2.policy:MolmoAct2Policy",
}
"""`model_type` of a checkpoint's config.json -> its policy class, which has `from_folder(folder, ...)`."""

EMBEDDED = "embedded"
EMBEDDED_POLICY = Path(__file__).parents[1] / "molmoact_robot" / "weights" / "tabletop"
"""The small model that ships with the package, for the table-top world: what the name `embedded` stands for."""


class PredictionFailed(Exception):
    """The model's answer is no action: malformed text, numbers that are not finite, a wrong shape.

    The caller decides what to do (hold, count, stop); nothing below it replaces the answer by a default.
    """

    def __init__(self, reason: str, message: str, *, text: str = "") -> None:
        super().__init__(f"{reason}: {message}")
        self.reason, self.message, self.text = reason, message, text


@dataclass(frozen=True)
class Observation:
    """What a robot sees at one moment.

    images: camera role -> RGB uint8 [H, W, 3], the external (labelled) camera first.
    instruction: what the robot is to do; never empty.
    state: float32 [S] in the robot's units, or None for models that do not read it.
    episode: names the running episode; a policy that carries a cache forgets it when this changes.
    step: executed steps since the episode's start.
    """

    images: Mapping[str, NDArray[np.uint8]]
    instruction: str
    state: NDArray[np.float32] | None = None
    episode: str = ""
    step: int = 0


@dataclass(frozen=True)
class ActionChunk:
    """What a model wants the robot to do next, and what it thought.

    actions_HD: float32 [H, D] in the robot's units, finite.
    trace_P2: the planned gripper path on the first image, uint8-valued [P, 2], x right, y down, 0..255; None = none.
    depth_codes: VQ-VAE ids, row-major [100]; None = none.
    text: the answer as written; empty for models that write none.
    seconds: wall time by stage.
    """

    actions_HD: NDArray[np.float32]
    trace_P2: NDArray[np.float32] | None = None
    depth_codes: NDArray[np.int64] | None = None
    text: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    num_tokens: int = 0

    def __post_init__(self) -> None:
        if self.actions_HD.ndim != 2 or not self.actions_HD.size:
            raise PredictionFailed("bad_shape", f"actions are {self.actions_HD.shape}, not [H, D]")
        if not np.isfinite(self.actions_HD).all():
            raise PredictionFailed("not_finite", "the actions hold NaN or infinity", text=self.text)


@dataclass(frozen=True)
class PolicyInfo:
    """What a policy declares before the first observation; goes into handshakes and result files.

    cameras: how many images it reads, the external one first. statistics_key: the entry actions are in.
    """

    family: str
    checkpoint: str
    sha256: str
    num_cameras: int
    action_dim: int
    horizon: int
    state_dim: int | None
    statistics_key: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Policy(Protocol):
    """A model that acts."""

    @property
    def info(self) -> PolicyInfo: ...

    def reset(self, seed: int | None = None) -> None:
        """A new episode begins: forget caches, seed whatever is sampled."""
        ...

    def act(
        self, observation: Observation, *, trace: Sequence[Sequence[int]] | None = None
    ) -> ActionChunk:
        """The next chunk; with `trace` ([x, y] on 0..255 of the first image) the action follows it.

        Raises `PredictionFailed` where the answer is no action, `UserError` where the question is wrong
        (too many images, state missing, a model that cannot be steered).
        """
        ...


def checkpoint_folder(name: str | Path) -> Path:
    """The folder that `--checkpoint` means: the shipped model for `embedded`, otherwise the path itself."""
    return EMBEDDED_POLICY if str(name) == EMBEDDED else Path(name)


def load_policy(folder: str | Path, **options: Any) -> Policy:
    """The policy of a checkpoint folder, by the `model_type` in its config.json; torch is imported now.

    `options` go to the family's `from_folder`: `device`, `dtype`, `statistics_key`, ...
    """
    path = checkpoint_folder(folder)
    module, _, attribute = policy_class(path).partition(":")
    return getattr(importlib.import_module(module), attribute).from_folder(path, **options)


def policy_class(folder: Path) -> str:
    """`module:Class` that answers for this folder. Cheap: one JSON file is read, nothing is imported."""
    return POLICIES[family_name(folder)]


def family_name(folder: Path) -> str:
    """The `model_type` of a model folder's config.json, one of `POLICIES`. Raises `UserError` for a folder of none."""
    family = model_type(folder)
    if family not in POLICIES:
        raise unknown_name("model_type", family, POLICIES)
    return family


def model_type(folder: Path) -> str:
    """What a model folder's config.json says that it is. Raises `UserError` that says what lies there instead."""
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except (FileNotFoundError, NotADirectoryError, KeyError) as error:
        raise UserError(f"{folder} is not a model folder: {why_no_model(folder)}.") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} does not say which model it is (model_type): {error!r}."
        ) from error
