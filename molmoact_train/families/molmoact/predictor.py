"""One question to a loaded network: pictures -> depth codes, a trace and actions in the robot's units.

Giving a trace steers: it is drawn on the first picture exactly as in training, the question says so, and only the
action is generated.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.labels.actions import bin_centers, unnormalize, unnormalize_reference
from molmoact_data.pictures import overlay
from molmoact_data.policies import PredictionFailed
from molmoact_data.statistics import DatasetStatistics, bins_of, check_released_entry, resolve_key
from molmoact_data.text import prompts
from molmoact_train.families.loading import Dtype, load_network
from molmoact_train.families.molmoact.answers import Prediction, Trace, checked_trace
from molmoact_train.families.molmoact.generate import Decoded, decode_constrained, decode_free
from molmoact_train.families.molmoact.grammar import AnswerShape, Grammar, build_grammar
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.families.molmoact.pictures import ImageLike, to_rgb
from molmoact_train.families.molmoact.processor import MolmoActProcessor
from molmoact_train.weights import resolve_model_folder


@dataclass(frozen=True)
class PredictOptions:
    """How to answer."""

    unnorm_key: str | None = None
    """Entry of the checkpoint's `norm_stats`; None = the only one."""
    chunk_size: int | None = 8
    """Steps per answer; None = one flat action (published pre-training and mid-training checkpoints)."""
    num_arms: int = 1
    constrained: bool = True
    kind: Literal["reasoning", "action"] = "reasoning"
    """What is asked where no trace is given: the whole answer, or the action alone."""
    wording: prompts.Wording = "released"
    """What the checkpoint was trained on: the published wording, or that of the reference's fine-tuning code."""


class Predictor:
    """One loaded checkpoint."""

    def __init__(
        self,
        model: MolmoActForActionReasoning,
        processor: MolmoActProcessor,
        norm_stats: Mapping[str, Any],
    ) -> None:
        self.model, self.processor, self.norm_stats = model.eval(), processor, norm_stats
        self._grammars: dict[AnswerShape, Grammar] = {}

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str = "auto",
        dtype: Dtype = "auto",
        norm_stats: Mapping[str, Any] | None = None,
    ) -> Predictor:
        """`auto`: CUDA and bf16 where there is a GPU, else CPU and fp32. `norm_stats` replaces the checkpoint's."""
        folder = resolve_model_folder(str(folder))
        model = load_network(folder, device=device, dtype=dtype)
        if not isinstance(model, MolmoActForActionReasoning):
            raise UserError(
                f"{folder} holds another network than MolmoAct: {type(model).__name__}."
            )
        processor = MolmoActProcessor.from_pretrained(folder)
        return cls(model, processor, model.config.norm_stats if norm_stats is None else norm_stats)

    def entry(self, key: str | None) -> tuple[str, Mapping[str, Any]]:
        """The statistics that an answer is in: by key, or the only ones. Raises `UserError` naming the keys."""
        if not self.norm_stats:
            raise UserError(
                "the checkpoint holds no norm_stats, so neither the number of action dimensions nor their units are "
                "known. Give a dataset_statistics.json with --norm-stats."
            )
        name = resolve_key(list(self.norm_stats), key)
        check_released_entry(self.norm_stats[name], name)
        return name, self.norm_stats[name]

    def predict(
        self,
        images: Sequence[ImageLike],
        instruction: str,
        *,
        trace: Trace | None = None,
        options: PredictOptions | None = None,
    ) -> Prediction:
        """One answer for the pictures of one moment, the external camera first.

        Raises `PredictionFailed` where the network's numbers or the actions are not finite.
        """
        options = options or PredictOptions()
        key, entry = self.entry(options.unnorm_key)
        shape = AnswerShape(
            action_dim=len(entry["action"]["q01"]),
            chunk_size=options.chunk_size,
            kind=options.kind if trace is None else "trajectory",
            num_images=len(images),
            num_arms=options.num_arms,
            num_bins=bins_of(entry),
            wording=options.wording,
        )
        clock = time.perf_counter()
        inputs = self._inputs(images, instruction, trace, shape)
        grammar = self._grammar(shape)
        prepare_s = time.perf_counter() - clock
        done = self._decode(inputs, grammar, constrained=options.constrained)
        return self._read(done, key, entry, prepare_s)

    def _inputs(
        self, images: Sequence[ImageLike], instruction: str, trace: Trace | None, shape: AnswerShape
    ) -> dict[str, Any]:
        pictures: list[ImageLike] = list(images)
        if trace is not None:
            pictures[0] = overlay.draw_trace(to_rgb(pictures[0]), checked_trace(trace))
        question = prompts.question(instruction, shape.kind, len(pictures), wording=shape.wording)
        inputs = self.processor(text=self.processor.prompt(question), images=[pictures])
        if self.model.dtype != torch.float32:
            inputs["images"] = inputs["images"].to(self.model.dtype)
        return inputs

    def _grammar(self, shape: AnswerShape) -> Grammar:
        if shape not in self._grammars:
            self._grammars[shape] = build_grammar(
                shape, self.processor.encode_many, self.processor.eos_id
            )
        return self._grammars[shape]

    def _decode(self, inputs: dict[str, Any], grammar: Grammar, *, constrained: bool) -> Decoded:
        if constrained:
            return decode_constrained(self.model, inputs, grammar)
        return decode_free(
            self.model, inputs, max_new_tokens=grammar.max_tokens, eos_id=self.processor.eos_id
        )

    def _read(
        self, done: Decoded, key: str, entry: Mapping[str, Any], prepare_s: float
    ) -> Prediction:
        text = self.processor.decode(done.token_ids)
        action_dim = len(entry["action"]["q01"])
        parsed = prompts.parse(text, action_dim=action_dim, num_bins=bins_of(entry))
        actions = robot_actions(parsed.action_bins, key, entry)
        if not np.isfinite(actions).all():
            raise PredictionFailed(
                "not_finite", f"the actions of {key!r} hold NaN or infinity", text=text
            )
        return Prediction(
            text=text,
            unnorm_key=key,
            depth_codes=parsed.depth_codes,
            traces=parsed.traces,
            action_bins=parsed.action_bins,
            actions=actions.tolist(),
            problems=parsed.problems,
            seconds={"prepare": prepare_s, **done.seconds},
            forward_passes=done.forward_passes,
            num_tokens=len(done.token_ids),
        )


def robot_actions(
    action_bins: Sequence[Sequence[int]], key: str, entry: Mapping[str, Any]
) -> NDArray[np.float64]:
    """Bins [H][D] -> [H, D] in the robot's units.

    An entry with our per-dimension `spec` is inverted exactly, grippers included; a released one as its own
    parser does (the last dimension raw, the gripper inversion not undone).
    """
    action = entry["action"]
    bins_HD = np.array(action_bins, dtype=np.int64).reshape(-1, len(action["q01"]))
    centers = bin_centers(bins_HD, bins_of(entry))
    if "spec" in entry:
        return unnormalize(centers, DatasetStatistics.from_json({key: entry}, key))
    return unnormalize_reference(
        centers, np.array(action["q01"]), np.array(action["q99"]), action.get("mask")
    )
