"""Held-out evaluation: what the model gets right by part, and how far its answers are off in real units.

Two views. Teacher-forced (cheap, many samples): loss and token accuracy of depth, trace and action tokens.
Generated (a few samples, constrained decoding): code accuracy, trace distance in grid units (0..255) and
open-loop action error in the robot's own units against the *recorded* actions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from molmoact_data.processes import World
from molmoact_train.config import TrainConfig
from molmoact_train.data.collate import MicroBatch, split_by_length
from molmoact_train.data.dataset import PARTS, TrainingData
from molmoact_train.data.rendering import decode_image, shrink
from molmoact_train.data.sources import ShardSource
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.families.molmoact.predictor import PredictOptions, Predictor
from molmoact_train.parallel import autocast


@dataclass
class PartSums:
    """Sums over target tokens, one column per entry of `dataset.PARTS`; plain addition merges processes."""

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


@torch.no_grad()
def teacher_forced(
    model: MolmoActForActionReasoning, data: TrainingData, config: TrainConfig, world: World
) -> dict[str, float]:
    """`eval/loss`, `eval/accuracy` and both by part over `eval_samples` held-out samples."""
    sums = PartSums.empty()
    for batch in _eval_batches(data, config, world):
        inputs = batch.inputs_on(world.device)
        with autocast(config, world.device):
            out = model(**inputs, with_accuracy=True)
        rows = out.loss_rows.cpu()
        sums.add(
            out.token_loss.nll_R,
            out.token_loss.correct_R,
            batch.parts_BS.flatten()[rows],
            batch.inputs["loss_weights"].flatten()[rows],
        )
    return PartSums(world.sum(sums.values_3P)).summary("eval")


def _eval_batches(data: TrainingData, config: TrainConfig, world: World) -> Iterator[MicroBatch]:
    """This process's share of the held-out samples, the same number of passes everywhere."""
    count = max(config.eval_samples, world.size)
    share = [data[p] for p in range(world.rank, count, world.size)]
    longest_share = -(-count // world.size)
    yield from split_by_length(share, -(-longest_share // config.device_batch_size)).micro_batches


@dataclass(frozen=True)
class AnswerErrors:
    """How far one generated answer is off; None where the sample has no such part."""

    code_accuracy: float | None
    """Share of the depth codes that are right."""
    trace_distance: float | None
    """Mean distance of trace points, grid units."""
    action_error_D: NDArray[np.float64] | None
    """Mean absolute error per dimension, robot units."""


def compare_codes(found: Sequence[int] | None, expected: Sequence[int] | None) -> float | None:
    """Share of equal codes; None where there is nothing to compare."""
    if found is None or expected is None:
        return None
    return float(np.mean(np.asarray(found) == np.asarray(expected)))


def trace_distance(
    found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]], samples: int = 20
) -> float:
    """Mean distance between two poly-lines walked at equal pace, in the units of their points.

    Both are resampled at `samples` equal shares of their length, because the number of points may differ.
    An empty found trace is as far as the grid allows.
    """
    if len(found) == 0:
        return float(np.hypot(255, 255))
    walks = [_resample(np.asarray(line, dtype=np.float64), samples) for line in (found, expected)]
    return float(np.linalg.norm(walks[0] - walks[1], axis=1).mean())


def _resample(line_P2: NDArray[np.float64], samples: int) -> NDArray[np.float64]:
    if len(line_P2) == 1:
        return np.repeat(line_P2, samples, axis=0)
    steps = np.linalg.norm(np.diff(line_P2, axis=0), axis=1)
    walked = np.concatenate([[0.0], np.cumsum(steps)])
    if walked[-1] == 0:
        return np.repeat(line_P2[:1], samples, axis=0)
    at = np.linspace(0, walked[-1], samples)
    return np.stack([np.interp(at, walked, line_P2[:, axis]) for axis in (0, 1)], axis=1)


def action_error(
    found_HD: NDArray[np.floating], recorded_hD: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Mean absolute error per dimension over the steps that were recorded, h <= H."""
    steps = len(recorded_hD)
    return np.abs(np.asarray(found_HD, dtype=np.float64)[:steps] - recorded_hD).mean(axis=0)


def summarise_answers(answers: Sequence[AnswerErrors]) -> dict[str, float]:
    """Means over the answers that have the part; one number per action dimension too."""
    found: dict[str, float] = {}
    codes = [a.code_accuracy for a in answers if a.code_accuracy is not None]
    traces = [a.trace_distance for a in answers if a.trace_distance is not None]
    actions = [a.action_error_D for a in answers if a.action_error_D is not None]
    if codes:
        found["eval/code_accuracy"] = float(np.mean(codes))
    if traces:
        found["eval/trace_distance_error"] = float(np.mean(traces))
    if actions:
        mean_D = np.mean(actions, axis=0)
        found["eval/action_error"] = float(mean_D.mean())
        found |= {f"eval/action_error_dim{d}": float(value) for d, value in enumerate(mean_D)}
    return found


@torch.no_grad()
def generated(
    model: MolmoActForActionReasoning, data: TrainingData, config: TrainConfig, world: World
) -> dict[str, float]:
    """Errors of whole answers on `eval_generate` held-out frames of our record.

    Every process generates the same answers, so that the passes of a sharded model stay in step.
    """
    answers = []
    asked: dict[str, Predictor] = {}  # one per source: each builds its grammar once
    for source, row in _frames_to_answer(data, config.eval_generate):
        if source.name not in asked:
            assert source.statistics is not None
            asked[source.name] = Predictor(model, data.processor, source.statistics.to_json())
        with autocast(config, world.device):
            answers.append(answer_errors(asked[source.name], data, config, source, row))
    return summarise_answers(answers)


def _frames_to_answer(data: TrainingData, count: int) -> list[tuple[ShardSource, int]]:
    """Frames spread evenly over the held-out rows that a whole answer can be asked about."""
    sources = [
        s for s in data.sources
        if isinstance(s, ShardSource) and s.size and s.statistics and s.layout.num_arms is not None
    ]  # fmt: skip
    if not sources or not count:
        return []
    found = []
    for number in range(count):
        source = sources[number % len(sources)]
        found.append((source, number * source.size // count))
    return [(source, row) for source, row in found if source.row(row).traces is not None]


def answer_errors(
    predictor: Predictor,
    data: TrainingData,
    config: TrainConfig,
    source: ShardSource,
    index: int,
) -> AnswerErrors:
    """Answer one frame as `molmoact predict` would, and compare with what was recorded.

    Where the data have no depth codes, the answer is steered by the recorded trace instead.
    """
    row = source.row(index)
    assert row.action_bins is not None
    assert row.traces is not None
    steer = row.depth_codes is None
    options = PredictOptions(
        chunk_size=len(row.action_bins), num_arms=len(row.traces), wording=config.wording
    )
    pictures = [shrink(decode_image(e, row.where), data.settings.max_side) for e in row.images]
    found = predictor.predict(
        pictures, row.instruction, trace=row.traces[0] if steer else None, options=options
    )
    return AnswerErrors(
        code_accuracy=None if steer else compare_codes(found.depth_codes[0], row.depth_codes),
        trace_distance=None if steer else _mean_trace_distance(found.traces, row.traces),
        action_error_D=action_error(np.asarray(found.actions), source.recorded_actions(index)),
    )


def _mean_trace_distance(
    found: Sequence[Sequence[Sequence[float]]], expected: Sequence[Sequence[Sequence[int]]]
) -> float:
    """Over the recorded arms; an arm that the answer leaves empty counts as far off as can be.

    The reference's wording says a single arm twice; what is said beyond the recorded arms is not compared.
    """
    padded = [*found, *[[]] * (len(expected) - len(found))]
    return float(np.mean([trace_distance(f, e) for f, e in zip(padded, expected, strict=False)]))
