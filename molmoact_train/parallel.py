"""Everything that is applied to the model from outside: processes, precision, checkpointing, sharding, loading.

Order, each step leaving the model's own code untouched: build without memory -> dropout -> LoRA or freezing ->
activation checkpointing -> compile -> shard -> allocate -> stream the weights in -> LoRA's initial values.
One process on CPU is not sharded; everything else is, one GPU included (which gives fp32 master weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from molmoact_data.processes import World
from molmoact_train import lora
from molmoact_train.config import TrainConfig
from molmoact_train.families.base import Family
from molmoact_train.optim import freeze_for_full, released_name
from molmoact_train.weights import WeightFiles


def compute_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """What matrix products run in."""
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """Products in the compute type, residual stream and loss in float32, as published."""
    dtype = compute_dtype(config, device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


@dataclass(frozen=True)
class BuiltModel:
    """A model ready for its first step."""

    model: nn.Module
    lora_targets: list[str]
    """Names of the adapted layers; empty without LoRA."""


def build_model(config: TrainConfig, folder: Path, family: Family, world: World) -> BuiltModel:
    """The checkpoint in `folder`, prepared for training on this process (see the module docstring)."""
    files = WeightFiles(folder)
    model, targets = model_without_memory(config, folder, family)
    units = family.units(model)
    if config.activation_checkpointing:
        checkpoint_activations(model, units)
        units = family.units(model)  # now the wrappers
    if config.torch_compile:
        for unit in units:  # lengths vary between micro-batches, hence dynamic shapes
            unit.compile(dynamic=True)
    if world.is_sharded:
        shard(model, family, world, compute_dtype(config, world.device))
    model.to_empty(device=world.device)
    load_weights(model, files, world)
    if config.lora:
        lora.initialise(model, config.lora_rank, config.seed)
    model.train()
    return BuiltModel(model, targets)


def model_without_memory(
    config: TrainConfig, folder: Path, family: Family
) -> tuple[nn.Module, list[str]]:
    """The network with its trained and frozen parameters on `meta`, and the names of adapted layers."""
    with torch.device("meta"):
        model = family.build(folder, config)
    if config.lora:
        beside = family.trains_beside_adapters
        return model, lora.add_adapters(model, lora.LoraSettings.of(config), beside)
    freeze_for_full(model, family, config)
    return model, []


def checkpoint_activations(model: nn.Module, units: Sequence[nn.Module]) -> None:
    """Keep only the inputs of each unit; its insides are computed again in the backward pass."""
    chosen = {id(unit) for unit in units}
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=checkpoint_wrapper,
        check_fn=lambda module: id(module) in chosen,
    )


def shard(model: nn.Module, family: Family, world: World, dtype: torch.dtype) -> None:
    """FSDP2, innermost first: the family's units, then its larger shards, then the rest as the root's group."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    low = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    full = MixedPrecisionPolicy(cast_forward_inputs=False)
    for unit in family.units(model):
        fully_shard(unit, mesh=mesh, mp_policy=low)
    for module, in_float32 in family.shards(model):
        fully_shard(module, mesh=mesh, mp_policy=full if in_float32 else low)
    fully_shard(model, mesh=mesh, mp_policy=low)


@torch.no_grad()
def load_weights(model: nn.Module, files: WeightFiles, world: World) -> None:
    """Fill the parameters tensor by tensor; only rank 0 reads, so host memory holds one tensor at a time."""
    named = {n: p for n, p in model.named_parameters() if not lora.is_adapter(n)}
    files.check_names({released_name(n): tuple(p.shape) for n, p in named.items()})
    for name, parameter in named.items():
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=world.device)
        if world.is_main:
            whole.copy_(files.read_finite(released_name(name)))
        if isinstance(parameter, DTensor):
            placed = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
            parameter.copy_(placed)
        else:
            parameter.copy_(whole)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full value on the CPU; every process must ask for it at the same time."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()
