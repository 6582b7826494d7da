"""Samples -> micro-batches: sorted by length, padded only to the longest of the few that run together.

Nothing is padded to a fixed size, so no attention mask is needed (padding is on the right and causal
attention never looks there). Letters as in `dataset`; B samples of a micro-batch.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from molmoact_data.errors import UserError
from molmoact_train.data.dataset import Sample, TooLong, TrainingData
from molmoact_train.data.mixture import positions_of

PADDING = -1


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass."""

    inputs: dict[str, torch.Tensor]
    """Keyword arguments of the model: ids, targets, weights [B, S], crops, slots, windows."""
    parts_BS: torch.Tensor
    """int8, index into `dataset.PARTS` of each target."""
    positions: tuple[int, ...]

    @property
    def loss_weight(self) -> float:
        """Sum of the loss weights."""
        return float(self.inputs["loss_weights"].sum())

    @property
    def real_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.inputs["input_ids"] >= 0).sum())

    def inputs_on(self, device: torch.device) -> dict[str, torch.Tensor]:
        """The inputs on a device."""
        return {name: t.to(device, non_blocking=True) for name, t in self.inputs.items()}


@dataclass(frozen=True)
class StepBatch:
    """What one process runs for one optimiser step."""

    micro_batches: tuple[MicroBatch, ...]
    too_long: tuple[TooLong, ...]


def collate(samples: Sequence[Sample]) -> MicroBatch:
    """Right-padded batch; ids of padding are -1, crop slots without a crop are -1."""
    crops, slots, first = [], [], 0
    for sample in samples:
        crops.append(sample.crops_UPC)
        slots.append(sample.crop_slots + first)
        first += len(sample.crops_UPC)
    inputs = {
        "input_ids": _pad([s.input_tokens for s in samples], PADDING),
        "targets": _pad([s.target_tokens for s in samples], PADDING),
        "loss_weights": _pad([s.loss_weights for s in samples], 0.0),
        "images": torch.from_numpy(np.concatenate(crops)),
        "crop_slots": _pad(slots, PADDING),
        "image_masks": _pad([s.image_masks for s in samples], float(PADDING)),
        "pooled_patches_idx": _pad([s.pooled_patches_idx for s in samples], PADDING),
    }
    return MicroBatch(
        inputs, _pad([s.parts for s in samples], 0), tuple(s.position for s in samples)
    )


def _pad(arrays: Sequence[NDArray[Any]], value: float) -> torch.Tensor:
    longest = max(len(array) for array in arrays)
    out = np.full((len(arrays), longest, *arrays[0].shape[1:]), value, dtype=arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out)


def split_by_length(items: Sequence[Sample | TooLong], num_micro_batches: int) -> StepBatch:
    """A process's share of a global batch as exactly `num_micro_batches` batches of similar length.

    Every process must run the same number of passes, so a share that lost over-long samples is spread
    thinner; where too few are left, the shortest runs again with weight 0.
    """
    kept = sorted(
        (i for i in items if isinstance(i, Sample)), key=lambda s: (s.num_tokens, s.position)
    )
    too_long = tuple(i for i in items if isinstance(i, TooLong))
    if not kept:
        worst = max(too_long, key=lambda t: t.num_tokens)
        raise UserError(
            f"all {len(too_long)} samples of a batch are longer than seq_len; {worst.where} has "
            f"{worst.num_tokens} tokens. Raise --seq-len or use fewer images."
        )
    groups = [list(group) for group in np.array_split(np.arange(len(kept)), num_micro_batches)]
    batches = [
        collate([kept[i] for i in group]) if group else without_loss(collate(kept[:1]))
        for group in groups
    ]
    return StepBatch(tuple(batches), too_long)


def without_loss(batch: MicroBatch) -> MicroBatch:
    """The same pass, contributing nothing."""
    zeros = torch.zeros_like(batch.inputs["loss_weights"])
    return MicroBatch({**batch.inputs, "loss_weights": zeros}, batch.parts_BS, ())


class _Positions(Sampler[int]):
    """The positions of one process, from one step to another, in order."""

    def __init__(self, steps: range, global_batch_size: int, rank: int, world_size: int) -> None:
        self._steps = steps
        self._arguments = (global_batch_size, rank, world_size)

    def __iter__(self) -> Iterator[int]:
        for step in self._steps:
            yield from positions_of(step, *self._arguments)


def _single(items: list[Sample | TooLong]) -> Sample | TooLong:
    return items[0]


def _leave_signals_to_the_loop(_: int) -> None:
    """Ctrl-C and torchrun signal the whole group; a worker that died would keep the loop from saving."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def step_batches(
    data: TrainingData,
    steps: range,
    *,
    global_batch_size: int,
    device_batch_size: int,
    rank: int,
    world_size: int,
    num_workers: int,
) -> Iterator[StepBatch]:
    """The batches of `steps` (0-based). Workers decode ahead; what they yield depends on positions alone."""
    share = global_batch_size // world_size
    loader = DataLoader(
        data,
        sampler=_Positions(steps, global_batch_size, rank, world_size),
        batch_size=1,
        collate_fn=_single,
        num_workers=num_workers,
        prefetch_factor=max(2, 2 * share // num_workers) if num_workers else None,
        # Forking a process that runs torch threads and a tokenizer can deadlock.
        multiprocessing_context="spawn" if num_workers else None,
        worker_init_fn=_leave_signals_to_the_loop if num_workers else None,
    )
    items: list[Sample | TooLong] = []
    for item in loader:
        items.append(item)
        if len(items) == share:
            yield split_by_length(items, share // device_batch_size)
            items = []


def check_batch_arithmetic(global_batch_size: int, device_batch_size: int, world_size: int) -> int:
    """Passes per process and step. Raises `UserError` where the batch does not divide."""
    if global_batch_size % (device_batch_size * world_size):
        raise UserError(
            f"global batch {global_batch_size} is not a multiple of device batch {device_batch_size} x "
            f"{world_size} processes; choose --device-batch-size so that it divides."
        )
    return global_batch_size // (device_batch_size * world_size)
