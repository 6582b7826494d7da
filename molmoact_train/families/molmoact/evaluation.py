"""What MolmoAct gets right by part, teacher-forced and in whole answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from molmoact_data.pictures import overlay
from molmoact_data.policies import PredictionFailed
from molmoact_train.config import TrainConfig
from molmoact_train.data.rendering import decode_image, shrink
from molmoact_train.data.sources import ShardSource, Source
from molmoact_train.families.measures import (
    AnswerErrors,
    Seen,
    action_error,
    compare_codes,
    mean_trace_distance,
)
from molmoact_train.families.molmoact.encoder import MolmoActEncoder
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.families.molmoact.predictor import PredictOptions, Predictor
from molmoact_train.families.molmoact.samples import PARTS, MicroBatch

logger = logging.getLogger(__name__)


@dataclass
class PartSums:
    """Sums over target tokens, one column per entry of `samples.PARTS`; plain addition merges processes."""

    values_3P: torch.Tensor
    """float64 [3, parts]: weighted nll, weight, weighted correct."""

    @classmethod
    def empty(cls) -> PartSums:
        return cls(torch.zeros(3, len(PARTS), dtype=torch.float64))

    def add(self, nll_R: torch.Tensor, correct_R: torch.Tensor, parts_R: torch.Tensor,
            weights_R: torch.Tensor) -> None:  # fmt: skip
        """Count the rows of one forward pass."""
        weights = weights_R.double().cpu()
        rows = torch.stack([nll_R.double().cpu() * weights, weights, correct_R.cpu() * weights])
        self.values_3P.index_add_(1, parts_R.long().cpu(), rows)

    def summary(self, prefix: str) -> dict[str, float]:
        """Loss and accuracy over all tokens and for each part that occurred."""
        nll, weight, correct = self.values_3P
        found = {}
        if weight.sum() > 0:
            found[f"{prefix}/loss"] = float(nll.sum() / weight.sum())
            found[f"{prefix}/accuracy"] = float(correct.sum() / weight.sum())
        for i, part in enumerate(PARTS):
            if weight[i] > 0:
                found[f"{prefix}/loss_{part}"] = float(nll[i] / weight[i])
                found[f"{prefix}/accuracy_{part}"] = float(correct[i] / weight[i])
        return found


def score(
    model: MolmoActForActionReasoning, batch: MicroBatch, device: torch.device
) -> torch.Tensor:
    """`PartSums.values_3P` of one batch."""
    sums = PartSums.empty()
    out = model(**batch.inputs_on(device), with_accuracy=True)
    rows = out.loss_rows.cpu()
    sums.add(
        out.token_loss.nll_R,
        out.token_loss.correct_R,
        batch.parts_BS.flatten()[rows],
        batch.inputs["loss_weights"].flatten()[rows],
    )
    return sums.values_3P


def answers(
    model: MolmoActForActionReasoning,
    encoder: MolmoActEncoder,
    sources: Sequence[Source],
    config: TrainConfig,
) -> list[AnswerErrors]:
    """Whole answers on frames spread over the held-out rows; one predictor (one grammar) per source."""
    asked: dict[str, Predictor] = {}
    found = []
    for source, row in frames_to_answer(sources, config.eval_generate):
        if source.name not in asked:
            assert source.statistics is not None
            asked[source.name] = Predictor(model, encoder.processor, source.statistics.to_json())
        found.append(answer_errors(asked[source.name], encoder, source, row))
    return found


def frames_to_answer(sources: Sequence[Source], count: int) -> list[tuple[ShardSource, int]]:
    """Frames spread evenly over the held-out rows that a whole answer can be asked about."""
    usable = [
        s for s in sources
        if isinstance(s, ShardSource) and s.size and s.statistics and s.layout.num_arms is not None
    ]  # fmt: skip
    if not usable or not count:
        return []
    found = []
    for number in range(count):
        source = usable[number % len(usable)]
        found.append((source, number * source.size // count))
    return [(source, row) for source, row in found if source.row(row).traces is not None]


def answer_errors(
    predictor: Predictor, encoder: MolmoActEncoder, source: ShardSource, index: int
) -> AnswerErrors:
    """Answer one frame as `molmoact predict` would, and compare with what was recorded.

    Where the data have no depth codes, the answer is steered by the recorded trace instead; a run that knows actions
    alone is asked for nothing else.
    """
    row, settings = source.row(index), encoder.settings
    assert row.action_bins is not None
    assert row.actions_HD is not None
    assert row.traces is not None
    alone = "reasoning" not in settings.kinds and "action" in settings.kinds
    steer = row.depth_codes is None and not alone
    options = PredictOptions(
        chunk_size=len(row.action_bins),
        num_arms=len(row.traces),
        kind="action" if alone else "reasoning",
        wording=settings.wording,
    )
    pictures = [shrink(decode_image(e, row.where), settings.max_side) for e in row.images]
    try:
        found = predictor.predict(
            pictures, row.instruction, trace=row.traces[0] if steer else None, options=options
        )
    except PredictionFailed as failed:
        logger.warning("%s: the answer is no action (%s)", row.where, failed)
        seen = Seen(np.asarray(pictures[0]), row.instruction, row.where)
        return AnswerErrors(None, None, None, failed=failed.reason, seen=seen)
    return AnswerErrors(
        code_accuracy=None
        if steer or alone
        else compare_codes(found.depth_codes[0], row.depth_codes),
        trace_distance=None if steer or alone else mean_trace_distance(found.traces, row.traces),
        action_error_D=action_error(np.asarray(found.actions), row.actions_HD[: row.num_valid]),
        seen=Seen(_drawn(pictures[0], found.traces, row.traces), row.instruction, row.where),
    )


def _drawn(
    picture: Image.Image,
    predicted: Sequence[Sequence[Sequence[float]]],
    recorded: Sequence[Sequence[Sequence[int]]],
) -> NDArray[np.uint8]:
    """The picture with the predicted paths over the recorded ones."""
    drawn = overlay.readable(np.asarray(picture))
    for trace in recorded:
        drawn = overlay.draw_path(drawn, trace, overlay.TAKEN_RGB, overlay.TRACE_THICKNESS)
    traces = [np.rint(np.asarray(trace)).astype(int).tolist() for trace in predicted]
    return overlay.draw_labels(drawn, traces=traces, points=[])
