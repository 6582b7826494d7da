"""What a run would do, without doing it: arithmetic, parameters by group, estimates, one rendered sample.

Memory and time are estimates with their assumptions named; nothing is allocated and no weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molmoact_data.processes import World
from molmoact_train import lora
from molmoact_train.config import TrainConfig
from molmoact_train.data.collate import check_batch_arithmetic
from molmoact_train.data.dataset import Sample, TrainingData, open_eval_data, open_training_data
from molmoact_train.families.molmoact.network import MolmoActConfig, MolmoActForActionReasoning
from molmoact_train.families.molmoact.processor import MolmoActProcessor
from molmoact_train.folders.statistics import merged
from molmoact_train.optim import count_parameters, freeze_for_full
from molmoact_train.parallel import compute_dtype
from molmoact_train.weights import resolve_model_folder

_MEASURED_SAMPLES = 16
_ASSUMED_MFU = 0.4
_PEAK_BF16_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "B200": 2250, "L40S": 362}
"""Dense bf16, from the data sheets."""
_GIB = 2**30


@dataclass(frozen=True)
class TokenStatistics:
    """Over the first samples of the stream."""

    mean_tokens: float
    longest_tokens: int
    mean_loss_tokens: float
    mean_distinct_crops: float
    too_long: int


@dataclass(frozen=True)
class Plan:
    """The answer of --dry-run."""

    stage: str
    steps: int
    processes: int
    global_batch_size: int
    passes_per_step: int
    tokens_per_step: float
    tokens: TokenStatistics
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
    folder = resolve_model_folder(config.checkpoint)
    processor = MolmoActProcessor.from_pretrained(folder)
    data = open_training_data(config, processor)
    held_out = open_eval_data(config, processor)
    merged(config, folder, data.sources)
    model = model_without_memory(config, folder)
    tokens = measure_tokens(data)
    flops = flops_per_sample(model, tokens, config)
    peak = peak_flops(world.device)
    h100 = _PEAK_BF16_TFLOPS["H100"] * 1e12
    h100_seconds = flops * config.global_batch_size / (h100 * _ASSUMED_MFU)
    seconds = (
        flops * config.global_batch_size / (peak * world.size * _ASSUMED_MFU) if peak else None
    )
    return Plan(
        stage=config.stage,
        steps=config.duration,
        processes=world.size,
        global_batch_size=config.global_batch_size,
        passes_per_step=passes,
        tokens_per_step=tokens.mean_tokens * config.global_batch_size,
        tokens=tokens,
        sources=data.describe(),
        held_out_samples=0 if held_out is None else sum(s.size for s in held_out.sources),
        parameters=count_parameters(model),
        memory_gib_per_process=memory_gib(model, config, tokens, world),
        hours=None if seconds is None else seconds * config.duration / 3600,
        h100_hours=h100_seconds * config.duration / 3600,
        assumptions=[
            f"lengths measured on {_MEASURED_SAMPLES} samples",
            f"{_ASSUMED_MFU:.0%} of the GPU's dense bf16 peak"
            if peak
            else f"{_ASSUMED_MFU:.0%} of an H100's peak; the peak of {_device_name(world.device)} is not known",
            "memory without fragmentation and CUDA context (about 1.5 GiB)",
        ],
        sample=describe_sample(data, 0),
    )


def model_without_memory(config: TrainConfig, folder: Path) -> MolmoActForActionReasoning:
    """The model with its trained and frozen parameters, on the `meta` device."""
    with torch.device("meta"):
        model = MolmoActForActionReasoning(MolmoActConfig.from_pretrained(folder))
    if config.lora:
        lora.add_adapters(model, lora.LoraSettings.of(config))
    else:
        freeze_for_full(model, config.ft_embedding or "lm_head")
    return model


def measure_tokens(data: TrainingData) -> TokenStatistics:
    """Lengths of the first samples of the stream."""
    items = [data[position] for position in range(_MEASURED_SAMPLES)]
    samples = [item for item in items if isinstance(item, Sample)]
    lengths = [item.num_tokens for item in items]
    return TokenStatistics(
        mean_tokens=float(np.mean(lengths)),
        longest_tokens=max(lengths),
        mean_loss_tokens=float(np.mean([s.loss_weights.sum() for s in samples]))
        if samples
        else 0.0,
        mean_distinct_crops=float(np.mean([len(s.crops_UPC) for s in samples])) if samples else 0.0,
        too_long=len(items) - len(samples),
    )


def flops_per_sample(
    model: MolmoActForActionReasoning, tokens: TokenStatistics, config: TrainConfig
) -> float:
    """Matrix products of one sample, forward and backward: 2 per weight and token forward, 2 for the input's
    gradient, 2 for the weight's (not with LoRA), and 2 more where activations are computed again."""
    passes = 2 + 2 + (0 if config.lora else 2) + (2 if config.activation_checkpointing else 0)
    language = _scalars(model.model.transformer.blocks) * tokens.mean_tokens
    head = _scalars(model.lm_head) * tokens.mean_loss_tokens
    vit = model.model.vision_backbone.image_vit
    patches = vit.config.grid_hw[0] * vit.config.grid_hw[1] * tokens.mean_distinct_crops
    vision = _scalars(vit) * patches + _scalars(model.model.vision_backbone.image_projector) * (
        patches / 4
    )
    return passes * (language + head + vision)


def memory_gib(
    model: MolmoActForActionReasoning, config: TrainConfig, tokens: TokenStatistics, world: World
) -> dict[str, float]:
    """Weights, gradients and moments of one process, and its activations and logits."""
    parameters = list(model.parameters())
    stored = sum(p.numel() * p.element_size() for p in parameters) / world.size
    trained = sum(p.numel() for p in parameters if p.requires_grad) / world.size
    low = torch.finfo(compute_dtype(config, world.device)).bits // 8
    llm = model.config.llm_config
    rows = config.device_batch_size * tokens.longest_tokens
    kept = 4 * llm.hidden_size * (1 if config.activation_checkpointing else 12)
    largest_block = max(_scalars(block) for block in model.model.transformer.blocks)
    found: dict[str, float] = {
        "weights": stored,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "gathered": low * (2 * largest_block + _scalars(model.lm_head))
        + 4 * _scalars(model.model.transformer.wte),
        "activations": rows
        * (kept * llm.num_hidden_layers + low * (6 * llm.intermediate_size + 16 * llm.hidden_size)),
        "logits": 3 * 4 * llm.vocab_size * min(1024, rows),
    }
    found = {name: value / _GIB for name, value in found.items()}
    return {**found, "total": sum(found.values(), 0.0)}


def _scalars(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a GPU by its name; None where it is not known (and on CPU)."""
    name = _device_name(device)
    known = [peak for model, peak in _PEAK_BF16_TFLOPS.items() if model in name]
    return known[0] * 1e12 if known else None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"


def describe_sample(data: TrainingData, position: int) -> dict[str, Any]:
    """A sample as people read it; action tokens as they are."""
    rendered = data.rendered(position)
    return {
        "where": rendered.where,
        "kind": rendered.kind,
        "images": [f"{i.width}x{i.height}" for i in rendered.images],
        "question": rendered.question,
        "answer": rendered.answer,
    }
