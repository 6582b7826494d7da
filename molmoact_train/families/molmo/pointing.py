"""Molmo answering questions about frames: greedy, batched over frames of any sizes, with a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import DynamicCache

from molmoact_data.errors import UserError
from molmoact_data.teachers.answers import Answer, extend_answers
from molmoact_train.families.molmo.folder import load_molmo
from molmoact_train.families.molmo.processor import MolmoProcessor
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning


class MolmoPointing:
    """`PointingModel` on one checkpoint folder."""

    def __init__(self, model: MolmoActForActionReasoning, processor: MolmoProcessor) -> None:
        """Raises `UserError` where the tokenizer's image tokens are not where the network has them."""
        expected, found = model.config.image_patch_id, processor.image_ids.patch
        if found != expected:
            raise UserError(
                f"the tokenizer puts <im_patch> at id {found}, the embedding table at {expected}: these tokenizer "
                "files belong to another checkpoint."
            )
        self.model, self.processor = model, processor

    @classmethod
    def from_folder(
        cls, folder: Path, *, device: torch.device, dtype: torch.dtype
    ) -> MolmoPointing:
        """Small files first, so that a wrong tokenizer is told before 32 GB are read."""
        processor = MolmoProcessor.from_pretrained(folder)
        return cls(load_molmo(folder, device=device, dtype=dtype), processor)

    @torch.inference_mode()
    def answer(
        self,
        frames: Sequence[NDArray[np.uint8]],
        question: str,
        *,
        is_complete: Callable[[str], bool],
        max_new_tokens: int,
    ) -> list[Answer]:
        """What the model says about each frame, RGB uint8 [H, W, 3].

        An answer ends with the end of text, as soon as `is_complete` says so of its text, or after `max_new_tokens`.
        """
        device = self.model.lm_head.weight.device
        inputs = {
            name: tensor.to(device) for name, tensor in self.processor(frames, question).items()
        }
        cache = DynamicCache(config=self.model.config)
        mask = inputs.pop("attention_mask")
        answers = [Answer(read_tokens=read) for read in mask.sum(dim=1).tolist()]
        for _ in range(max_new_tokens):
            logits = self.model(
                **inputs, attention_mask=mask, past_key_values=cache, logits_to_keep=1
            ).logits[:, -1]
            logprobs, ids = logits.float().log_softmax(-1).max(-1)
            extend_answers(
                answers,
                ids.tolist(),
                logprobs.tolist(),
                end=self.processor.eos_id,
                decode=self.processor.decode,
                is_complete=is_complete,
            )
            if all(answer.complete for answer in answers):
                break
            inputs = {"input_ids": ids[:, None]}
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return answers
