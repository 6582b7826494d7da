"""A network for inference, of whatever family its folder is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from molmoact_data.processes import pick_device
from molmoact_train.families.registry import family_of
from molmoact_train.weights import WeightFiles, check_is_model, load_strictly, resolve_model_folder

Dtype = Literal["auto", "float32", "bfloat16"]


def load_network(
    checkpoint: str | Path, *, device: str = "auto", dtype: Dtype = "auto"
) -> nn.Module:
    """The network of a model folder or Hub id, in evaluation mode; torch's module, nothing around it.

    `auto`: CUDA and bf16 where there is a GPU, else CPU and fp32. Strict: every tensor is there, fits and is finite,
    or a `UserError` names it; nothing is ever filled with random numbers.
    """
    folder = resolve_model_folder(str(checkpoint))
    check_is_model(folder)
    chosen = pick_device(device)
    if dtype == "auto":
        dtype = "bfloat16" if chosen.type == "cuda" else "float32"
    with torch.device("meta"):
        model = family_of(folder).build(folder)
    return load_strictly(model.to(getattr(torch, dtype)), WeightFiles(folder), chosen)
