"""What a finished run leaves: a Hugging Face folder that loads by itself, or a plain PEFT adapter with LoRA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from molmoact_data import schema
from molmoact_train import lora
from molmoact_train.checkpoint import save_guard, write_json
from molmoact_train.config import TrainConfig, to_json
from molmoact_train.optim import released_name
from molmoact_train.parallel import BuiltModel, World, whole_tensor
from molmoact_train.processor import MolmoActProcessor

SHARD_BYTES = 4 * 2**30
"""Weights are gathered and written this much at a time."""


def write(
    folder: Path,
    built: BuiltModel,
    config: TrainConfig,
    processor: MolmoActProcessor,
    statistics: Mapping[str, Any],
    world: World,
) -> Path:
    """Export into `folder`, under a temporary name until it is complete. All processes must call it."""
    temporary = folder.with_name(folder.name + "-tmp")
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    with save_guard(folder.parent, folder, temporary, world):
        if config.lora:
            _write_adapter(temporary, built, config, statistics, world)
        else:
            _write_model(temporary, built, config, processor, statistics, world)
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
        if lora.is_adapter(name)
    }
    if world.is_main:
        lora.save_adapter(
            folder,
            weights,
            lora.LoraSettings.of(config),
            built.lora_targets,
            base=config.checkpoint,
            statistics=statistics,
            run=to_json(config),
        )


def _write_model(
    folder: Path,
    built: BuiltModel,
    config: TrainConfig,
    processor: MolmoActProcessor,
    statistics: Mapping[str, Any],
    world: World,
) -> None:
    files: list[tuple[str, list[str]]] = []
    for number, shard in enumerate(_shards(built.model), start=1):
        name = f"model-{number:05d}.safetensors"
        files.append((name, list(shard)))
        if world.is_main:
            save_file(shard, folder / name, metadata={"format": "pt"})
    if not world.is_main:
        return
    _name_shards(folder, files)
    model_config = built.model.config
    model_config.norm_stats = dict(statistics)
    model_config.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_json(folder / schema.STATISTICS_FILE, statistics)
    write_json(folder / "train_config.json", to_json(config))


def _shards(model: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Whole weights by released name, at most `SHARD_BYTES` at a time."""
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, parameter in model.named_parameters():
        whole = whole_tensor(parameter).contiguous()
        if shard and size + whole.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[released_name(name)] = whole
        size += whole.nbytes
    yield shard


def _name_shards(folder: Path, files: list[tuple[str, list[str]]]) -> None:
    """The names that transformers expects, and the index that lists what is in which."""
    if len(files) == 1:
        (folder / files[0][0]).rename(folder / "model.safetensors")
        return
    weight_map = {}
    for number, (name, tensors) in enumerate(files, start=1):
        final = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        (folder / name).rename(folder / final)
        weight_map.update(dict.fromkeys(tensors, final))
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
