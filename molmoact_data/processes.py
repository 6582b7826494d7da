"""Where a model runs, and which process this is of how many: one, or one of those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from molmoact_data.errors import UserError, unknown_name

_TIMEOUT = timedelta(minutes=60)
"""Rank 0 prepares data or reads a whole 32 GB checkpoint while the others wait."""


def pick_device(name: str) -> torch.device:
    """`auto` = the GPU where there is one, else the CPU; otherwise any name torch knows.

    Raises `UserError` for other names, and for a GPU that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise unknown_name("device", name, ("auto", "cpu", "cuda", "cuda:0", "cuda:1")) from error
    available = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= available:
        raise UserError(
            f"--device {name}: torch can use {available} GPUs here. Take cpu or auto, or look at the "
            "driver with nvidia-smi."
        )
    return device


@dataclass(frozen=True)
class World:
    """This process among its peers. Alone, every method is a plain local operation."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0 writes and speaks."""
        return self.rank == 0

    @property
    def is_sharded(self) -> bool:
        """Whether there is a process group, on which parameters are FSDP2 shards; one GPU counts."""
        return dist.is_initialized()

    def barrier(self) -> None:
        """Wait for everybody."""
        if dist.is_initialized():
            dist.barrier()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over all processes; on the CPU."""
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

    def agrees(self, values: torch.Tensor) -> bool:
        """True where every process holds the same values, to the bit."""
        if not dist.is_initialized():
            return True
        highest, lowest = values.clone(), values.clone()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
        return bool(torch.equal(highest, lowest))


@contextmanager
def join_world(device: str = "auto", *, group_of_one: bool = False) -> Iterator[World]:
    """Join the processes that torchrun started (NCCL on GPUs, gloo otherwise), or be alone; leave at the end.

    `group_of_one`: a process that is alone on a GPU makes a group of itself, which FSDP2 needs.
    A group that the caller has joined already is used and left alone.
    """
    chosen = pick_device(device)
    on_gpu = chosen.type == "cuda"
    by_torchrun = "RANK" in os.environ
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if on_gpu:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", chosen.index or 0)))
        torch.cuda.set_device(chosen)
    joined_before = dist.is_initialized()
    if (by_torchrun or (on_gpu and group_of_one)) and not joined_before:
        store = None if by_torchrun else dist.HashStore()
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    try:
        yield World(rank, size, chosen)
    finally:
        if dist.is_initialized() and not joined_before:
            dist.destroy_process_group()
