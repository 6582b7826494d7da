"""What a MolmoAct2 run costs, from shapes: operations of a training sample, and memory of one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from molmoact_train.config import TrainConfig
from molmoact_train.families.molmoact2.network import MolmoAct2
from molmoact_train.families.molmoact2.samples import MolmoAct2Sample


def measure(samples: Sequence[MolmoAct2Sample]) -> dict[str, float]:
    """Means over samples: tokens with loss, distinct crops, steps of action chunks."""
    if not samples:
        return {"mean_loss_tokens": 0.0, "mean_distinct_crops": 0.0, "mean_steps": 0.0}
    return {
        "mean_loss_tokens": float(np.mean([(s.loss_weights > 0).sum() for s in samples])),
        "mean_distinct_crops": float(np.mean([len(s.crops_UPC) for s in samples])),
        "mean_steps": float(np.mean([s.chunk.steps_T.sum() for s in samples])),
    }


def flops_per_sample(model: MolmoAct2, measured: Mapping[str, float], config: TrainConfig) -> float:
    """Matrix products of one sample, forward and backward: 2 per weight and token forward, 2 for the input's
    gradient, 2 for the weight's (not with LoRA), and 2 more where activations are computed again. Attention scores
    are left out. With the expert alone, the rest runs forward only."""
    own, again = config.settings, 2 if config.activation_checkpointing else 0
    passes = 2.0 if own.expert_only else 2 + 2 + (0 if config.lora else 2) + again
    body = model.model
    language = _scalars(body.transformer.blocks) * measured["mean_tokens"]
    head = _scalars(model.lm_head) * measured["mean_loss_tokens"]
    vit = body.vision_backbone.image_vit
    patches = vit.config.grid_hw[0] * vit.config.grid_hw[1] * measured["mean_distinct_crops"]
    vision = _scalars(vit) * patches + _scalars(body.vision_backbone.image_projector) * patches / 4
    expert = 0.0
    if model.config.expert is not None and own.action_mode != "discrete":
        steps = measured["mean_steps"] * own.num_flow_timesteps
        projections = _scalars(model.expert.context_k_proj) + _scalars(model.expert.context_v_proj)
        context = projections * model.config.expert.num_layers * measured["mean_tokens"]
        expert = (6 + again) * (_scalars(model.expert.blocks) * steps + context)
    return passes * (language + head + vision) + expert


def memory_bytes(
    model: MolmoAct2, measured: Mapping[str, float], config: TrainConfig, compute: torch.dtype
) -> dict[str, float]:
    """Blocks gathered for use, activations, logits and the expert's context of one process."""
    low = torch.finfo(compute).bits // 8
    llm = model.config.llm
    rows = config.device_batch_size * measured["longest_tokens"]
    kept = 4 * llm.hidden_size * (1 if config.activation_checkpointing else 12)
    blocks = model.model.transformer.blocks
    found = {
        "gathered": low * (2 * max(map(_scalars, blocks)) + _scalars(model.lm_head))
        + 4 * _scalars(model.model.transformer.wte),
        "activations": rows
        * (kept * llm.num_hidden_layers + low * (6 * llm.intermediate_size + 16 * llm.hidden_size)),
        "logits": 3 * 4 * llm.vocab_size * min(1024, rows),
    }
    if model.config.expert is not None:
        width = 2 * (llm.num_key_value_heads * llm.head_dim + model.config.expert.hidden_size)
        found["expert_context"] = low * rows * width * llm.num_hidden_layers
    return found


def _scalars(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
