"""A checkpoint folder in the released layout -> the network, and the network's tensors under their released names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from molmoact_data.errors import UserError
from molmoact_train.families.molmoact2.network.config import MolmoAct2Config
from molmoact_train.families.molmoact2.network.molmoact2 import MolmoAct2
from molmoact_train.weights import WeightFiles

INVERSE_FREQUENCIES = "model.transformer.rotary_emb.inv_freq"


def fixed_tensors(config: MolmoAct2Config) -> dict[str, Tensor]:
    """What the files hold besides parameters: numbers that follow from config.json, fp32."""
    width = config.llm.head_dim
    exponents = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    return {INVERSE_FREQUENCIES: 1.0 / (config.llm.rope_theta**exponents)}


def load(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: Literal["keep", "float32", "bfloat16"] = "keep",
) -> MolmoAct2:
    """The network of a folder, strictly: every tensor there, none unknown, every shape as config.json says."""
    config = MolmoAct2Config.from_folder(folder)
    with torch.device("meta"):
        model = MolmoAct2(config)
    files = WeightFiles(folder)
    check_names(files, model)
    state = {}
    for name, _ in model.named_parameters():
        tensor = files.read(name)
        wanted = tensor.dtype if dtype == "keep" else getattr(torch, dtype)
        state[name] = tensor.to(device=device, dtype=wanted)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def check_names(files: WeightFiles, model: MolmoAct2) -> None:
    """Names, shapes and the fixed numbers of the files; `UserError` says what differs."""
    fixed = fixed_tensors(model.config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    files.check_names(shapes | {name: tuple(tensor.shape) for name, tensor in fixed.items()})
    for name, expected in fixed.items():
        stored = files.read(name).float()
        # bf16 files hold them rounded.
        if not torch.allclose(stored, expected, rtol=1e-2, atol=0.0):
            raise UserError(
                f"{files.folder}: {name} is not what rope_theta {model.config.llm.rope_theta:g} of config.json "
                "gives: the positions of this checkpoint would be read wrongly."
            )


def released_tensors(model: MolmoAct2) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a released file, by name: the parameters and the fixed numbers."""
    everything = dict(model.named_parameters()) | fixed_tensors(model.config)
    for name in sorted(everything):
        yield name, everything[name].detach()
