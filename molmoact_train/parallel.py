"""Everything that is applied to the model from outside: processes, precision, checkpointing, sharding, loading.

Order, each step leaving the model's own code untouched: build without memory -> dropout -> LoRA or freezing ->
activation checkpointing -> compile -> shard -> allocate -> stream the weights in -> LoRA's initial values.
One process on CPU is not sharded; everything else is, one GPU included (which gives fp32 master weights).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from molmoact_data.processes import pick_device
from molmoact_train import lora
from molmoact_train.config import TrainConfig
from molmoact_train.families.molmoact.network import MolmoActConfig, MolmoActForActionReasoning
from molmoact_train.optim import freeze_for_full, released_name
from molmoact_train.weights import WeightFiles

_TIMEOUT = timedelta(minutes=60)
"""Rank 0 reads a whole 32 GB checkpoint while the others wait."""


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0 writes and speaks."""
        return self.rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are FSDP2 shards."""
        return dist.is_initialized()

    def barrier(self) -> None:
        """Wait for everybody."""
        if dist.is_initialized():
            dist.barrier()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over all processes."""
        total = values.to(self.device, copy=True)
        if dist.is_initialized():
            dist.all_reduce(total)
        return total.cpu()

    def broadcast(self, values: list[Any]) -> None:
        """Replace the list's items by rank 0's, in place."""
        if dist.is_initialized():
            dist.broadcast_object_list(values, src=0)

    def any(self, flag: bool) -> bool:  # noqa: FBT001  one value in, one out
        """True everywhere if it is true anywhere."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)


@contextmanager
def joined_world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started (or be alone), and leave them at the end.

    A group that the caller has joined already is used and left alone.
    """
    on_gpu = pick_device(device).type == "cuda"
    started_by_torchrun = "RANK" in os.environ
    rank = int(os.environ.get("RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = torch.device("cpu")
    if on_gpu:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    joined_before = dist.is_initialized()
    if (started_by_torchrun or on_gpu) and not joined_before:
        _initialise_group("nccl" if on_gpu else "gloo", rank, size, alone=not started_by_torchrun)
    try:
        yield World(rank, size, chosen)
    finally:
        if dist.is_initialized() and not joined_before:
            dist.destroy_process_group()


def _initialise_group(backend: str, rank: int, size: int, *, alone: bool) -> None:
    store = dist.HashStore() if alone else None
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)


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

    model: MolmoActForActionReasoning
    lora_targets: list[str]
    """Names of the adapted layers; empty without LoRA."""


def build_model(config: TrainConfig, folder: Path, world: World) -> BuiltModel:
    """The checkpoint in `folder`, prepared for training on this process (see the module docstring)."""
    files = WeightFiles(folder)
    with torch.device("meta"):
        model = MolmoActForActionReasoning(MolmoActConfig.from_pretrained(folder))
    model.set_residual_dropout(config.residual_dropout)
    targets: list[str] = []
    if config.lora:
        targets = lora.add_adapters(model, lora.LoraSettings.of(config))
    else:
        freeze_for_full(model, config.ft_embedding or "lm_head")
    if config.activation_checkpointing:
        checkpoint_activations(model)
    if config.torch_compile:
        compile_blocks(model)
    if world.is_sharded:
        shard(model, world, compute_dtype(config, world.device))
    model.to_empty(device=world.device)
    load_weights(model, files, world)
    if config.lora:
        lora.initialise(model, config.lora_rank, config.seed)
    model.train()
    return BuiltModel(model, targets)


def _units(model: MolmoActForActionReasoning) -> list[nn.Module]:
    """What is checkpointed and compiled: every block, the pooling and the projector."""
    vision = model.model.vision_backbone
    return [
        *vision.image_vit.transformer.resblocks,
        vision.image_pooling_2d,
        vision.image_projector,
        *model.model.transformer.blocks,
    ]


def checkpoint_activations(model: MolmoActForActionReasoning) -> None:
    """Keep only the inputs of each unit; its insides are computed again in the backward pass."""
    chosen = {id(unit) for unit in _units(model)}
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=checkpoint_wrapper,
        check_fn=lambda module: id(module) in chosen,
    )


def compile_blocks(model: MolmoActForActionReasoning) -> None:
    """torch.compile of each unit on its own; lengths vary between micro-batches, hence dynamic shapes."""
    for unit in _units(model):
        unit.compile(dynamic=True)


def shard(model: MolmoActForActionReasoning, world: World, dtype: torch.dtype) -> None:
    """FSDP2, innermost first: ViT blocks, pooling, projector, vision; decoder blocks, embedding; the rest.

    The head and the final norm stay in the root's group, which lives from the forward to the backward pass:
    the chunked loss calls the head many times. The embedding is gathered in float32, so that the residual
    stream starts, and stays, in float32 as published.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    low = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    full = MixedPrecisionPolicy(cast_forward_inputs=False)
    vision, language = model.model.vision_backbone, model.model.transformer
    for unit in _units(model):
        fully_shard(unit, mesh=mesh, mp_policy=low)
    fully_shard(vision, mesh=mesh, mp_policy=low)
    fully_shard(language.wte, mesh=mesh, mp_policy=full)
    fully_shard(model, mesh=mesh, mp_policy=low)


@torch.no_grad()
def load_weights(model: nn.Module, files: WeightFiles, world: World) -> None:
    """Fill the parameters tensor by tensor; only rank 0 reads, so host memory holds one tensor at a time."""
    named = {n: p for n, p in model.named_parameters() if not lora.is_adapter(n)}
    files.check_names({released_name(n): tuple(p.shape) for n, p in named.items()})
    for name, parameter in named.items():
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=world.device)
        if world.is_main:
            whole.copy_(files.read(released_name(name)))
        if isinstance(parameter, DTensor):
            placed = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
            parameter.copy_(placed)
        else:
            parameter.copy_(whole)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The full value on the CPU; every process must ask for it at the same time."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()
