"""What a run would do, without doing it: arithmetic, parameters by group, estimates, one rendered sample.

Memory and time are estimates with their assumptions named; nothing is allocated and no weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from molmoact_data.console.tables import Lines, duration, size
from molmoact_data.processes import World
from molmoact_train.config import TrainConfig
from molmoact_train.data.base import TooLong
from molmoact_train.data.collate import check_batch_arithmetic
from molmoact_train.data.dataset import TrainingData, open_eval_data, open_training_data
from molmoact_train.families.base import Family
from molmoact_train.families.registry import family_for
from molmoact_train.folders.statistics import merged
from molmoact_train.optim import count_parameters
from molmoact_train.parallel import compute_dtype, model_without_memory
from molmoact_train.weights import hub_commit, resolve_model_folder

_MEASURED_SAMPLES = 16
_ASSUMED_MFU = 0.4
_PEAK_BF16_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "B200": 2250, "L40S": 362}
"""Dense bf16, from the data sheets."""
_GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """The answer of --dry-run."""

    stage: str
    checkpoint: str
    """The model that it starts from, and the revision where it comes from the Hub."""
    steps: int
    processes: int
    global_batch_size: int
    passes_per_step: int
    tokens_per_step: float
    tokens: Mapping[str, float]
    """Over the first samples of the stream: mean, longest, left out, and what the family measures besides."""
    sources: list[dict[str, Any]]
    held_out_samples: int
    parameters: Mapping[str, tuple[int, int]]
    """(trained, all) by group."""
    memory_gib_per_process: Mapping[str, float]
    hours: float | None
    """On these processes; None where the device's peak is not known."""
    h100_hours: float
    """GPU hours on an H100, for comparison."""
    assumptions: list[str]
    sample: Mapping[str, Any]
    """One rendered sample."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def plan(config: TrainConfig, world: World) -> Plan:
    """Open the data, build the model without memory, and do the arithmetic."""
    passes = check_batch_arithmetic(config.global_batch_size, config.device_batch_size, world.size)
    folder = resolve_model_folder(config.checkpoint, config.checkpoint_revision)
    family = family_for(config.family, folder)
    encoder = family.encoder(folder, config, training=True)
    data = open_training_data(config, family, encoder)
    held_out = open_eval_data(config, family, family.encoder(folder, config, training=False))
    family.statistics(merged(config, folder, data.sources), config, folder, data.sources)
    model, _ = model_without_memory(config, folder, family)
    tokens = measure_tokens(data, family)
    flops = family.flops(model, tokens, config)
    peak = peak_flops(world.device)
    h100 = _PEAK_BF16_TFLOPS["H100"] * 1e12
    h100_seconds = flops * config.global_batch_size / (h100 * _ASSUMED_MFU)
    seconds = (
        flops * config.global_batch_size / (peak * world.size * _ASSUMED_MFU) if peak else None
    )
    return Plan(
        stage=config.stage,
        checkpoint=config.checkpoint + (f" at {commit}" if (commit := hub_commit(folder)) else ""),
        steps=config.duration,
        processes=world.size,
        global_batch_size=config.global_batch_size,
        passes_per_step=passes,
        tokens_per_step=tokens["mean_tokens"] * config.global_batch_size,
        tokens=tokens,
        sources=data.describe(),
        held_out_samples=0 if held_out is None else sum(s.size for s in held_out.sources),
        parameters=count_parameters(model, family),
        memory_gib_per_process=memory_gib(family, model, tokens, config, world),
        hours=None if seconds is None else seconds * config.duration / 3600,
        h100_hours=h100_seconds * config.duration / 3600,
        assumptions=[
            f"lengths measured on {_MEASURED_SAMPLES} samples",
            f"{_ASSUMED_MFU:.0%} of the GPU's dense bf16 peak"
            if peak
            else f"{_ASSUMED_MFU:.0%} of an H100's peak; the peak of {_device_name(world.device)} is not known",
            "memory without fragmentation and CUDA context (about 1.5 GiB)",
        ],
        sample=data.describe_sample(0),
    )


def facts(plan: Plan) -> dict[str, Lines | None]:
    """The plan in words, for a table."""
    memory = dict(plan.memory_gib_per_process)
    total = memory.pop("total")
    parts = ", ".join(f"{name} {size(value * _GIB)}" for name, value in memory.items())
    hours = plan.hours if plan.hours is not None else plan.h100_hours
    device = "on these processes" if plan.hours is not None else "of one H100"
    frames = sum(source["samples"] for source in plan.sources)
    return {
        "stage": plan.stage,
        "starts from": f"{plan.checkpoint}; its model card says the licence",
        "data": [_told(source) for source in plan.sources],
        "frames": f"{frames:,} usable, {plan.held_out_samples:,} held out",
        "steps": f"{plan.steps:,} of {plan.global_batch_size} samples "
        f"({plan.processes} processes x {plan.passes_per_step} passes)",
        "passes over data": f"{plan.steps * plan.global_batch_size / max(1, frames):.3g}",
        "tokens": f"{plan.tokens['mean_tokens']:.0f} a sample, {plan.tokens['longest_tokens']:.0f} at most",
        "parameters": [
            f"{group}: {trained:,} of {whole:,} trained"
            for group, (trained, whole) in plan.parameters.items()
        ],
        "memory": [f"about {size(total * _GIB)} a process", parts],
        "time": f"about {duration(3600 * hours)} {device}",
        "assumed": plan.assumptions,
        "question": str(plan.sample.get("question", "")),
        "answer": str(plan.sample.get("answer", "")),
    }


def _told(source: Mapping[str, Any]) -> str:
    """One source of data, and why rows of it are left out."""
    left_out = "".join(f"; {n:,} left out: {why}" for why, n in source.get("left_out", {}).items())
    return f"{source['name']}: {source['samples']:,} samples, drawn {source['rate']:.2%} of the time{left_out}"


def measure_tokens(data: TrainingData, family: Family) -> dict[str, float]:
    """Lengths of the first samples of the stream, and the family's own means."""
    items = [data[position] for position in range(_MEASURED_SAMPLES)]
    samples = [item for item in items if not isinstance(item, TooLong)]
    lengths = [item.num_tokens for item in items]
    return {
        "mean_tokens": float(np.mean(lengths)),
        "longest_tokens": max(lengths),
        **family.measure(samples),
        "too_long": len(items) - len(samples),
    }


def memory_gib(
    family: Family,
    model: nn.Module,
    measured: Mapping[str, float],
    config: TrainConfig,
    world: World,
) -> dict[str, float]:
    """Weights, gradients and moments of one process, and what the family's passes need besides."""
    parameters = list(model.parameters())
    stored = sum(p.numel() * p.element_size() for p in parameters) / world.size
    trained = sum(p.numel() for p in parameters if p.requires_grad) / world.size
    found: dict[str, float] = {
        "weights": stored,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        **family.memory(model, measured, config, compute_dtype(config, world.device)),
    }
    found = {name: value / _GIB for name, value in found.items()}
    return {**found, "total": sum(found.values(), 0.0)}


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a GPU by its name; None where it is not known (and on CPU)."""
    name = _device_name(device)
    known = [peak for model, peak in _PEAK_BF16_TFLOPS.items() if model in name]
    return known[0] * 1e12 if known else None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
