"""The stream of samples -> steps of micro-batches: sorted by length, so that little is padded."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import DataLoader, Sampler

from molmoact_data.errors import UserError
from molmoact_train.data.base import Batch, Encoder, Sample, TooLong
from molmoact_train.data.dataset import TrainingData
from molmoact_train.data.mixture import positions_of


@dataclass(frozen=True)
class StepBatch:
    """What one process runs for one optimiser step."""

    micro_batches: tuple[Batch, ...]
    too_long: tuple[TooLong, ...]


def split_by_length(
    items: Sequence[Sample | TooLong], num_micro_batches: int, encoder: Encoder
) -> StepBatch:
    """A process's share of a global batch as exactly `num_micro_batches` batches of similar length.

    Every process must run the same number of passes, so a share that lost over-long samples is spread
    thinner; where too few are left, the shortest runs again with weight 0.
    """
    kept = sorted(
        (i for i in items if not isinstance(i, TooLong)), key=lambda s: (s.num_tokens, s.position)
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
        encoder.collate([kept[i] for i in group])
        if group
        else encoder.collate(kept[:1]).without_loss()
        for group in groups
    ]
    return StepBatch(tuple(batches), too_long)


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
    """Ctrl-C and schedulers signal the whole group; a worker that died would keep the loop from saving.

    The second SIGTERM ends the worker: it comes from the loop itself, which at its end waits for its workers for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


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
            yield split_by_length(items, share // device_batch_size, data.encoder)
            items = []


def check_batch_arithmetic(global_batch_size: int, device_batch_size: int, world_size: int) -> int:
    """Passes per process and step. Raises `UserError` where the batch does not divide."""
    if global_batch_size % (device_batch_size * world_size):
        raise UserError(
            f"global batch {global_batch_size} is not a multiple of device batch {device_batch_size} x "
            f"{world_size} processes; choose --device-batch-size so that it divides."
        )
    return global_batch_size // (device_batch_size * world_size)
