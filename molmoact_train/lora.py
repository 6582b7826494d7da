"""LoRA: adapters are put in before sharding, so every rank holds a shard of the same values by construction.

Adapters are injected in place: module names stay those of the released checkpoint. What is saved is the
plain PEFT layout, loadable by `peft.PeftModel.from_pretrained`. Letters of shapes: r rank, i in, o out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from molmoact_data.files.folders import write_json
from molmoact_train.config import TrainConfig
from molmoact_train.inputs import ADAPTER_WEIGHTS

ADAPTER = "default"
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraSettings:
    """The published adapter: every linear layer, the head included; embeddings and norms are frozen."""

    rank: int
    alpha: float
    dropout: float
    base_bf16: bool

    @classmethod
    def of(cls, config: TrainConfig) -> LoraSettings:
        """The settings of a run."""
        return cls(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_base_bf16)


def target_modules(model: nn.Module, beside: Callable[[str], bool] = lambda _: False) -> list[str]:
    """The last names of all linear layers, which PEFT matches as suffixes; whole names where some are left alone."""
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    adapted = [name for name in names if not beside(name + ".weight")]
    return names_of_targets(adapted, whole=len(adapted) < len(names))


def names_of_targets(modules: Iterable[str], *, whole: bool) -> list[str]:
    """Adapted modules as PEFT's `target_modules`."""
    return sorted({name if whole else name.rpartition(".")[2] for name in modules})


def peft_config(
    settings: LoraSettings,
    targets: list[str],
    base: str | None = None,
    revision: str | None = None,
    trained_whole: Sequence[str] = (),
) -> Any:
    """The PEFT configuration that describes these adapters; `trained_whole` modules are stored beside them."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        bias="none",
        modules_to_save=list(trained_whole) or None,
        base_model_name_or_path=base,
        revision=revision,
    )


def add_adapters(
    model: nn.Module, settings: LoraSettings, beside: Callable[[str], bool] = lambda _: False
) -> list[str]:
    """Put adapters into every linear layer in place and freeze all else; returns the target names.

    Parameters that `beside` names by their released name get no adapter and train as they are.
    Values are not set here (the model may still be on `meta`): call `initialise` once it has memory.
    """
    from peft import inject_adapter_in_model

    targets = target_modules(model, beside)
    config = peft_config(settings, targets)
    config.init_lora_weights = False
    on_meta = next(model.parameters()).is_meta
    inject_adapter_in_model(config, model, adapter_name=ADAPTER, low_cpu_mem_usage=on_meta)
    for name, parameter in model.named_parameters():
        trained = is_adapter(name) or beside(plain_name(name))
        parameter.requires_grad_(trained)
        if settings.base_bf16 and not trained:
            parameter.data = parameter.data.to(torch.bfloat16)
        elif is_adapter(name):
            parameter.data = parameter.data.float()
    return targets


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is one of an adapter's."""
    return ".lora_A." in name or ".lora_B." in name


@torch.no_grad()
def initialise(model: nn.Module, rank: int, seed: int) -> None:
    """A ~ N(0, 1/r) from a generator seeded by the parameter's own name, B = 0.

    Every process draws the whole matrix and keeps its shard, so no communication can make them differ.
    """
    for name, parameter in model.named_parameters():
        if not is_adapter(name):
            continue
        if ".lora_B." in name:
            parameter.zero_()
            continue
        generator = torch.Generator().manual_seed(_name_seed(name, seed))
        whole = torch.randn(tuple(parameter.shape), generator=generator) / rank
        if isinstance(parameter, DTensor):
            local = distribute_tensor(
                whole.to(parameter.device), parameter.device_mesh, parameter.placements,
                src_data_rank=None,
            )  # fmt: skip
            parameter.copy_(local)
        else:
            parameter.copy_(whole)


def plain_name(name: str) -> str:
    """A parameter's name without what activation checkpointing and torch.compile put into it."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def _name_seed(name: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}:{plain_name(name)}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def peft_name(name: str) -> str:
    """A parameter's name in a PEFT adapter file."""
    return PEFT_PREFIX + name.replace(f".{ADAPTER}.", ".")


def save_adapter(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    settings: LoraSettings,
    targets: list[str],
    *,
    base: str,
    revision: str | None = None,
    statistics: Mapping[str, Any],
    run: Mapping[str, Any],
) -> None:
    """Adapter in plain PEFT layout, with statistics and run configuration beside it.

    `weights` are whole CPU tensors under the model's own names: adapters, and what trained in full beside them.
    `folder` must exist.
    """
    from safetensors.torch import save_file

    renamed = {peft_name(n): t.contiguous() for n, t in weights.items()}
    save_file(renamed, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    whole = sorted({".".join(n.split(".")[:2]) for n in weights if not is_adapter(n)})
    peft_config(settings, targets, base, revision, whole).save_pretrained(str(folder))
    write_json(folder / "dataset_statistics.json", statistics)
    write_json(folder / "train_config.json", run)
