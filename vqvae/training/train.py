"""Train a depth VQ-VAE: one process or torchrun, resumable to the bit on a CPU.

A run's folder: `config.json`, `data/` (the prepared maps), `metrics.jsonl`, `state.pt` (to resume),
`sheets/` (pictures), and `model.safetensors`, the best checkpoint so far by held-out squared error.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from molmoact_data.config import as_dict
from molmoact_data.errors import UserError
from molmoact_data.processes import World, join_world
from molmoact_data.runs import MetricsLog, StopRequest, Wandb, held, stop_on_signal
from vqvae import checkpoint as checkpoint_io
from vqvae.config import TrainConfig
from vqvae.depth import data
from vqvae.evaluate import ALL, evaluate, reconstruct, write_sheet
from vqvae.recipe import Recipe
from vqvae.training import folder as run_folder
from vqvae.training.learner import Learner

logger = logging.getLogger(__name__)
_SHEET_ROWS = 6


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run ended with."""

    step: int
    num_steps: int
    best: dict[str, Any] | None
    """Held-out numbers of the best checkpoint; None before the first evaluation."""
    stopped_by_signal: bool
    exit_code: int = 0
    """Of the command: 128 + the signal where one stopped it."""


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """Linear up over `lr_warmup_steps`, then a cosine down to a hundredth of the peak."""
    if step < config.lr_warmup_steps:
        return config.lr * (step + 1) / config.lr_warmup_steps
    progress = (step - config.lr_warmup_steps) / max(1, num_steps - config.lr_warmup_steps)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def batch_rows(step: int, num_maps: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """Which maps step `step` trains on: each epoch a new order, a function of the seed alone."""
    epoch, position = divmod(step, num_maps // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(num_maps)
    return order[position * batch_size : (position + 1) * batch_size]


def to_range(maps: Tensor, recipe: Recipe) -> Tensor:
    """uint8 [N,S,S] -> float32 [N,1,S,S] on the same device; `recipe.to_encoder_range` in torch."""
    unit = maps[:, None].float() / 255
    return unit if recipe.range == "unit" else (unit - 0.5) / 0.5


def count_steps(config: TrainConfig, num_maps: int) -> int:
    """Optimizer steps of the whole run."""
    per_epoch = num_maps // config.batch_size
    if per_epoch == 0:
        raise UserError(
            f"{num_maps} training maps are less than one batch of {config.batch_size}; "
            "lower --batch-size or give more data."
        )
    steps = per_epoch * config.epochs
    steps = steps if config.max_steps is None else min(steps, config.max_steps)
    if steps <= config.quantizer.warmup_steps:
        raise UserError(
            f"{steps} steps do not get past the {config.quantizer.warmup_steps} warm-up steps of the "
            "quantiser; give more --epochs or more data."
        )
    return steps


class Trainer:
    """The moving parts of a run, so that saving and restoring them is one neighbourhood."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        torch.manual_seed(config.seed)
        self.config, self.world = config, world
        learner = Learner(config.geometry, config.quantizer, distributed=world.size > 1)
        # channels-last: twice as fast on a CPU, and what tensor cores want.
        self.learner = learner.to(world.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(
            self.learner.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.forward: nn.Module = self.learner
        if world.size > 1:
            self.forward = nn.parallel.DistributedDataParallel(
                self.learner, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self.step = 0
        self.best: dict[str, Any] | None = None
        precision = config.precision
        self.bf16 = precision == "bf16" or (precision == "auto" and world.device.type == "cuda")

    def train_step(self, maps_u8: NDArray[np.uint8], num_steps: int) -> dict[str, float]:
        """One step on this process's share of the batch; the losses are means over processes."""
        config, step = self.config, self.step
        # Randomness (k-means, revived codes) is a function of the step, so a resume needs no saved state.
        torch.manual_seed((config.seed * 1_000_003 + step) * self.world.size + self.world.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps, config)
        x = to_range(torch.from_numpy(maps_u8).to(self.world.device), config.recipe)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16):
            losses = self.forward(x, quantize=step >= config.quantizer.warmup_steps)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), config.grad_clip)
        values = {k: float(v.detach()) for k, v in losses.items()} | {"grad_norm": float(norm)}
        if not math.isfinite(values["grad_norm"]):
            raise UserError(
                f"the gradient is not finite at step {step}; lower --lr. Losses: {values}"
            )
        self.optimizer.step()
        self.step += 1
        return self._mean_over_processes(values)

    def _mean_over_processes(self, values: dict[str, float]) -> dict[str, float]:
        if self.world.size == 1:
            return values
        stacked = torch.tensor(list(values.values()), dtype=torch.float64).to(self.world.device)
        torch.distributed.all_reduce(stacked)
        return dict(zip(values, (stacked / self.world.size).tolist(), strict=True))

    def save(self, path: Path) -> None:
        """Everything that the next step depends on."""
        state = {
            "step": self.step,
            "best": self.best,
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        run_folder.save_state(path, state)

    def restore(self, path: Path) -> None:
        """The inverse of `save`."""
        state = run_folder.load_state(path, self.world.device)
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]


def train(
    config: TrainConfig, output: Path, *, resume: bool, overwrite: bool = False
) -> TrainResult:
    """Run or continue a training in the folder `output`. SIGTERM or Ctrl-C saves and returns."""
    with join_world(config.device) as world, held(output, world):
        if world.is_main:
            run_folder.claim(output, config, resume=resume, overwrite=overwrite)
            run_folder.prepare_data(output, config)
        world.barrier()
        # A function of its own, so that its network is gone before the process group is: the other order
        # can hang in the destructor of DistributedDataParallel.
        with stop_on_signal() as stop:
            return _run(config, output, world, stop)


def _run(config: TrainConfig, output: Path, world: World, stop: StopRequest) -> TrainResult:
    console = Console(stderr=True, quiet=not world.is_main)
    depth_set = data.read_cache(output / run_folder.DATA_DIR)
    train_rows, held_out = depth_set.split(config.hold_out_fraction)
    held_out = _spread(held_out, config.max_eval_maps)
    num_steps = count_steps(config, len(train_rows))
    trainer = Trainer(config, world)
    if (output / run_folder.STATE_FILE).is_file():  # of the run that is resumed
        trainer.restore(output / run_folder.STATE_FILE)
    console.print(_plan_line(trainer, depth_set, len(train_rows), num_steps), soft_wrap=True)
    wandb = Wandb(config.wandb_project, config=as_dict(config)) if config.wandb_project else None
    with (
        MetricsLog(output, from_step=trainer.step, wandb=wandb)
        if world.is_main
        else nullcontext() as log,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("training", total=num_steps, completed=trainer.step)
        stopping = False
        while trainer.step < num_steps and not stopping:
            started = time.perf_counter()
            rows = batch_rows(trainer.step, len(train_rows), config.batch_size, config.seed)
            mine = train_rows[np.sort(rows[world.rank :: world.size])]
            losses = trainer.train_step(depth_set.maps_NSS[mine], num_steps)
            if log:
                log.write(trainer.step, {**losses, "seconds": time.perf_counter() - started})
            progress.update(task, completed=trainer.step)
            last = trainer.step == num_steps
            stopping = world.any(stop.requested)
            if log and _evaluation_is_due(trainer, last=last):
                numbers = _evaluate(trainer, depth_set, held_out, output)
                log.write(trainer.step, {"held_out": numbers})
                console.print(_eval_line(trainer.step, numbers[ALL]), soft_wrap=True)
            if world.is_main and (last or stopping or trainer.step % config.save_every == 0):
                trainer.save(output / run_folder.STATE_FILE)
    assert world.agrees(trainer.learner.codebooks()), "the codebooks of the processes came apart"
    stopped = trainer.step < num_steps
    return TrainResult(
        trainer.step, num_steps, trainer.best, stopped, stop.exit_code if stopped else 0
    )


def _evaluation_is_due(trainer: Trainer, *, last: bool) -> bool:
    started = trainer.step > trainer.config.quantizer.warmup_steps
    return started and (last or trainer.step % trainer.config.eval_every == 0)


def _spread(rows: NDArray[np.int64], limit: int | None) -> NDArray[np.int64]:
    """At most `limit` rows; runs of neighbours are kept apart evenly over the whole."""
    if limit is None or len(rows) <= limit:
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).round().astype(int)]


def _evaluate(
    trainer: Trainer, depth_set: data.DepthSet, held_out: NDArray[np.int64], output: Path
) -> dict[str, dict[str, Any]]:
    """Measure on held-out maps, write the sheet, keep the checkpoint where it is the best so far."""
    config = trainer.config
    network = trainer.learner.export().eval()
    numbers = evaluate(network, depth_set, held_out, config.recipe, batch_size=16)
    pictured = depth_set.maps_NSS[_spread(held_out, _SHEET_ROWS)]
    sheet = output / run_folder.SHEETS_DIR / f"step-{trainer.step:06d}.png"
    write_sheet(sheet, reconstruct(network, pictured, config.recipe))
    if trainer.best is None or numbers[ALL]["mse"] < trainer.best["mse"]:
        trainer.best = {"step": trainer.step, **numbers[ALL]}
        made = {"config": as_dict(config), "step": trainer.step, "held_out": numbers}
        best = checkpoint_io.Checkpoint(network, config.recipe, "Apache-2.0", made)
        checkpoint_io.save_ours(output / checkpoint_io.MODEL_FILE, best)
    trainer.learner.train()
    return numbers


def _plan_line(trainer: Trainer, depth_set: data.DepthSet, num_train: int, num_steps: int) -> str:
    size = sum(p.numel() for p in trainer.learner.parameters()) / 1e6
    geometry = trainer.config.geometry
    return (
        f"{num_train} maps to train on, {len(depth_set) - num_train} held out; {size:.2f} M parameters, "
        f"{geometry.num_tokens} tokens per image; batch {trainer.config.batch_size} over "
        f"{trainer.world.size} process(es) on {trainer.world.device}; steps {trainer.step} to {num_steps}"
    )


def _eval_line(step: int, numbers: dict[str, Any]) -> str:
    return (
        f"step {step}: held-out mse {numbers['mse']:.5f}, AbsRel {numbers['abs_rel']:.3f}, "
        f"codes used {numbers['codes_used']}, perplexity {numbers['perplexity']:.1f}"
    )
