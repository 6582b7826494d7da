"""Molmo2 = MolmoAct2's vision-language model with an LM head; its configuration and its weights, read strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from molmoact_data.errors import UserError
from molmoact_train.families.molmo.config import CONFIG, read_json
from molmoact_train.families.molmoact.network.config import (
    MolmoActAdapterConfig,
    MolmoActLlmConfig,
    MolmoActVitConfig,
    section,
)
from molmoact_train.families.molmoact2.network.config import image_token_ids, text_section
from molmoact_train.families.molmoact2.network.molmoact2 import VisionLanguageModel
from molmoact_train.weights import WeightFiles, load_strictly

MODEL_TYPE = "molmo2"
_VIT_BLOCK = re.compile(r"model\.vision_backbone\.image_vit\.transformer\.resblocks\.(\d+)\.")
_BUFFER = re.compile(r"model\.transformer\.rotary_embs?\.")
"""Rotary frequencies, stored by some versions; they follow from `rope_theta`."""


@dataclass(frozen=True)
class Molmo2Config:
    """What config.json says, ids included."""

    vit: MolmoActVitConfig
    adapter: MolmoActAdapterConfig
    llm: MolmoActLlmConfig
    image_patch_id: int
    image_token_ids: tuple[int, ...]
    """Image and frame tokens: they see each other in both directions."""
    bos_id: int
    eos_id: int
    use_frame_tokens: bool
    """A frame stands between `<frame_start>` and `<frame_end>`; otherwise between `<im_start>` and `<im_end>`."""

    @classmethod
    def from_folder(cls, folder: Path) -> Molmo2Config:
        """Raises `UserError` for what is no Molmo2, or one whose decoder cannot run here."""
        path = folder / CONFIG
        if not path.is_file():
            raise UserError(f"{folder} is no checkpoint: it has no {CONFIG}.")
        fields = read_json(path)
        if fields.get("model_type") != MODEL_TYPE:
            raise UserError(
                f"{path} describes a model of type {fields.get('model_type')!r}, not {MODEL_TYPE!r}: give Molmo2-4B, "
                "Molmo2-8B or Molmo2-VideoPoint-4B."
            )
        try:
            return cls._read(fields)
        except KeyError as error:
            raise UserError(f"{path} does not say {error.args[0]}; download it again.") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: a field cannot be read: {error}.") from error

    @classmethod
    def _read(cls, fields: Mapping[str, Any]) -> Molmo2Config:
        eos = fields["eos_token_id"]
        return cls(
            vit=section(MolmoActVitConfig, fields["vit_config"]),
            adapter=section(MolmoActAdapterConfig, fields["adapter_config"]),
            llm=text_section(fields["text_config"]),
            image_patch_id=fields["image_patch_id"],
            image_token_ids=image_token_ids(fields),
            bos_id=fields["bos_token_id"],
            eos_id=eos[0] if isinstance(eos, list) else eos,
            use_frame_tokens=bool(fields["use_frame_special_tokens"]),
        )


class Molmo2(nn.Module):
    """`VisionLanguageModel` under `model.`, and the LM head."""

    def __init__(self, config: Molmo2Config) -> None:
        super().__init__()
        self.config = config
        self.model = VisionLanguageModel(
            config.vit,
            config.adapter,
            config.llm,
            image_patch_id=config.image_patch_id,
            image_token_ids=config.image_token_ids,
            image_attention="bidirectional",
        )
        # MolmoAct2's files hold these numbers, which nothing reads; Molmo2's may leave them out.
        del self.model.transformer.rotary_emb
        self.lm_head = nn.Linear(config.llm.hidden_size, config.llm.vocab_size, bias=False)


def load_molmo2(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Molmo2:
    """The network, for inference: every tensor is there, fits and is finite; `UserError` names the first not."""
    config = Molmo2Config.from_folder(folder)
    with torch.device("meta"):
        model = Molmo2(config)
    model = model.to(dtype)
    num_blocks = len(model.model.vision_backbone.image_vit.transformer.resblocks)

    def never_run(name: str) -> bool:
        block = _VIT_BLOCK.match(name)
        return bool(_BUFFER.match(name)) or (block is not None and int(block[1]) >= num_blocks)

    load_strictly(model, WeightFiles(folder), device, unread=never_run)
    return model
