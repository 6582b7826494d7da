"""Micro-batches: padding and order change no loss, and workers change nothing at all."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from made_training import open_training_data

from molmoact_data.errors import UserError
from molmoact_train.config import resolve
from molmoact_train.data.base import TooLong
from molmoact_train.data.collate import (
    check_batch_arithmetic,
    split_by_length,
    step_batches,
)
from molmoact_train.data.dataset import TrainingData
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.debug.tiny import TinySize, tiny_config, tiny_processor
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.families.molmoact.samples import MicroBatch, MolmoActSample, collate

SIZE = TinySize(width=32, layers=1, vit_width=16, vit_layers=2, image_size=56)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    folder = tmp_path_factory.mktemp("data")
    write_debug_dataset(folder, episodes=3, frames=5, size=56, chunk_size=2)
    given = {"checkpoint": "c", "data": [str(folder)], "output_path": "s", "img_aug": True}
    return open_training_data(resolve("debug", given), tiny_processor(SIZE))


def samples(data: TrainingData, count: int) -> list[MolmoActSample]:
    return [item for item in (data[p] for p in range(count)) if isinstance(item, MolmoActSample)]


def loss_sum(model: MolmoActForActionReasoning, batch: MicroBatch) -> torch.Tensor:
    return model(**batch.inputs, loss_divisor=1.0).loss


@pytest.mark.parametrize("variant", ["D", "O"])
def test_a_padded_batch_has_the_loss_of_its_samples(data: TrainingData, variant: str) -> None:
    """The independent answer runs every sample alone, where nothing is padded."""
    torch.manual_seed(0)
    model = MolmoActForActionReasoning(tiny_config(SIZE, variant=variant)).eval()  # type: ignore[arg-type]
    items = samples(data, 4)
    assert len({item.num_tokens for item in items}) > 1
    with torch.no_grad():
        together = loss_sum(model, collate(items))
        alone = sum(loss_sum(model, collate([item])) for item in items)
    assert together.item() == pytest.approx(float(alone), rel=1e-5)


def test_batches_are_of_similar_length_and_complete(data: TrainingData) -> None:
    items = samples(data, 6)
    found = split_by_length(items, 3, data.encoder).micro_batches
    assert sorted(p for b in found for p in b.positions) == [i.position for i in items]
    longest = [b.inputs["input_ids"].shape[1] for b in found]
    assert longest == sorted(longest)
    real = sum(b.num_tokens for b in found)
    assert real == sum(i.num_tokens for i in items)
    unsorted = 3 * 2 * max(i.num_tokens for i in items)
    assert sum(b.inputs["input_ids"].numel() for b in found) < unsorted


def test_lost_samples_leave_the_number_of_passes_alone(data: TrainingData) -> None:
    (item,) = samples(data, 1)
    lost = [TooLong(5, "episode 1 frame 2", 9000), TooLong(6, "episode 1 frame 3", 9001)]
    found = split_by_length([item, *lost], 3, data.encoder)
    assert len(found.micro_batches) == 3
    assert sum(b.weights["loss_tokens"] for b in found.micro_batches) == item.loss_weights.sum()
    assert len(found.too_long) == 2
    with pytest.raises(UserError, match=r"episode 1 frame 3 has 9001 tokens"):
        split_by_length(lost, 2, data.encoder)


def test_batch_arithmetic() -> None:
    assert check_batch_arithmetic(16, 2, 4) == 2
    with pytest.raises(UserError, match="16 is not a multiple of device batch 3 x 2 processes"):
        check_batch_arithmetic(16, 3, 2)


def stream(data: TrainingData, steps: range, num_workers: int, world: int = 1) -> list[MicroBatch]:
    found = []
    for rank in range(world):
        batches = step_batches(
            data, steps, global_batch_size=4, device_batch_size=2, rank=rank, world_size=world,
            num_workers=num_workers,
        )  # fmt: skip
        found += [batch for step in batches for batch in step.micro_batches]
    return found


def test_workers_and_a_later_start_give_the_same_batches(data: TrainingData) -> None:
    plain = stream(data, range(3), 0)
    in_worker = stream(data, range(2), 1) + plain[4:]  # starting one costs seconds; one is enough
    for found in (in_worker, plain[:2] + stream(data, range(1, 3), 0)):
        assert [b.positions for b in found] == [b.positions for b in plain]
        for one, two in zip(found, plain, strict=True):
            for name, tensor in two.inputs.items():
                assert torch.equal(one.inputs[name], tensor), name


def test_processes_see_the_same_global_batches(data: TrainingData) -> None:
    one, two = stream(data, range(2), 0), stream(data, range(2), 0, world=2)
    assert sorted(p for b in one for p in b.positions) == sorted(
        p for b in two for p in b.positions
    )
    assert np.unique([p for b in two for p in b.positions]).tolist() == list(range(8))


PONG = """
from molmoact_train.data.collate import _leave_signals_to_the_loop
_leave_signals_to_the_loop(0)
while True:
    print(input(), flush=True)
"""


def test_a_worker_outlives_the_signal_to_the_group_and_not_the_loops_own() -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", PONG], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        for sent in (None, signal.SIGINT, signal.SIGTERM):
            if sent is not None:
                worker.send_signal(sent)
            for number in range(3):
                print(number, file=worker.stdin, flush=True)
                assert worker.stdout.readline() == f"{number}\n", sent
        worker.terminate()
        assert worker.wait(60) == -signal.SIGTERM
    finally:
        worker.kill()
