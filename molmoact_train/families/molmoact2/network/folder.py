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


def inverse_frequencies(config: MolmoAct2Config) -> Tensor:
    """theta^(-2j / head width), fp32, bit for bit as released files hold them."""
    width = config.llm.head_dim
    exponents = torch.arange(0, width, 2, dtype=torch.int64).float() / width
    return 1.0 / (config.llm.rope_theta**exponents)


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
    files.check_names({name: tuple(p.shape) for name, p in model.named_parameters()})
    check_frequencies(files, config)
    state = {}
    for name, parameter in model.named_parameters():
        tensor = files.read_finite(name)
        wanted = tensor.dtype if dtype == "keep" else getattr(torch, dtype)
        state[name] = torch.nn.Parameter(
            tensor.to(device=device, dtype=wanted), requires_grad=parameter.requires_grad
        )
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def check_frequencies(files: WeightFiles, config: MolmoAct2Config) -> None:
    """The stored frequencies must be those of config.json; `UserError` otherwise."""
    expected = inverse_frequencies(config)
    # bf16 files hold them rounded.
    if not torch.allclose(files.read(INVERSE_FREQUENCIES).float(), expected, rtol=1e-2, atol=0.0):
        raise UserError(
            f"{files.folder}: {INVERSE_FREQUENCIES} is not what rope_theta {config.llm.rope_theta:g} of config.json "
            "gives: the positions of this checkpoint would be read wrongly."
        )


def released_tensors(model: MolmoAct2) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a released file, by name."""
    for name, tensor in sorted(model.named_parameters()):
        yield name, tensor.detach()
