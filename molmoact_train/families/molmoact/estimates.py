"""What a MolmoAct run costs, from shapes: operations of a training sample, and memory of one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from molmoact_train.config import TrainConfig
from molmoact_train.families.molmoact.flops import Work, forward_flops
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.families.molmoact.samples import MolmoActSample


def measure(samples: Sequence[MolmoActSample]) -> dict[str, float]:
    """Means over samples: tokens with loss, distinct crops."""
    if not samples:
        return {"mean_loss_tokens": 0.0, "mean_distinct_crops": 0.0}
    return {
        "mean_loss_tokens": float(np.mean([s.loss_weights.sum() for s in samples])),
        "mean_distinct_crops": float(np.mean([len(s.crops_UPC) for s in samples])),
    }


def flops_per_sample(
    model: MolmoActForActionReasoning, measured: Mapping[str, float], config: TrainConfig
) -> float:
    """Forward, as much for the gradient of the input, as much for that of the weights (not with LoRA), and the
    forward pass once more where activations are computed again."""
    passes = 2 + (not config.lora) + config.activation_checkpointing
    rows, columns = model.config.vit_config.grid_hw
    crops = measured["mean_distinct_crops"]
    work = Work(
        crops=crops,
        windows=crops * rows * columns / 4,
        tokens=measured["mean_tokens"],
        logit_rows=measured["mean_loss_tokens"],
    )
    return passes * forward_flops(model.config, work).total


def memory_bytes(
    model: MolmoActForActionReasoning,
    measured: Mapping[str, float],
    config: TrainConfig,
    compute: torch.dtype,
) -> dict[str, float]:
    """Blocks gathered for use, activations and logits of one process."""
    low = torch.finfo(compute).bits // 8
    llm = model.config.llm_config
    rows = config.device_batch_size * measured["longest_tokens"]
    kept = 4 * llm.hidden_size * (1 if config.activation_checkpointing else 12)
    largest_block = max(_scalars(block) for block in model.model.transformer.blocks)
    return {
        "gathered": low * (2 * largest_block + _scalars(model.lm_head))
        + 4 * _scalars(model.model.transformer.wte),
        "activations": rows
        * (kept * llm.num_hidden_layers + low * (6 * llm.intermediate_size + 16 * llm.hidden_size)),
        "logits": 3 * 4 * llm.vocab_size * min(1024, rows),
    }


def _scalars(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
