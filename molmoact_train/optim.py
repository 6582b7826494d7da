"""Which parameters train, at which rate, and how far one step may go.

Groups, rates and what decays are the family's; names are those of the released checkpoints, whatever wraps the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from molmoact_data.errors import UserError
from molmoact_train.config import Scheduler, TrainConfig
from molmoact_train.families.base import Family

BETAS = (0.9, 0.95)
EPSILON = 1e-6
FINAL_LR_FRACTION = 0.1

# Wrappers that put themselves into parameter names: PEFT, checkpointing, torch.compile.
_WRAPPERS = ("base_model.model.", "base_layer.", "_checkpoint_wrapped_module.", "_orig_mod.")


def released_name(name: str) -> str:
    """A parameter's name in the released checkpoints, whatever wraps the model."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def freeze_for_full(model: nn.Module, family: Family, config: TrainConfig) -> None:
    """Set `requires_grad` of every parameter for full fine-tuning."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(family.trains(released_name(name), config))


def trained_parameters(model: nn.Module, family: Family) -> dict[str, dict[str, nn.Parameter]]:
    """Trainable parameters by group, in the model's own order."""
    found: dict[str, dict[str, nn.Parameter]] = {group: {} for group in family.groups}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[family.group(released_name(name))][name] = parameter
    return found


def build_optimizer(model: nn.Module, family: Family, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the family's groups; each carries `group` and `base_lr`, its rate is set per step."""
    base = family.rates(config)
    groups: list[dict[str, Any]] = []
    for group, members in trained_parameters(model, family).items():
        for decay in (True, False):
            params = [p for n, p in members.items() if family.decays(released_name(n)) is decay]
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
    members: Mapping[str, Mapping[str, nn.Parameter]], max_norm: float
) -> dict[str, torch.Tensor]:
    """Clip each group's gradient to an L2 norm of `max_norm` on its own; returns the norms before clipping.

    Works on plain and on sharded gradients; every process gets the norm of the whole gradient.
    """
    norms: dict[str, torch.Tensor] = {}
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


def count_parameters(model: nn.Module, family: Family) -> dict[str, tuple[int, int]]:
    """(trained, all) numbers of scalars by group."""
    totals = {group: [0, 0] for group in family.groups}
    for name, parameter in model.named_parameters():
        entry = totals[family.group(released_name(name))]
        entry[1] += parameter.numel()
        entry[0] += parameter.numel() if parameter.requires_grad else 0
    return {group: (trained, total) for group, (trained, total) in totals.items()}
