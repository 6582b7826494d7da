"""Opened training data of MolmoAct without a checkpoint on disk: what several tests start from."""

from __future__ import annotations

from molmoact_train.config import TrainConfig
from molmoact_train.data.dataset import (
    TrainingData,
    open_eval_data as _open_eval,
    open_training_data as _open_training,
)
from molmoact_train.families.molmoact.encoder import MolmoActEncoder
from molmoact_train.families.molmoact.family import FAMILY
from molmoact_train.families.molmoact.processor import MolmoActProcessor


def open_training_data(config: TrainConfig, processor: MolmoActProcessor) -> TrainingData:
    """As `train` opens it, with this processor."""
    encoder = MolmoActEncoder.of_run(processor, config, training=True)
    return _open_training(config, FAMILY, encoder)


def open_eval_data(config: TrainConfig, processor: MolmoActProcessor) -> TrainingData | None:
    """The held-out rows, as `train` opens them, with this processor."""
    encoder = MolmoActEncoder.of_run(processor, config, training=False)
    return _open_eval(config, FAMILY, encoder)
