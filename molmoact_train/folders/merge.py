"""Base model + LoRA adapter -> one whole model, tensor by tensor.

For every adapted matrix W [o, i]: W + scale * B [o, r] A [r, i], computed in fp32. An adapter that does not fit the
base exactly, or that changes nothing, is refused before anything is written.
Letters: r rank, i in, o out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from molmoact_data.errors import UserError
from molmoact_data.files.folders import check_free, new_folder
from molmoact_train.families.loading import load_network
from molmoact_train.families.registry import family_of
from molmoact_train.folders.export import planned_bytes, stated_dtype
from molmoact_train.folders.layout import (
    SHARD_BYTES,
    Dtype,
    ShardWriter,
    finish_folder,
    read_config,
    statistics_beside,
)
from molmoact_train.weights import WeightFiles, resolve_model_folder

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PLAIN = {
    "use_dora": False, "bias": "none", "fan_in_fan_out": False, "modules_to_save": None,
    "rank_pattern": {}, "alpha_pattern": {}, "lora_bias": False,
}  # fmt: skip
"""Fields that would mean another formula than the one above; only these values are merged."""


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory: about 1 % of its base."""

    folder: Path
    base: str | None
    """What its own configuration names as base model."""
    scale: float
    matrices: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """Base parameter name -> (A [r, i], B [o, r]), fp32."""
    copies: Mapping[str, torch.Tensor]
    """Base parameters that PEFT stored along (it does so for an adapted LM head); they must be the base's."""

    def delta(self, name: str) -> torch.Tensor:
        """What is added to a base parameter, fp32 [o, i]."""
        a, b = self.matrices[name]
        return self.scale * (b @ a)


@dataclass(frozen=True)
class Merged:
    """What merging did."""

    folder: str
    base: str
    adapted: int
    """Matrices changed."""
    num_tensors: int
    num_bytes: int
    largest_change: float
    """Largest absolute change of a weight."""
    logit_difference: float | None = None
    """With --verify: largest difference to base + adapter, relative to the largest logit."""


def read_adapter(folder: Path) -> Adapter:
    """A plain PEFT LoRA folder. Raises `UserError` for anything else than whole, finite A, B pairs."""
    if not (folder / ADAPTER_CONFIG).is_file() or not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"{folder} is not an adapter folder: {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} are expected. A step of "
            "a LoRA run becomes one with `molmoact unshard`."
        )
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    _check_plain(folder, config)
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    copies, tensors = {}, {}
    for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items():
        if ".lora_" in name:
            tensors[name] = tensor
        else:
            copies[name.removeprefix(_PREFIX).replace(".base_layer.", ".")] = tensor
    matrices = _pairs(folder, tensors)
    if not any(b.any() and a.any() for a, b in matrices.values()) or scale == 0:
        raise UserError(
            f"the adapter {folder} changes nothing: all its products are zero, as before the first training step. "
            "Merging it would give the base model under another name."
        )
    return Adapter(folder, config.get("base_model_name_or_path"), scale, matrices, copies)


def _check_plain(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{folder}: peft_type is {config.get('peft_type')!r}, only LORA can be merged."
        )
    for name, plain in _PLAIN.items():
        value = config.get(name)
        if value not in (plain, None, {}, []):
            raise UserError(
                f"{folder}: adapters with {name}={value!r} cannot be merged, only plain LoRA."
            )


def _pairs(
    folder: Path, tensors: Mapping[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Base parameter name -> (A, B)."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        module, matched, matrix = name.removeprefix(_PREFIX).rpartition(".lora_")
        if not matched or matrix not in ("A.weight", "B.weight") or not name.startswith(_PREFIX):
            raise UserError(f"{folder}: unknown tensor {name!r} in {ADAPTER_WEIGHTS}.")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{folder}: {name} holds NaN or infinity; this adapter is broken.")
        found.setdefault(f"{module}.weight", {})[matrix[0]] = tensor.float()
    single = [name for name, pair in found.items() if len(pair) != 2]
    if single or not found:
        raise UserError(
            f"{folder}: {single[:3] or 'no adapted matrix'} lacks one of lora_A and lora_B."
        )
    return {name: (pair["A"], pair["B"]) for name, pair in found.items()}


def check_fits(adapter: Adapter, base: WeightFiles) -> None:
    """Every adapted matrix must exist in the base with the right shape."""
    known = set(base.names())
    missing = sorted(set(adapter.matrices) - known)
    if missing:
        raise UserError(
            f"the adapter {adapter.folder} does not match the base {base.folder}: the base has no {missing[0]} "
            f"({len(missing)} of {len(adapter.matrices)} adapted matrices are unknown)."
        )
    for name, (a, b) in adapter.matrices.items():
        expected = (b.shape[0], a.shape[1])
        if base.shape(name) != expected or a.shape[0] != b.shape[1]:
            raise UserError(
                f"the adapter {adapter.folder} does not match the base {base.folder}: {name} is "
                f"{base.shape(name)} there, the adapter is for {expected}."
            )
    for name, tensor in adapter.copies.items():
        if name not in known or not torch.equal(base.read(name), tensor.to(base.read(name).dtype)):
            raise UserError(
                f"the adapter {adapter.folder} does not match the base {base.folder}: it brings its own {name}, which "
                "is not the base's. It was trained on another model, or this weight was trained as a whole."
            )


def merge_lora(
    adapter_folder: Path,
    output: Path,
    *,
    base: str | None = None,
    dtype: Dtype = "keep",
    verify: bool = False,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Merged:
    """Write base + adapter as a complete folder; the adapter's statistics join the base's."""
    adapter, files = _matched(adapter_folder, base)
    base_folder = files.folder
    largest = 0.0
    with new_folder(output, overwrite=overwrite, inputs=[adapter_folder, base_folder]) as temporary:
        writer = ShardWriter(temporary, dtype, shard_bytes)
        for name in files.names():
            tensor = files.read(name)
            if name in adapter.matrices:
                delta = adapter.delta(name)
                largest = max(largest, float(delta.abs().max()))
                tensor = (tensor.float() + delta).to(tensor.dtype)
            writer.add(name, tensor)
        writer.finish()
        config, stats = read_config(base_folder), statistics_beside(adapter_folder)
        finish_folder(temporary, base_folder, config, stats, stated_dtype(config, dtype))
        difference = logit_difference(base_folder, adapter, temporary) if verify else None
    return Merged(
        str(output), str(base_folder), len(adapter.matrices), writer.num_tensors, writer.num_bytes,
        largest, difference,
    )  # fmt: skip


def plan(
    adapter_folder: Path,
    output: Path,
    *,
    base: str | None = None,
    dtype: Dtype = "keep",
    overwrite: bool = False,
) -> Merged:
    """All checks of `merge_lora`, and what it would write."""
    adapter, files = _matched(adapter_folder, base)
    check_free(output, overwrite=overwrite, inputs=[adapter_folder, files.folder])
    sizes = [(math.prod(files.shape(n)), files.item_bytes(n)) for n in files.names()]
    largest = max(float(adapter.delta(name).abs().max()) for name in adapter.matrices)
    return Merged(
        str(output), str(files.folder), len(adapter.matrices), len(sizes),
        planned_bytes(sizes, dtype), largest,
    )  # fmt: skip


def _matched(adapter_folder: Path, base: str | None) -> tuple[Adapter, WeightFiles]:
    """The adapter and the base it fits."""
    adapter = read_adapter(adapter_folder)
    named = base or adapter.base
    if named is None:
        raise UserError(f"{adapter_folder} does not name its base model; give it with --base.")
    files = WeightFiles(resolve_model_folder(named))
    check_fits(adapter, files)
    return adapter, files


@torch.inference_mode()
def logit_difference(base: Path, adapter: Adapter, merged: Path) -> float:
    """Largest difference of logits between base + PEFT adapter and the merged folder, relative, in fp32."""
    from peft import PeftModel

    cpu = torch.device("cpu")
    family = family_of(base)
    inputs = family.probe(base, cpu)
    model = load_network(base, device="cpu", dtype="float32")
    expected = PeftModel.from_pretrained(model, str(adapter.folder)).eval()(**inputs).logits
    del model
    whole = load_network(merged, device="cpu", dtype="float32")
    return float((whole(**inputs).logits - expected).abs().max() / expected.abs().max())
