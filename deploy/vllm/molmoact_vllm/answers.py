"""Which token may come next, in every request: the answer is whole and well-formed, or it was asked for free.

A request says otherwise by `extra_args` (over HTTP: `vllm_xargs`), see `OPTIONS`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from molmoact_data.errors import UserError
from molmoact_data.statistics import bins_of, resolve_key
from molmoact_train.families.molmoact.grammar import AnswerShape, Grammar, State, build_grammar
from molmoact_train.families.molmoact.policy import HORIZON, run_of
from molmoact_train.families.molmoact.processor import MolmoActProcessor
from molmoact_vllm import ARCHITECTURE

logger = logging.getLogger(__name__)

OPTIONS = {
    "molmoact_free": "1: any token may come; nothing is promised",
    "molmoact_kind": "reasoning (default), or trajectory: steered by a trace that is drawn on the first picture",
    "molmoact_key": "which statistics the action is in; needed where the checkpoint has several",
}
KINDS = ("reasoning", "trajectory")


@dataclass
class Writing:
    """One answer as it grows."""

    grammar: Grammar | None
    """None = nothing can be promised, so nothing is written but the end."""
    state: State
    output_ids: list[int]
    """vLLM's own list: it grows while we hold it."""
    read: int = 0

    def allowed(self) -> list[int]:
        """Tokens that may come next, after reading what was written since the last call."""
        if self.grammar is None:
            return []
        for token in self.output_ids[self.read :]:
            successors = self.grammar.successors(self.state)
            if token not in successors:
                raise RuntimeError(f"token {token} was written though it was not allowed")
            self.state = successors[token]
            self.read += 1
        return list(self.grammar.successors(self.state))


class AnswerGrammar(LogitsProcessor):
    """Active where the model is MolmoAct; other models of this vLLM are left alone."""

    statistics_keys: ClassVar[Sequence[str] | None] = None
    """Set in the process that takes requests, so that a wrong key is refused there and does not end the engine."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        given = sampling_params.extra_args or {}
        for name in given:
            if name.startswith("molmoact_") and name not in OPTIONS:
                raise ValueError(f"{name} is no option; there are {', '.join(OPTIONS)}")
        kind = given.get("molmoact_kind", KINDS[0])
        if kind not in KINDS:
            raise ValueError(f"molmoact_kind is one of {', '.join(KINDS)}, not {kind!r}")
        if cls.statistics_keys is not None and not given.get("molmoact_free"):
            resolve_key(cls.statistics_keys, given.get("molmoact_key"))

    def __init__(
        self,
        vllm_config: VllmConfig,
        device: torch.device,
        is_pin_memory: bool,  # noqa: FBT001
    ) -> None:
        model = vllm_config.model_config
        self._active = ARCHITECTURE in (model.architectures or [])
        self._rows: dict[int, Writing] = {}
        self._grammars: dict[AnswerShape, Grammar] = {}
        if self._active:
            if vllm_config.scheduler_config.async_scheduling:
                raise ValueError(
                    "an answer's grammar must see every token before the next one is chosen; start vLLM with "
                    "--no-async-scheduling"
                )
            self._statistics = model.hf_config.norm_stats
            self._wording = run_of(Path(model.model)).get("wording", "released")
            self._processor = MolmoActProcessor.from_pretrained(model.model)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if self._active:
            process_dict_updates(self._rows, batch_update, self._begin)

    def apply(self, logits: Tensor) -> Tensor:
        for row, writing in self._rows.items():
            allowed = torch.tensor(writing.allowed() or [self._processor.eos_id])
            kept = logits[row, allowed]
            logits[row] = float("-inf")
            logits[row, allowed] = kept
        return logits

    def _begin(
        self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
    ) -> Writing | None:
        options = params.extra_args or {}
        if options.get("molmoact_free"):
            return None
        try:
            grammar = self._grammar(self._shape(options, prompt_ids or []))
        except UserError as error:
            logger.error("a request gets an empty answer: %s", error)
            return Writing(None, frozenset(), output_ids)
        return Writing(grammar, grammar.start, output_ids)

    def _shape(self, options: dict[str, Any], prompt_ids: list[int]) -> AnswerShape:
        key = resolve_key(list(self._statistics), options.get("molmoact_key"))
        entry = self._statistics[key]
        return AnswerShape(
            action_dim=len(entry["action"]["q01"]),
            chunk_size=entry.get("horizon", HORIZON),
            kind=options.get("molmoact_kind", KINDS[0]),
            num_images=self._num_pictures(prompt_ids),
            num_arms=entry.get("num_arms", 1),
            num_bins=bins_of(entry),
            wording=self._wording,
        )

    def _num_pictures(self, prompt_ids: list[int]) -> int:
        grids = prompt_ids.count(self._processor.image_ids.start)
        per_picture = 1 if self._processor.image_processor.config.crop_mode == "resize" else 2
        return grids // per_picture

    def _grammar(self, shape: AnswerShape) -> Grammar:
        if shape not in self._grammars:
            processor = self._processor
            self._grammars[shape] = build_grammar(shape, processor.encode_many, processor.eos_id)
        return self._grammars[shape]
