"""A PEFT LoRA folder, read: what its configuration promises, and its pairs of matrices.

Only adapters whose effect is base + scale * B A are read. Everything else that PEFT can put into a configuration
is refused by the name of its field, unknown fields of later versions included.
Letters: r rank, i in, o out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from molmoact_data.errors import UserError, first_line
from molmoact_data.files.kinds import ADAPTER_CONFIG
from molmoact_data.files.typed import read_typed
from molmoact_train.inputs import ADAPTER_WEIGHTS, check_adapter
from molmoact_train.lora import PEFT_PREFIX

SOUND_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it was."""
_NO_BEARING = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
    "revision", "runtime_config", "target_modules", "task_type", "use_rslora",
})  # fmt: skip
"""Fields that do not change what an adapter adds, or that are read by name."""


@dataclass(frozen=True)
class AdapterConfig:
    """The fields of `adapter_config.json` that merging reads."""

    peft_type: str
    r: int
    lora_alpha: float
    use_rslora: bool | None = False
    init_lora_weights: bool | str | None = True
    base_model_name_or_path: str | None = None
    revision: str | None = None
    modules_to_save: list[str] | None = None
    """Modules that trained in full beside the adapters and are stored with them."""

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory: about 1 % of its base."""

    folder: Path
    base: str | None
    """What its own configuration names as base model."""
    revision: str | None
    """The Hub commit of that base, where it is named."""
    scale: float
    matrices: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """Base parameter name -> (A [r, i], B [o, r]), fp32."""
    copies: Mapping[str, torch.Tensor]
    """Base parameters that PEFT stored along (it does so for an adapted LM head); they must be the base's."""
    whole: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Parameters of the `modules_to_save`, trained in full: they replace the base's."""

    def delta(self, name: str) -> torch.Tensor:
        """What is added to a base parameter, fp32 [o, i]."""
        a, b = self.matrices[name]
        return self.scale * (b @ a)


def read_adapter(folder: Path) -> Adapter:
    """A plain PEFT LoRA folder. Raises `UserError` for anything else than whole, finite A, B pairs."""
    check_adapter(folder)
    config = read_config(folder)
    tensors: dict[str, torch.Tensor] = {}
    copies: dict[str, torch.Tensor] = {}
    whole: dict[str, torch.Tensor] = {}
    saved = tuple(f"{module}." for module in config.modules_to_save or ())
    for name, tensor in _load(folder / ADAPTER_WEIGHTS).items():
        if ".lora_" in name:
            tensors[name] = tensor
        else:
            plain = name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")
            (whole if saved and plain.startswith(saved) else copies)[plain] = tensor
    matrices = _pairs(folder, tensors)
    _check_ranks(folder, config, matrices)
    if not any(b.any() and a.any() for a, b in matrices.values()) or config.scale == 0:
        raise UserError(
            f"the adapter {folder} changes nothing: all its products are zero, as before the first training step. "
            "Merging it would give the base model under another name."
        )
    return Adapter(
        folder,
        config.base_model_name_or_path,
        config.revision,
        config.scale,
        matrices,
        copies,
        whole,
    )


def read_config(folder: Path) -> AdapterConfig:
    """The configuration of an adapter that adds scale * B A to its base and does nothing else."""
    path = folder / ADAPTER_CONFIG
    fields = read_typed(dict[str, Any], path)
    if fields.get("peft_type") != "LORA":
        raise UserError(
            f"{folder}: peft_type is {fields.get('peft_type')!r}, only LORA can be merged."
        )
    config = read_typed(AdapterConfig, path)
    if config.r < 1:
        raise UserError(f"{path}: r: a rank is at least 1, found {config.r}.")
    if config.init_lora_weights not in SOUND_STARTS:
        raise UserError(
            f"{folder}: init_lora_weights={config.init_lora_weights!r}: training started by changing the base "
            "model, and the changed base is not saved, so base + adapter is another model than the trained "
            "one. Save the adapter again as a difference to the original base, with PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...), and merge that."
        )
    for name in sorted(set(fields) - _NO_BEARING):
        if fields[name] not in (None, False, "none", {}, []):
            raise UserError(
                f"{folder}: adapters with {name}={fields[name]!r} cannot be merged, only plain LoRA."
            )
    return config


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is missing or damaged ({first_line(error)}); save or copy the adapter again."
        ) from error


def _pairs(
    folder: Path, tensors: Mapping[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Base parameter name -> (A, B)."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        module, matched, matrix = name.removeprefix(PEFT_PREFIX).rpartition(".lora_")
        if (
            not matched
            or matrix not in ("A.weight", "B.weight")
            or not name.startswith(PEFT_PREFIX)
        ):
            raise UserError(f"{folder}: unknown tensor {name!r} in {ADAPTER_WEIGHTS}.")
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise UserError(
                f"{folder}: {name} is {tensor.dtype} {list(tensor.shape)}, a matrix of floats is expected."
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"{folder}: {name} holds NaN or infinity; this adapter is broken.")
        found.setdefault(f"{module}.weight", {})[matrix[0]] = tensor.float()
    single = [name for name, pair in found.items() if len(pair) != 2]
    if single or not found:
        raise UserError(
            f"{folder}: {single[:3] or 'no adapted matrix'} lacks one of lora_A and lora_B."
        )
    return {name: (pair["A"], pair["B"]) for name, pair in found.items()}


def _check_ranks(
    folder: Path,
    config: AdapterConfig,
    matrices: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
) -> None:
    """The scale is made of the rank in the configuration: it must be that of the matrices."""
    for name, (a, b) in matrices.items():
        if a.shape[0] != config.r or b.shape[1] != config.r:
            raise UserError(
                f"{folder}: {name} has matrices of rank {a.shape[0]} and {b.shape[1]}, {ADAPTER_CONFIG} says "
                f"r={config.r}; the scale of the adapter would be wrong."
            )
