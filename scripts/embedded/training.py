"""The one small training loop behind the embedded networks. CPU, bfloat16, one core is enough.

Under `torchrun` the processes share every step: each takes its own batch and gradients are averaged.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from molmoact_data.errors import UserError
from scripts.embedded.frame_shards import FrameArrays, read_shard

logger = logging.getLogger(__name__)
Loss = Callable[[nn.Module, FrameArrays, torch.Generator], Tensor]
"""Model, one batch, randomness for augmentation -> scalar."""


@dataclass(frozen=True)
class FitConfig:
    """One-cycle AdamW with an exponential average of the weights."""

    steps: int
    batch_size: int = 48
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup_steps: int = 100
    average_decay: float = 0.995
    seed: int = 0
    log_every: int = 50
    save_every: int = 400


def open_shards(root: Path, split: str) -> list[FrameArrays]:
    paths = sorted((root / split).glob("shard_*"))
    if not paths:
        raise UserError(
            f"no rendered frames under {root / split}. Make them with: "
            f"python scripts/render_dataset.py {root} --split {split}"
        )
    return [read_shard(path) for path in paths]


def select(arrays: FrameArrays, rows: NDArray[np.intp]) -> FrameArrays:
    return FrameArrays(**{name: array[rows] for name, array in vars(arrays).items()})


def concatenate(parts: Sequence[FrameArrays]) -> FrameArrays:
    names = FrameArrays.__dataclass_fields__
    return FrameArrays(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})


def shuffled_batches(
    root: Path, batch_size: int, keep: Callable[[FrameArrays], NDArray[np.bool_]], seed: int
) -> Iterator[FrameArrays]:
    """Endless epochs over the training rows that `keep` selects, in a new order each time.

    Shards are listed anew for every epoch, so that rendering may go on meanwhile.
    """
    rng = np.random.default_rng(seed)
    while True:
        shards = open_shards(root, "train")
        rows = [np.flatnonzero(keep(shard)) for shard in shards]
        numbered = [np.stack([np.full(len(r), s), r], axis=1) for s, r in enumerate(rows)]
        index = rng.permutation(np.concatenate(numbered))
        for start in range(0, len(index) - batch_size + 1, batch_size):
            chosen = index[start : start + batch_size]
            of_shard = {int(s): chosen[chosen[:, 0] == s, 1] for s in np.unique(chosen[:, 0])}
            yield concatenate([select(shards[s], np.sort(r)) for s, r in of_shard.items()])


def fit(
    model: nn.Module, loss: Loss, batches: Iterator[FrameArrays], config: FitConfig, output: Path
) -> nn.Module:
    """Train in place; the averaged weights are returned and written to `output` now and then."""
    model.train().to(memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(config.seed)
    running = 0.0
    for step in range(1, config.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config)
        value = loss(model, next(batches), generator)
        if not torch.isfinite(value):
            raise FloatingPointError(f"loss is {value.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        _average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        _update_average(average, model, min(config.average_decay, step / (step + 10)))
        running += (float(value.detach()) - running) / min(step, config.log_every)
        if _is_first() and step % config.log_every == 0:
            speed = step * config.batch_size / (time.perf_counter() - start)
            logger.info("step %d loss %.4f at %.0f frames/s", step, running, speed)
        if _is_first() and (step % config.save_every == 0 or step == config.steps):
            save_weights(average, output)
    return average.eval()


def start_processes() -> int:
    """Join the others where `torchrun` started several; returns this process's number."""
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
        return dist.get_rank()
    return 0


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _average_gradients(model: nn.Module) -> None:
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def learning_rate_factor(step: int, config: FitConfig) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < config.warmup_steps:
        return step / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def save_weights(model: nn.Module, path: Path) -> None:
    """Half precision safetensors, written beside and renamed."""
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous().clone()
        for name, value in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(state, partial)
    partial.replace(path)


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Inverse of `save_weights`, to half precision; strict."""
    stored = load_file(path)
    model.load_state_dict({n: v.float() if v.is_floating_point() else v for n, v in stored.items()})
    return model


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)
