"""Molmo2 answering questions about pictures and clips: greedy, batched, with a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from molmoact_data.errors import UserError
from molmoact_data.teachers.answers import Answer, extend_answers
from molmoact_train.families.molmo2.network import Molmo2, load_molmo2
from molmoact_train.families.molmo2.processor import Molmo2Processor, Prompt
from molmoact_train.families.molmoact2.network.cache import KeyValueCache


class Molmo2Pointing:
    """`PointingModel` and `ClipModel` on one checkpoint folder."""

    def __init__(self, model: Molmo2, processor: Molmo2Processor) -> None:
        self.model, self.processor = model, processor

    @classmethod
    def from_folder(
        cls, folder: Path, *, device: torch.device, dtype: torch.dtype
    ) -> Molmo2Pointing:
        """Small files first, so that a wrong tokenizer is told before the weights are read."""
        processor = Molmo2Processor.from_folder(folder)
        return cls(load_molmo2(folder, device=device, dtype=dtype), processor)

    def answer(
        self,
        frames: Sequence[NDArray[np.uint8]],
        question: str,
        *,
        is_complete: Callable[[str], bool],
        max_new_tokens: int,
    ) -> list[Answer]:
        """One answer per frame, RGB uint8 [H, W, 3], each looked at by itself, with tiles."""
        asked = [self.processor.pictures([frame], question) for frame in frames]
        return self._greedy(asked, is_complete, max_new_tokens)

    def answer_clip(
        self,
        frames: Sequence[NDArray[np.uint8]],
        times_s: Sequence[float],
        question: str,
        *,
        is_complete: Callable[[str], bool],
        max_new_tokens: int,
    ) -> Answer:
        """One answer about all frames of a clip."""
        asked = self.processor.clip(frames, times_s, question)
        most, length = self.model.config.llm.max_position_embeddings, len(asked.input_ids)
        if length >= most:
            raise UserError(
                f"a clip of {len(frames)} frames is {length} tokens long, and the model reads {most}: "
                "use shorter clips (--clip-frames)."
            )
        return self._greedy([asked], is_complete, min(max_new_tokens, most - length))[0]

    @torch.inference_mode()
    def _greedy(
        self, prompts: Sequence[Prompt], is_complete: Callable[[str], bool], max_new_tokens: int
    ) -> list[Answer]:
        answers = [Answer(read_tokens=len(prompt.input_ids)) for prompt in prompts]
        device = self.model.lm_head.weight.device
        cache = KeyValueCache(self.model.config.llm.num_hidden_layers)
        ids, real = _padded([prompt.input_ids for prompt in prompts], device)
        hidden = self.model.model(
            ids, *_joined(prompts, device), real_BK=real, cache=cache
        ).hidden_BSL
        last = hidden[torch.arange(len(ids), device=device), real.sum(dim=1) - 1]
        for _ in range(max_new_tokens):
            logprobs, tokens = self.model.lm_head(last).float().log_softmax(-1).max(-1)
            extend_answers(
                answers,
                tokens.tolist(),
                logprobs.tolist(),
                end=self.processor.config.eos_id,
                decode=self.processor.decode,
                is_complete=is_complete,
            )
            if all(answer.complete for answer in answers):
                break
            real = torch.cat([real, real.new_ones(len(real), 1)], dim=1)
            last = self.model.model(tokens[:, None], real_BK=real, cache=cache).hidden_BSL[:, -1]
        return answers


def _padded(rows: Sequence[NDArray[np.int64]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Ids padded on the right with -1, and which places are real, [B, S]."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), -1, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.from_numpy(row)
    return ids.to(device), (ids >= 0).to(device)


def _joined(prompts: Sequence[Prompt], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Crops of all prompts, and their windows as rows of all patches."""
    crops, windows, first = [], [], 0
    for images in (prompt.images for prompt in prompts):
        crops.append(torch.from_numpy(images.crops_UPC))
        own = torch.from_numpy(images.windows_V4)
        windows.append(torch.where(own >= 0, own + first, own))
        first += images.crops_UPC.shape[0] * images.crops_UPC.shape[1]
    return torch.cat(crops).to(device), torch.cat(windows).to(device)
