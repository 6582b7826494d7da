"""Frames and a question -> what the network reads, as Molmo's released processor makes it.

Token stream: BOS, overview grid, tile grid, ` User: {question} Assistant:` (with the leading blank).

The masks are those of the release, an accident included: it puts the overview in front of the crops but the missing
row of the masks at their end. So crop k has the mask of tile k, and every patch of the last tile counts as partly
padding. The model was trained and evaluated like that; without the masks its logits move by a third of their range.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from molmoact_data.errors import UserError
from molmoact_data.text import tokens
from molmoact_train.families.molmo.config import read_json
from molmoact_train.families.molmoact.image_config import CONFIG_NAME, ImageProcessorConfig
from molmoact_train.families.molmoact.image_scaling import CLIP_MEAN, CLIP_STD
from molmoact_train.families.molmoact.images import cut_image, stack_padded
from molmoact_train.families.molmoact.processor import ImageTokenIds, grid_ids
from molmoact_train.families.molmoact.vocabulary import load_tokenizer

PARTLY_PADDING = 0.5
"""Any share strictly between 0 and 1 reads the same padding embedding."""
_FIXED: dict[str, Any] = {
    "image_padding_mask": True,
    "do_normalize": True,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "image_token_length_h": 12,
    "image_token_length_w": 12,
}
"""What the released preprocessor_config.json says and this processor does; another value is refused."""


class MolmoProcessor:
    """Tokenizer and pictures of one checkpoint; one picture per prompt, which is all that Molmo (0924) can read."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, images: ImageProcessorConfig) -> None:
        self.tokenizer = tokenizer
        self.images = images
        self.eos_id = _id_of(tokenizer, tokenizer.eos_token or "<|endoftext|>")
        # Qwen2 has no BOS and starts with its end of text.
        self.bos_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.eos_id
        self.image_ids = ImageTokenIds(
            *(
                _id_of(tokenizer, token)
                for token in (tokens.IM_START, tokens.IM_END, tokens.IM_PATCH, tokens.IM_COL)
            )
        )

    @classmethod
    def from_pretrained(cls, folder: Path) -> MolmoProcessor:
        """From a checkpoint folder. Raises `UserError` where its tokenizer or its pictures are not Molmo's."""
        return cls(load_tokenizer(folder), read_image_config(folder))

    def __call__(
        self, frames: Sequence[NDArray[np.uint8]], question: str
    ) -> dict[str, torch.Tensor]:
        """RGB uint8 [H, W, 3], of any sizes -> one batch, padded on the left: `input_ids`, `attention_mask` [B, S],
        `images` [B, T, P, C], `image_masks` [B, T, P], `pooled_patches_idx` [B, M, 4]."""
        cut = [cut_image(rgb, self.images, max_crops=self.images.max_crops) for rgb in frames]
        text = self.encode(f" User: {question} Assistant:")
        rows = [[self.bos_id, *grid_ids(one.grids_G2, self.image_ids), *text] for one in cut]
        longest = max(map(len, rows))
        input_ids = np.full((len(rows), longest), self.eos_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), longest), dtype=np.int64)
        for place, row in enumerate(rows):
            input_ids[place, longest - len(row) :] = row
            attention_mask[place, longest - len(row) :] = 1
        arrays = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "images": stack_padded([one.crops_TPC for one in cut]),
            "image_masks": stack_padded([released_masks(one.masks_TP) for one in cut]),
            "pooled_patches_idx": stack_padded([one.pooled_patches_idx_M4 for one in cut]),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def encode(self, text: str) -> list[int]:
        """Plain text -> ids, without BOS or EOS."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, special tokens included."""
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def released_masks(masks_TP: NDArray[np.float32]) -> NDArray[np.float32]:
    """Share of picture of each patch, overview first -> as the released processor hands it over, one crop early."""
    last = np.full_like(masks_TP[:1], PARTLY_PADDING)
    return np.concatenate([masks_TP[1:], last])


def read_image_config(folder: Path) -> ImageProcessorConfig:
    """How a Molmo checkpoint cuts its pictures: letterbox, CLIP's normalisation, tiles as the file says."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise UserError(f"{path} is missing: it says how the checkpoint's images are cut.")
    fields = read_json(path)
    for name, value in _FIXED.items():
        if fields.get(name, value) != value:
            raise UserError(f"{path}: {name} is {fields[name]!r}; Molmo (0924) has {value!r}.")
    return ImageProcessorConfig.from_json(
        {
            "max_crops": 12,
            "base_image_input_size": [336, 336],
            **fields,
            "resize_mode": "default",
            "normalize_mode": "openai",
        }
    )


def _id_of(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(found, int) or found == tokenizer.unk_token_id:
        raise UserError(
            f"the tokenizer in {tokenizer.name_or_path} has no {token!r}: it is not Molmo's. Take all tokenizer files "
            "of the checkpoint, added_tokens.json too."
        )
    return found
