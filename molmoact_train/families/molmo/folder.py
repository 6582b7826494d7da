"""A checkpoint folder of Molmo -> our network: names mapped, tensors streamed, nothing missing, nothing left over."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from molmoact_train.families.molmo.config import read_config
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.weights import WeightFiles, load_strictly

_PART_OF_BLOCK = re.compile(r"(\.blocks\.\d+)\.(?:self_attn|mlp)\.")
_VIT_BLOCK = re.compile(r"model\.vision_backbone\.image_vit\.transformer\.resblocks\.(\d+)\.")


def molmo_name(name: str) -> str:
    """The name of one of our parameters in Molmo's files: its blocks are flat, its LM head is called `ff_out`."""
    if name == "lm_head.weight":
        return "model.transformer.ff_out.weight"
    return _PART_OF_BLOCK.sub(r"\1.", name)


def load_molmo(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> MolmoActForActionReasoning:
    """The network, for inference. Strict: every tensor is there, fits and is finite; `UserError` names the first not.

    Blocks of the image encoder behind the deepest one that is read are stored but never run, hence not loaded.
    """
    config = read_config(folder)
    with torch.device("meta"):
        model = MolmoActForActionReasoning(config)
    model = model.to(dtype)
    num_blocks = len(model.model.vision_backbone.image_vit.transformer.resblocks)

    def never_run(name: str) -> bool:
        block = _VIT_BLOCK.match(name)
        return block is not None and int(block[1]) >= num_blocks

    load_strictly(model, WeightFiles(folder), device, molmo_name, unread=never_run)
    return model
