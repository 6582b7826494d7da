"""A batch of prompts with its cache: feed tokens, read hidden states, hand the context to the action expert.

Rows may be fed different numbers of tokens; padding is marked, never seen, and never counted in a position.
Legend: B batch, S new places, K all places so far, L model width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from molmoact_train.families.molmoact2.network import MolmoAct2
from molmoact_train.families.molmoact2.network.cache import KeyValueCache, flat
from molmoact_train.families.molmoact2.network.expert import ExpertContext
from molmoact_train.families.molmoact2.network.molmoact2 import Encoded
from molmoact_train.families.molmoact2.processor import Prompt


class Decoding:
    """One answer per prompt in the making."""

    def __init__(self, model: MolmoAct2, prompts: Sequence[Prompt]) -> None:
        self.model = model
        self.device = model.lm_head.weight.device
        self.cache = KeyValueCache(model.config.llm.num_hidden_layers)
        self.forward_passes = 0
        self._prompts = list(prompts)
        self._ids = torch.zeros(len(prompts), 0, dtype=torch.long, device=self.device)
        self._real = torch.zeros(len(prompts), 0, dtype=torch.bool, device=self.device)

    @torch.inference_mode()
    def feed(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """One pass over new tokens of every row (a row may have none); the first puts the prompts before them.

        Returns the hidden states [B, L] at the last new token of each row (of a row without any: meaningless).
        """
        images: tuple[Tensor, ...] = ()
        rows = [list(ids) for ids in token_ids]
        if self.cache.length == 0:
            rows = [p.input_ids.tolist() + row for p, row in zip(self._prompts, rows, strict=True)]
            images = joined_images(self._prompts, self.device)
        ids, real = padded(rows, self.device)
        self._ids = torch.cat([self._ids, ids], dim=1)
        self._real = torch.cat([self._real, real], dim=1)
        self.forward_passes += 1
        encoded = self.model.model(
            ids.masked_fill(~real, -1), *images, real_BK=self._real, cache=self.cache
        )
        last = (real.sum(dim=1) - 1).clamp(min=0)
        return encoded.hidden_BSL[torch.arange(len(last), device=self.device), last]

    @torch.inference_mode()
    def logits(self, hidden_BL: Tensor, rows: slice = slice(None)) -> Tensor:
        """fp32 logits [B, V] of the rows of the LM head that are asked for."""
        return torch.nn.functional.linear(hidden_BL, self.model.lm_head.weight[rows]).float()

    @torch.inference_mode()
    def expert_context(self) -> ExpertContext:
        """What has been fed so far, as the expert reads it."""
        held = self.cache.all()
        keys, values = [flat(k) for k, _ in held], [flat(v) for _, v in held]
        nothing = keys[0].new_zeros(len(keys[0]), 0, 0)
        visible = self.model.visible(self._ids, self._real)
        return self.model.expert_context(Encoded(nothing, keys, values), self._ids, visible)


def padded(rows: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Right-padded ids (0 in padding) and which places are real, [B, S]."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row, dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return ids.to(device), (torch.arange(longest) < lengths[:, None]).to(device)


def joined_images(prompts: Sequence[Prompt], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Crops of all prompts and their windows as rows of all patches."""
    crops, windows, first = [], [], 0
    for prompt in prompts:
        images = prompt.images
        crops.append(torch.from_numpy(images.crops_UPC))
        own = torch.from_numpy(images.windows_V4)
        windows.append(torch.where(own >= 0, own + first, own))
        first += images.crops_UPC.shape[0] * images.crops_UPC.shape[1]
    return torch.cat(crops).to(device), torch.cat(windows).to(device)
