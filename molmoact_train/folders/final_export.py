"""What a finished run leaves: a Hugging Face folder that loads by itself, or a plain PEFT adapter with LoRA."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molmoact_data.files.folders import write_json
from molmoact_data.processes import World
from molmoact_train import lora
from molmoact_train.checkpoint import save_guard
from molmoact_train.config import TrainConfig, to_json
from molmoact_train.folders.layout import ShardWriter, finish_folder, read_config
from molmoact_train.optim import released_name
from molmoact_train.parallel import BuiltModel, whole_tensor


def write(
    folder: Path,
    built: BuiltModel,
    config: TrainConfig,
    base: Path,
    statistics: Mapping[str, Any],
    world: World,
) -> Path:
    """Export into `folder`, under a temporary name until it is complete. All processes must call it.

    `base` is the folder that training started from; tokenizer and image processor come from there.
    """
    temporary = folder.with_name(folder.name + "-tmp")
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    with save_guard(folder.parent, folder, temporary, world):
        if config.lora:
            _write_adapter(temporary, built, config, statistics, world)
        else:
            _write_model(temporary, built, config, base, statistics, world)
    if world.is_main:
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    world.barrier()
    return folder


def _write_adapter(
    folder: Path,
    built: BuiltModel,
    config: TrainConfig,
    statistics: Mapping[str, Any],
    world: World,
) -> None:
    weights = {
        lora.plain_name(name): whole_tensor(parameter)
        for name, parameter in built.model.named_parameters()
        if parameter.requires_grad
    }
    if world.is_main:
        lora.save_adapter(
            folder,
            weights,
            lora.LoraSettings.of(config),
            built.lora_targets,
            base=config.checkpoint,
            revision=config.checkpoint_revision,
            statistics=statistics,
            run=to_json(config),
        )


def _write_model(
    folder: Path,
    built: BuiltModel,
    config: TrainConfig,
    base: Path,
    statistics: Mapping[str, Any],
    world: World,
) -> None:
    """Gathered one tensor at a time; only rank 0 keeps and writes them."""
    writer = ShardWriter(folder)
    for name, parameter in built.model.named_parameters():
        whole = whole_tensor(parameter)
        if world.is_main:
            writer.add(released_name(name), whole)
    if world.is_main:
        writer.finish()
        finish_folder(folder, base, read_config(base), statistics, "float32")
        write_json(folder / "train_config.json", to_json(config))
