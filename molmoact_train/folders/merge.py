"""Base model + LoRA adapter -> one whole model, tensor by tensor.

For every adapted matrix W [o, i]: W + scale * B [o, r] A [r, i], computed in fp32. An adapter that does not fit the
base exactly, or that changes nothing, is refused before anything is written.
Letters: r rank, i in, o out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from molmoact_data.errors import UserError
from molmoact_data.files.folders import check_free, new_folder
from molmoact_train.families.loading import load_network
from molmoact_train.families.registry import family_of
from molmoact_train.folders.adapter import Adapter, read_adapter
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

VERIFY_LIMIT = 1e-2
"""Relative difference of logits above which a merged model is not its base + adapter; rounding in bf16 is below."""


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
    for name, tensor in adapter.whole.items():
        if name not in known or base.shape(name) != tuple(tensor.shape):
            raise UserError(
                f"the adapter {adapter.folder} does not match the base {base.folder}: it replaces {name}, which the "
                "base does not have in this shape."
            )
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{adapter.folder}: {name} holds NaN or infinity; this adapter is broken."
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
            elif name in adapter.whole:
                tensor = adapter.whole[name].to(tensor.dtype)
            writer.add(name, tensor)
        writer.finish()
        config, stats = read_config(base_folder), statistics_beside(adapter_folder)
        finish_folder(temporary, base_folder, config, stats, stated_dtype(config, dtype))
        difference = logit_difference(base_folder, adapter, temporary) if verify else None
        if difference is not None and not difference <= VERIFY_LIMIT:
            raise UserError(
                f"--verify: the merged model's logits differ from base + adapter by {difference:.2e} (relative; "
                f"rounding stays below {VERIFY_LIMIT:g}). It is another model, and nothing was written."
            )
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
    revision = None if base else adapter.revision
    files = WeightFiles(resolve_model_folder(named, revision))
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
