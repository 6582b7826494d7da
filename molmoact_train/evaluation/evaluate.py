"""Held-out evaluation: what the model gets right, and how far its answers are off in real units.

Two views. Teacher-forced (cheap, many samples): loss and accuracy, by whatever parts the family tells apart.
Generated (a few samples): code accuracy, trace distance in grid units (0..255) and open-loop action error in the
robot's own units against the *recorded* actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from molmoact_data.processes import World
from molmoact_train.config import TrainConfig
from molmoact_train.data.base import Batch
from molmoact_train.data.collate import split_by_length
from molmoact_train.data.dataset import TrainingData, by_group
from molmoact_train.families.base import Family
from molmoact_train.families.measures import summarise_answers
from molmoact_train.monitoring.answers import write_answers
from molmoact_train.parallel import autocast


@torch.no_grad()
def teacher_forced(
    family: Family, model: nn.Module, data: TrainingData, config: TrainConfig, world: World
) -> dict[str, float]:
    """`eval/loss`, `eval/accuracy` and both by part over `eval_samples` held-out samples.

    Where the data have several groups, each is given the same number of samples, so that a small one is as visible
    as a large one, and has losses of its own: `eval/group/NAME/loss`.
    """
    groups = by_group(data)
    samples = -(-config.eval_samples // len(groups))
    sums = {
        name: _scored(family, model, part, samples, config, world) for name, part in groups.items()
    }
    found = family.scores(torch.stack(list(sums.values())).sum(0))
    if len(groups) > 1:
        for name, part_sums in sums.items():
            losses = {k: v for k, v in family.scores(part_sums).items() if k.endswith("loss")}
            found |= {f"eval/group/{name}/{k.removeprefix('eval/')}": v for k, v in losses.items()}
    return found


def _scored(
    family: Family,
    model: nn.Module,
    data: TrainingData,
    samples: int,
    config: TrainConfig,
    world: World,
) -> torch.Tensor:
    """The family's sums over so many samples, added up over all processes."""
    total: torch.Tensor | None = None
    for batch in _eval_batches(data, samples, config, world):
        with autocast(config, world.device):
            sums = family.score(model, batch, world.device)
        total = sums if total is None else total + sums
    assert total is not None, "every process runs at least one pass"
    return world.sum(total)


def _eval_batches(
    data: TrainingData, samples: int, config: TrainConfig, world: World
) -> Iterator[Batch]:
    """This process's share of the samples, the same number of passes everywhere."""
    count = max(samples, world.size)
    share = [data[p] for p in range(world.rank, count, world.size)]
    longest_share = -(-count // world.size)
    passes = -(-longest_share // config.device_batch_size)
    yield from split_by_length(share, passes, data.encoder).micro_batches


@torch.no_grad()
def generated(
    family: Family,
    model: nn.Module,
    data: TrainingData,
    config: TrainConfig,
    world: World,
    *,
    run: Path | None = None,
) -> dict[str, float]:
    """Errors of whole answers on `eval_generate` held-out frames of our record; their pictures are left in `run`.

    Every process generates the same answers, so that the passes of a sharded model stay in step.
    """
    with autocast(config, world.device):
        answers = family.answers(model, data.encoder, data.sources, config)
    if run is not None and world.is_main:
        write_answers(run, answers)
    return summarise_answers(answers)
