"""The training run. `train` reads from top to bottom; everything it calls is a function beside its owner.

molmoact train --stage finetune --checkpoint allenai/MolmoAct-7B-D-0812 --data out/my_robot --output-path runs/a
torchrun --nproc-per-node 8 -m cli train --stage finetune ...      # the same command, many processes
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from molmoact_data import runs, schema
from molmoact_data.errors import UserError
from molmoact_data.files.folders import write_json
from molmoact_data.files.kinds import FINAL_DIR
from molmoact_data.processes import World, join_world
from molmoact_train import checkpoint
from molmoact_train.checkpoint import TrainerState
from molmoact_train.config import TrainConfig
from molmoact_train.data.collate import StepBatch, check_batch_arithmetic, step_batches
from molmoact_train.data.dataset import TrainingData, open_eval_data, open_training_data
from molmoact_train.evaluation import evaluate
from molmoact_train.families.base import Family
from molmoact_train.families.registry import family_for
from molmoact_train.folders import final_export, statistics as norm_stats
from molmoact_train.monitoring.metrics import MetricsLog
from molmoact_train.monitoring.progress import log_file, show_progress
from molmoact_train.optim import (
    Schedule,
    build_optimizer,
    clip_by_group,
    set_rates,
    trained_parameters,
)
from molmoact_train.parallel import autocast, build_model

logger = logging.getLogger(__name__)

WATCHED = (
    "train/loss",
    "train/flow_loss",
    "train/accuracy",
    "grad_norm/llm",
    "lr/llm",
    "speed/samples_per_second",
    "memory/peak_gib",
)
"""Of the numbers in metrics.jsonl, those that are logged too, beside all of `eval/`."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    finished: bool
    """False = stopped by a signal; continue with --resume."""
    folder: Path
    """The final export, or the checkpoint to resume from."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last report."""
    signal: int = 0
    """The signal that stopped it; 0 = none."""


def train(
    config: TrainConfig, *, resume: bool = False, overwrite: bool = False, device: str = "auto"
) -> Outcome:
    """Train as configured and export. Raises `UserError` before any work where the input is wrong."""
    run = Path(config.output_path)
    with (
        join_world(device, group_of_one=True) as world,
        runs.stop_on_signal() as stop,
        runs.held(run, world),
    ):
        # Input first: a wrong path must not cost the loading of 32 GB.
        check_batch_arithmetic(config.global_batch_size, config.device_batch_size, world.size)
        config, model_folder = checkpoint.pinned(config, resume=resume)
        family = family_for(config.family, model_folder)
        encoder = family.encoder(model_folder, config, training=True)
        data = open_training_data(config, family, encoder)
        plain = family.encoder(model_folder, config, training=False)
        held_out = open_eval_data(config, family, plain)
        found = norm_stats.merged(config, model_folder, data.sources)
        statistics = family.statistics(found, config, model_folder, data.sources)
        resume_from = _claim(run, config, world, resume=resume, overwrite=overwrite)
        if world.is_main:
            write_json(run / schema.STATISTICS_FILE, statistics)

        # Model and optimiser.
        logger.info("loading %s; the first step follows", config.checkpoint)
        built = build_model(config, model_folder, family, world)
        model = built.model
        optimizer = build_optimizer(model, family, config)
        schedule = Schedule(config.lr_scheduler, config.warmup, config.duration)
        state = TrainerState(0, 0, world.size, config.seed, config.data_seed)
        if resume_from is not None:
            state = checkpoint.load_checkpoint(resume_from, model, optimizer, config, world)
            logger.info("resuming %s after step %d", run, state.step)

        # Go.
        batches = step_batches(
            data,
            range(state.step, config.duration),
            global_batch_size=config.global_batch_size,
            device_batch_size=config.device_batch_size,
            rank=world.rank,
            world_size=world.size,
            num_workers=config.num_workers,
        )
        with (
            log_file(run, is_main=world.is_main),
            _report(run, config, world, state.step) as report,
            show_progress(state.step, config.duration, is_main=world.is_main) as progress,
        ):
            clock = time.perf_counter()
            for batch in batches:
                step = state.step + 1
                is_last = step == config.duration
                is_logged = is_last or step % config.log_interval == 0

                # One update.
                rates = set_rates(optimizer, schedule, step)
                done = train_step(
                    family, model, optimizer, batch, config, world, step, accuracy=is_logged
                )
                state = replace(
                    state,
                    step=step,
                    position=step * config.global_batch_size,
                    world_size=world.size,
                    too_long=state.too_long + int(done["train/too_long"]),
                )

                # Say what happened.
                progress.advance(step, done)
                if is_logged:
                    done |= {f"lr/{group}": rate for group, rate in rates.items()}
                    done |= _throughput(done, time.perf_counter() - clock, world)
                    report.write(step, done, progress.line(step))
                clock = time.perf_counter()

                # Held-out evaluation.
                if held_out is not None and (is_last or step % config.eval_interval == 0):
                    report.write(step, run_evaluation(family, model, held_out, config, world))
                    clock = time.perf_counter()

                # Save: at the interval, at the end, and when asked to stop.
                stopping = world.any(stop.requested)
                if is_last or stopping or step % config.save_interval == 0:
                    saved = checkpoint.save_checkpoint(
                        run, model, optimizer, state, config, statistics, world
                    )
                    clock = time.perf_counter()
                if stopping and not is_last:
                    logger.warning(
                        "stopped by a signal after step %d; continue with --resume", step
                    )
                    return Outcome(
                        step, finished=False, folder=saved, metrics=report.last, signal=stop.number
                    )
            if state.too_long:
                logger.warning("%d samples were longer than seq_len and left out", state.too_long)
            final = final_export.write(
                run / FINAL_DIR, built, config, model_folder, statistics, world
            )
            return Outcome(state.step, finished=True, folder=final, metrics=report.last)


def train_step(
    family: Family,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: StepBatch,
    config: TrainConfig,
    world: World,
    step: int,
    *,
    accuracy: bool,
) -> dict[str, float]:
    """One update from one global batch; raises before the optimiser steps if anything is not finite.

    The gradient is that of the weighted mean over all tokens of all processes: FSDP averages gradients
    over processes, so each divides by its share of the total weight.
    """
    seed_step(config.seed, step, world.rank)
    counts = _counts(batch)
    totals = world.sum(torch.tensor(list(counts.values()), dtype=torch.float64))
    weights = list(batch.micro_batches[0].weights)
    divisors = {name: float(totals[i]) / world.size for i, name in enumerate(weights)}
    terms, sums = Totals(), Totals()
    for micro_batch in batch.micro_batches:
        with autocast(config, world.device):
            done = family.losses(
                model, micro_batch, world.device, config, divisors, accuracy=accuracy
            )
        done.loss.backward()
        terms.add(done.terms)
        sums.add(done.sums)
    losses = {name: value / world.size for name, value in terms.over(world).items()}
    _stop_unless_finite(losses["loss"], "loss", step, batch)
    members = trained_parameters(model, family)
    norms = {g: float(n) for g, n in clip_by_group(members, config.max_grad_norm).items()}
    for group, norm in norms.items():
        _stop_unless_finite(norm, f"gradient of the {group} group", step, batch)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    main_weight = float(totals[0])
    return {
        **{f"train/{name}": value for name, value in losses.items()},
        **{f"grad_norm/{group}": norm for group, norm in norms.items()},
        **dict(zip(counts, totals.tolist(), strict=True)),
        **{f"train/{name}": value / main_weight for name, value in sums.over(world).items()},
    }


class Totals:
    """Named scalars, added up in float64 on the CPU over batches, then over processes."""

    def __init__(self) -> None:
        self._values: dict[str, torch.Tensor] = {}

    def add(self, scalars: Mapping[str, torch.Tensor]) -> None:
        """Add one batch's; every batch must have the same names."""
        for name, value in scalars.items():
            before = self._values.get(name, torch.zeros((), dtype=torch.float64))
            self._values[name] = before + value.detach().double().cpu()

    def over(self, world: World) -> dict[str, float]:
        """The sums over all processes."""
        if not self._values:
            return {}
        summed = world.sum(torch.stack(list(self._values.values())))
        return dict(zip(self._values, summed.tolist(), strict=True))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout masks are a function of seed, step and process, so that a resumed run draws the same ones."""
    torch.manual_seed((seed * 1_000_003 + step) * 65_537 + rank)


def _counts(batch: StepBatch) -> dict[str, float]:
    """What this process contributes to the sums that every process needs; the loss weights come first."""
    batches = batch.micro_batches
    weights = [b.weights for b in batches]
    return {
        **{f"batch/{name}": sum(w[name] for w in weights) for name in weights[0]},
        "batch/tokens": float(sum(b.num_tokens for b in batches)),
        "batch/padded_tokens": float(sum(b.num_padded for b in batches)),
        "batch/samples": float(sum(len(b.positions) for b in batches)),
        "train/too_long": float(len(batch.too_long)),
    }


def _stop_unless_finite(value: float, what: str, step: int, batch: StepBatch) -> None:
    if math.isfinite(value):
        return
    positions = [p for b in batch.micro_batches for p in b.positions]
    raise UserError(
        f"the {what} is {value} at step {step} (positions {min(positions)}..{max(positions)} on this process). "
        "Nothing was updated, and the checkpoints before it are intact. Lower the learning rates, look at the "
        "data at these positions, or continue from an earlier checkpoint."
    )


def run_evaluation(
    family: Family, model: nn.Module, held_out: TrainingData, config: TrainConfig, world: World
) -> dict[str, float]:
    """Held-out numbers with dropout off."""
    model.eval()
    try:
        forced = evaluate.teacher_forced(family, model, held_out, config, world)
        run = Path(config.output_path)
        return forced | evaluate.generated(family, model, held_out, config, world, run=run)
    finally:
        model.train()


def _throughput(done: dict[str, float], seconds: float, world: World) -> dict[str, float]:
    """Samples and real tokens per second of this step, and the peak of GPU memory."""
    found = {
        "speed/seconds_per_step": seconds,
        "speed/samples_per_second": done["batch/samples"] / seconds,
        "speed/tokens_per_second": done["batch/tokens"] / seconds,
    }
    if world.device.type == "cuda":
        found["memory/peak_gib"] = torch.cuda.max_memory_allocated(world.device) / 2**30
    return found


def _claim(
    run: Path, config: TrainConfig, world: World, *, resume: bool, overwrite: bool
) -> Path | None:
    """Rank 0 claims the folder; the others learn what was decided (or that it failed)."""
    decided: list[Path | UserError | None] = [None]
    if world.is_main:
        try:
            decided = [checkpoint.claim_run(run, config, resume=resume, overwrite=overwrite)]
        except UserError as error:
            decided = [error]
    world.broadcast(decided)
    if isinstance(decided[0], UserError):
        raise decided[0]
    return decided[0]


class _Report:
    """Rank 0 writes and prints; the others only remember."""

    def __init__(self, log: MetricsLog | None, duration: int) -> None:
        self.log = log
        self.duration = duration
        self.last: dict[str, float] = {}

    def write(self, step: int, values: dict[str, float], clock: str = "") -> None:
        """All numbers to the file; those that a person watches to the log, with the time."""
        self.last = {**self.last, **values}
        if self.log is None:
            return
        self.log.write(step, values)
        watched = {n: v for n, v in values.items() if n in WATCHED or n.startswith("eval/")}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in watched.items())
        logger.info("[step %d/%d] %s%s", step, self.duration, shown, f", {clock}" if clock else "")
        if any(name.startswith("eval/") for name in values):
            self.log.draw()


@contextmanager
def _report(run: Path, config: TrainConfig, world: World, from_step: int) -> Iterator[_Report]:
    if not world.is_main:
        yield _Report(None, config.duration)
        return
    with MetricsLog(run, config, from_step=from_step) as log:
        yield _Report(log, config.duration)
