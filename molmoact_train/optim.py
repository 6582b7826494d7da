"""Which parameters train, at which rate, and how far one step may go.

Three groups, as published: `llm`, `connector` (pooling, projector, pad embedding and the embeddings of the
six image tokens) and `vit`. Names are those of the released checkpoints; wrappers' prefixes are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from molmoact_data.errors import UserError
from molmoact_train.config import FtEmbedding, Scheduler, TrainConfig

Group = Literal["llm", "connector", "vit"]
GROUPS: tuple[Group, ...] = ("llm", "connector", "vit")
BETAS = (0.9, 0.95)
EPSILON = 1e-6
FINAL_LR_FRACTION = 0.1

# Wrappers that put themselves into parameter names: PEFT, checkpointing, torch.compile.
_WRAPPERS = ("base_model.model.", "base_layer.", "_checkpoint_wrapped_module.", "_orig_mod.")
_CONNECTOR = ("image_pooling_2d.", "image_projector.", "pad_embed")
_INPUT_ROWS = "model.transformer.wte.embedding"
_FINAL_NORM = "model.transformer.ln_f.weight"
_HEAD = "lm_head.weight"
_NO_DECAY = (
    "wte.",
    "norm",
    "ln_f",
    "pre_ln",
    "positional_embedding",
    "class_embedding",
    "pad_embed",
)


def released_name(name: str) -> str:
    """A parameter's name in the released checkpoints, whatever wraps the model."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def parameter_group(name: str) -> Group:
    """The group of a parameter. Raises ValueError for a name that belongs to none."""
    plain = released_name(name)
    if plain.startswith("model.vision_backbone."):
        inner = plain.removeprefix("model.vision_backbone.")
        if inner.startswith(_CONNECTOR):
            return "connector"
        if inner.startswith("image_vit."):
            return "vit"
    elif plain == "model.transformer.wte.new_embedding":
        return "connector"
    elif plain.startswith(("model.transformer.", "lm_head.")):
        return "llm"
    raise ValueError(f"parameter {name!r} belongs to no group")


def trains_in_full(name: str, ft_embedding: FtEmbedding) -> bool:
    """Whether full fine-tuning updates a parameter; only embeddings, ln_f and head depend on the choice."""
    trained = {
        "all": (_INPUT_ROWS, _FINAL_NORM, _HEAD),
        "lm_head": (_FINAL_NORM, _HEAD),
        "ln_f": (_FINAL_NORM,),
        "wte": (_INPUT_ROWS,),
    }[ft_embedding]
    plain = released_name(name)
    return plain in trained or plain not in (_INPUT_ROWS, _FINAL_NORM, _HEAD)


def freeze_for_full(model: nn.Module, ft_embedding: FtEmbedding) -> None:
    """Set `requires_grad` of every parameter for full fine-tuning."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains_in_full(name, ft_embedding))


def decays(name: str) -> bool:
    """Whether weight decay applies: not to embeddings, norms and positions."""
    return not any(part in released_name(name) for part in _NO_DECAY)


def trained_parameters(model: nn.Module) -> dict[Group, dict[str, nn.Parameter]]:
    """Trainable parameters by group, in the model's own order."""
    found: dict[Group, dict[str, nn.Parameter]] = {group: {} for group in GROUPS}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[parameter_group(name)][name] = parameter
    return found


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the three groups; each carries `group` and `base_lr`, its rate is set per step."""
    base = {"llm": config.lr_llm, "connector": config.lr_connector, "vit": config.lr_vit}
    groups: list[dict[str, Any]] = []
    for group, members in trained_parameters(model).items():
        for decay in (True, False):
            params = [p for name, p in members.items() if decays(name) is decay]
            weight_decay = config.weight_decay if decay else 0.0
            if params:
                groups.append(
                    {
                        "params": params,
                        "group": group,
                        "base_lr": base[group],
                        "lr": base[group],
                        "weight_decay": weight_decay,
                    }
                )
    if not groups:
        raise UserError("nothing would be trained: every parameter is frozen.")
    return torch.optim.AdamW(groups, betas=BETAS, eps=EPSILON)


@dataclass(frozen=True)
class Schedule:
    """The published rate over steps."""

    kind: Scheduler
    warmup: int
    """Steps."""
    duration: int
    """Steps of the whole run."""

    def rate(self, step: int, base: float) -> float:
        """Rate of update number `step`, counted from 1."""
        if self.kind == "constant":
            return base
        if step < self.warmup:
            return base * step / self.warmup
        low = FINAL_LR_FRACTION * base
        progress = (step - self.warmup) / (self.duration - self.warmup)
        return low + (base - low) * (1 + math.cos(math.pi * progress)) / 2


def set_rates(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> dict[str, float]:
    """Give every group its rate for update `step`; returns them by group name."""
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = schedule.rate(step, group["base_lr"])
        rates[group["group"]] = group["lr"]
    return rates


def clip_by_group(
    members: Mapping[Group, Mapping[str, nn.Parameter]], max_norm: float
) -> dict[Group, torch.Tensor]:
    """Clip each group's gradient to an L2 norm of `max_norm` on its own; returns the norms before clipping.

    Works on plain and on sharded gradients; every process gets the norm of the whole gradient.
    """
    norms: dict[Group, torch.Tensor] = {}
    for group, parameters in members.items():
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        if not gradients:
            continue
        norms[group] = _total_norm(gradients)
        # Never above 1; the small constant is torch.nn.utils.clip_grad_norm_'s.
        scale = torch.clamp(max_norm / (norms[group] + 1e-6), max=1.0)
        for gradient in gradients:
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            local.mul_(scale.to(local.device))
    return norms


def _total_norm(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    norm = torch.nn.utils.get_total_norm(list(gradients))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(trained, all) numbers of scalars by group."""
    totals = {group: [0, 0] for group in GROUPS}
    for name, parameter in model.named_parameters():
        entry = totals[parameter_group(name)]
        entry[1] += parameter.numel()
        entry[0] += parameter.numel() if parameter.requires_grad else 0
    return {group: (trained, total) for group, (trained, total) in totals.items()}
