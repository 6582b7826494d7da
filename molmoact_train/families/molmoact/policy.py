"""MolmoAct as a `Policy`: what a robot, a server or an evaluation asks for the next actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from molmoact_data.errors import UserError
from molmoact_data.files.typed import read_typed
from molmoact_data.policies import ActionChunk, Observation, PolicyInfo, PredictionFailed
from molmoact_data.text.prompts import Wording
from molmoact_train.families.fields import Finite, check_fields
from molmoact_train.families.loading import Dtype
from molmoact_train.families.molmoact.pictures import ImageLike
from molmoact_train.families.molmoact.predictor import Prediction, PredictOptions, Predictor
from molmoact_train.weights import fingerprint, resolve_model_folder

RUN_FILE = "train_config.json"
"""Beside an export of ours: the configuration of the run that made it."""
HORIZON, DEFAULT_CAMERAS = 8, 2
"""The released fine-tuned models read an external and a wrist camera."""


class MolmoActPolicy:
    """One checkpoint and how it is asked. Stateless between calls: `reset` only seeds."""

    def __init__(
        self, predictor: Predictor, options: PredictOptions, *, num_cameras: int, checkpoint: str,
        sha256: str = "",
    ) -> None:  # fmt: skip
        """`checkpoint` and `sha256` only name the model in `info`; `num_cameras` is the most it reads."""
        key, entry = predictor.entry(options.unnorm_key)
        self.predictor, self.options = predictor, replace(options, unnorm_key=key)
        self._info = PolicyInfo(
            family="molmoact",
            checkpoint=checkpoint,
            sha256=sha256,
            num_cameras=num_cameras,
            action_dim=len(entry["action"]["q01"]),
            horizon=options.chunk_size or 1,
            state_dim=None,
            statistics_key=key,
            extra={"constrained": options.constrained, "wording": options.wording,
                   "num_arms": options.num_arms},
        )  # fmt: skip

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        device: str = "auto",
        dtype: Dtype = "auto",
        statistics_key: str | None = None,
        statistics: Mapping[str, Any] | None = None,
        constrained: bool = True,
        chunk_size: int | None = None,
        single_action: bool = False,
        num_arms: int | None = None,
        num_cameras: int | None = None,
        wording: Wording | None = None,
    ) -> MolmoActPolicy:
        """A model folder or Hub id, asked as it was trained: what its run wrote down is honoured.

        `statistics` replaces the checkpoint's `norm_stats`; `statistics_key` picks the entry where there are
        several. None = what the entry says (`horizon`, `num_arms`, `cameras`), or the released models' 8 steps, one
        arm and two cameras. `single_action` asks for one flat action (published pre- and mid-trained models).
        """
        folder = resolve_model_folder(str(folder))
        predictor = Predictor.from_pretrained(
            folder, device=device, dtype=dtype, norm_stats=statistics
        )
        run, (key, entry) = run_of(folder), predictor.entry(statistics_key)
        options = PredictOptions(
            unnorm_key=key,
            chunk_size=None if single_action else chunk_size or _count(entry, "horizon", HORIZON),
            num_arms=num_arms or _count(entry, "num_arms", 1),
            constrained=constrained,
            kind=trained_kind(run),
            wording=wording or run.get("wording", "released"),
        )
        known = len(entry["cameras"]) if isinstance(entry.get("cameras"), list) else None
        cameras = num_cameras or known or _count(run, "max_images", DEFAULT_CAMERAS)
        return cls(
            predictor, options, num_cameras=cameras, checkpoint=str(folder),
            sha256=fingerprint(folder),
        )  # fmt: skip

    @property
    def info(self) -> PolicyInfo:
        return self._info

    def reset(self, seed: int | None = None) -> None:
        """Nothing is remembered between answers and the most likely one is taken; a seed changes nothing."""
        if seed is not None:
            torch.manual_seed(seed)

    def act(
        self, observation: Observation, *, trace: Sequence[Sequence[int]] | None = None
    ) -> ActionChunk:
        """The next chunk, in the robot's units. See `Policy.act` for what is raised."""
        self._check(observation)
        pictures = list(observation.images.values())
        return self._chunk(self.answer(pictures, observation.instruction, trace=trace))

    def answer(
        self,
        images: Sequence[ImageLike],
        instruction: str,
        *,
        trace: Sequence[Sequence[int]] | None = None,
    ) -> Prediction:
        """The whole answer in numbers, problems of free decoding included; `act` makes motion of sound ones."""
        return self.predictor.predict(images, instruction, trace=trace, options=self.options)

    def _check(self, observation: Observation) -> None:
        if not observation.instruction.strip():
            raise UserError("the instruction is empty; say what the robot is to do.")
        count = len(observation.images)
        if not 1 <= count <= self._info.num_cameras:
            raise UserError(
                f"this model reads 1 to {self._info.num_cameras} cameras, the external one first; the observation "
                f"has {count} ({', '.join(observation.images) or 'none'})."
            )
        for role, rgb in observation.images.items():
            if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
                raise UserError(
                    f"camera {role!r}: an image is RGB uint8 [height, width, 3], got {rgb.dtype} {rgb.shape}."
                )

    def _chunk(self, found: Prediction) -> ActionChunk:
        """Only a whole, well-formed answer becomes motion."""
        if found.problems:
            raise PredictionFailed("malformed", "; ".join(found.problems), text=found.text)
        if len(found.actions) != self._info.horizon:
            raise PredictionFailed(
                "bad_shape",
                f"{len(found.actions)} steps, not {self._info.horizon}",
                text=found.text,
            )
        trace = found.traces[0] if found.traces and found.traces[0] else None
        return ActionChunk(
            actions_HD=np.asarray(found.actions, dtype=np.float32),
            trace_P2=None if trace is None else np.asarray(trace, dtype=np.float32),
            depth_codes=np.asarray(found.depth_codes[0]) if found.depth_codes else None,
            text=found.text,
            seconds=found.seconds,
            num_tokens=found.num_tokens,
        )


load_policy = MolmoActPolicy.from_folder
"""By its plain name, for the command that asks for every choice of this family."""


def _count(values: Mapping[str, Any], name: str, default: int) -> int:
    found = values.get(name, default)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise UserError(f"the checkpoint says {name} {found!r}, which is no number of at least 1.")
    return found


def trained_kind(run: Mapping[str, Any]) -> Literal["reasoning", "action"]:
    """What a model is asked: whole answers, unless its run knew actions alone."""
    shares = {name: run.get(name, 0.0) for name in ("kind_action", "kind_reasoning")}
    try:
        check_fields(shares, dict.fromkeys(shares, Finite))
    except ValueError as error:
        raise UserError(f"{RUN_FILE}: {error}.") from error
    actions_alone = shares["kind_action"] > 0 and shares["kind_reasoning"] == 0
    return "action" if actions_alone else "reasoning"


def run_of(folder: Path) -> Mapping[str, Any]:
    """The configuration of the training run beside a model of ours; empty for a released one."""
    path = folder / RUN_FILE
    if not path.is_file():
        return {}
    return read_typed(dict[str, Any], path)
