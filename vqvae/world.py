"""Which process this is of how many: one, or one of those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from molmoact_data.processes import pick_device


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """The one that writes."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            distributed.barrier()

    def any(self, *, flag: bool) -> bool:
        """True everywhere if it is true anywhere."""
        if self.size == 1:
            return flag
        seen = torch.tensor(int(flag), device=self.device)
        distributed.all_reduce(seen, op=distributed.ReduceOp.MAX)
        return bool(seen.item())

    def agrees(self, values: torch.Tensor) -> bool:
        """True where every process holds the same values, to the bit."""
        if self.size == 1:
            return True
        highest, lowest = values.clone(), values.clone()
        distributed.all_reduce(highest, op=distributed.ReduceOp.MAX)
        distributed.all_reduce(lowest, op=distributed.ReduceOp.MIN)
        return bool(torch.equal(highest, lowest))


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the group of torchrun (NCCL on GPUs, gloo otherwise), or be alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, pick_device(device))
        return
    chosen = pick_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(distributed.get_rank(), size, chosen)
    finally:
        distributed.destroy_process_group()
