"""`molmoact validate --processor` for a MolmoAct2 folder: would training learn from a row, and is it read back?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from molmoact_data.outputs.output import Output
from molmoact_data.validate.run import CheckedSample, SampleCheck
from molmoact_train.data.base import RobotRow
from molmoact_train.data.sources import robot_row
from molmoact_train.families.molmoact2.encoder import STYLE_NEEDS, MolmoAct2Encoder
from molmoact_train.families.molmoact2.fast import FAST_FOLDER, FastTokenizer
from molmoact_train.families.molmoact2.network import MolmoAct2Config
from molmoact_train.families.molmoact2.processor import MolmoAct2Processor
from molmoact_train.families.molmoact2.settings import Settings

logger = logging.getLogger(__name__)

_ANY_ROBOT = Settings(
    num_flow_timesteps=1, setup_type="robot", control_mode="actions", normalize_gripper=True
)
"""A tag that the checkpoint does not have is checked in numbers; its words are chosen when it is trained."""
_ONE_STYLE: Mapping[str, dict[str, Any]] = {
    "robot_action": {"style_action": 1.0},
    "robot_depth": {"style_action": 0.0, "style_depth": 1.0},
    "robot_depth_action": {"style_action": 0.0, "style_depth_action": 1.0},
}


def sample_check(folder: Path, output: Output) -> SampleCheck:
    """Every style that the checkpoint knows and a row has the labels for, through the real processor."""
    processor = MolmoAct2Processor.from_folder(folder)
    encoders = _encoders(folder, processor)

    def check(
        values: Mapping[str, Any], following: Sequence[Sequence[float]]
    ) -> CheckedSample | None:
        cameras = output.layout.cameras[: _num_cameras(processor, output)]
        row = robot_row(values, cameras, following=following or None, statistics=output.statistics)
        losses = [
            _loss(encoder, row)
            for style, encoder in encoders.items()
            if STYLE_NEEDS[style] | {"action"} <= row.parts
        ]
        if not losses:
            return None
        return CheckedSample(min(losses), _unreadable(next(iter(encoders.values())), row))

    return check


def _encoders(folder: Path, processor: MolmoAct2Processor) -> dict[Any, MolmoAct2Encoder]:
    """One encoder per style; each draws nothing else."""
    settings = replace(_ANY_ROBOT, action_mode=_mode(folder, processor.config))
    fast = FastTokenizer.from_folder(folder / FAST_FOLDER) if settings.writes_actions else None
    thinks = processor.config.enable_depth_reasoning
    return {
        style: MolmoAct2Encoder(
            processor, replace(settings, **only), fast, augmented=False, pack_to=None
        )
        for style, only in _ONE_STYLE.items()
        if thinks or style == "robot_action"
    }


def _mode(folder: Path, config: MolmoAct2Config) -> Any:
    """As the checkpoint was trained, without the action tokens where their tokenizer is not at hand."""
    if config.action_mode == "continuous" or (folder / FAST_FOLDER).is_dir():
        return config.action_mode
    logger.warning("%s has no %s: action tokens are not checked", folder, FAST_FOLDER)
    return "continuous"


def _num_cameras(processor: MolmoAct2Processor, output: Output) -> int:
    """As many as the checkpoint's tag shows; all of a robot that it does not know."""
    name = "" if output.statistics is None else output.statistics.key
    tag = processor.stats.tags.get(name)
    return (
        len(tag.camera_keys) if tag is not None and tag.camera_keys else len(output.layout.cameras)
    )


def _loss(encoder: MolmoAct2Encoder, row: RobotRow) -> int:
    """Tokens and steps that carry loss."""
    sample = encoder.sample(0, row, np.random.default_rng(0))
    return int((sample.loss_weights > 0).sum() + sample.chunk.steps_T.sum())


def _unreadable(encoder: MolmoAct2Encoder, row: RobotRow) -> str:
    """Action tokens outside the fitted alphabet vanish without a word; the chunk is then lost."""
    if encoder.fast is None or encoder.fast.survives(encoder.normalised(row, encoder.tag(row))):
        return ""
    return "the action tokens of this row do not spell a chunk again: fit the action tokenizer on this data"
