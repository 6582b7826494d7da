"""Greedy decoding of one answer, constrained by the grammar or free.

Under the grammar an invalid answer is impossible, and tokens that leave no choice (the wording, brackets, the later
bytes of most action strings) are fed together with the next real decision: they cost no forward pass of their own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from molmoact_data.policies import PredictionFailed
from molmoact_train.families.molmoact.grammar import Grammar
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning

PREFILL = "prefill"


@dataclass
class Decoded:
    """An answer and what it cost."""

    token_ids: list[int] = field(default_factory=list)
    """The answer, end of text included unless the budget ran out."""
    forward_passes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage: `prefill` (prompt, images, opening words), then what each decision belonged to."""

    def count(self, stage: str, since: float) -> float:
        """Add the time since `since` to a stage; returns now."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
        return now


class _Decoding:
    """The model with its cache: feed tokens, get the logits behind the last one."""

    def __init__(self, model: MolmoActForActionReasoning, inputs: Mapping[str, Any]) -> None:
        if len(inputs["input_ids"]) != 1:
            raise ValueError("one prompt at a time: forced runs differ between answers")
        self._model = model
        self._device = model.lm_head.weight.device
        self._prompt = {
            name: value.to(self._device)
            for name, value in inputs.items()
            if name != "attention_mask"  # a single row has no padding
        }
        self._cache: DynamicCache | None = None
        self.forward_passes = 0

    def feed(self, token_ids: list[int]) -> Tensor:
        """Logits [vocabulary], finite, for the token after `token_ids`; the first call puts the prompt before them.

        Raises `PredictionFailed`: an arg max over NaN would be an action.
        """
        new = torch.tensor([token_ids], dtype=torch.long, device=self._device)
        inputs: dict[str, Any] = {"input_ids": new}
        if self._cache is None:
            self._cache = DynamicCache(config=self._model.config)
            inputs = self._prompt | {
                "input_ids": torch.cat([self._prompt["input_ids"], new], dim=1)
            }
        self.forward_passes += 1
        done = self._model(**inputs, past_key_values=self._cache, logits_to_keep=1)
        logits = done.logits[0, -1]
        if not bool(torch.isfinite(logits).all()):
            raise PredictionFailed(
                "not_finite",
                f"the network's numbers are NaN or infinite in pass {self.forward_passes}: its weights or its "
                "precision are broken",
            )
        return logits


@torch.inference_mode()
def decode_constrained(
    model: MolmoActForActionReasoning,
    inputs: Mapping[str, Any],
    grammar: Grammar,
    *,
    batch_forced: bool = True,
) -> Decoded:
    """The most likely valid token at each decision. `batch_forced=False` feeds every token by itself.

    `inputs` is a processor batch of one prompt.
    """
    decoding, done = _Decoding(model, inputs), Decoded()
    state, pending = grammar.start, list[int]()
    stage, clock = PREFILL, time.perf_counter()
    while not grammar.is_end(state):
        if batch_forced:
            forced, state = grammar.forced(state)
            done.token_ids += forced
            pending += forced
            if grammar.is_end(state):
                break
        successors = grammar.successors(state)
        logits = decoding.feed(pending)
        allowed = torch.tensor(sorted(successors), device=logits.device)
        token = int(allowed[logits[allowed].argmax()])
        clock = done.count(stage, clock)
        state = successors[token]
        stage = grammar.stage(state) if successors else stage
        done.token_ids.append(token)
        pending = [token]
    done.forward_passes = decoding.forward_passes
    return done


@torch.inference_mode()
def decode_free(
    model: MolmoActForActionReasoning,
    inputs: Mapping[str, Any],
    *,
    max_new_tokens: int,
    eos_id: int,
) -> Decoded:
    """The most likely token of the whole vocabulary until end of text or the budget."""
    decoding, done = _Decoding(model, inputs), Decoded()
    stage, clock, pending = PREFILL, time.perf_counter(), list[int]()
    while len(done.token_ids) < max_new_tokens:
        token = int(decoding.feed(pending).argmax())
        clock = done.count(stage, clock)
        stage = "answer"
        done.token_ids.append(token)
        if token == eos_id:
            break
        pending = [token]
    done.forward_passes = decoding.forward_passes
    return done
