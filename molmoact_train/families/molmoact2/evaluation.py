"""How far MolmoAct2 is off on held-out rows: its losses, and sampled actions in the robot's units."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from molmoact_data.policies import Observation, PredictionFailed
from molmoact_train.config import TrainConfig
from molmoact_train.data.rendering import decode_image
from molmoact_train.data.sources import ShardSource, Source
from molmoact_train.families.measures import AnswerErrors, Seen, action_error, compare_codes
from molmoact_train.families.molmoact2.encoder import MolmoAct2Encoder
from molmoact_train.families.molmoact2.network import MolmoAct2
from molmoact_train.families.molmoact2.policy import ActOptions, MolmoAct2Policy
from molmoact_train.families.molmoact2.samples import MicroBatch

logger = logging.getLogger(__name__)


def score(
    model: nn.Module, batch: MicroBatch, device: torch.device, *, text: bool, flow: bool
) -> Tensor:
    """float64 [5]: weighted nll, weight, weighted correct; flow loss, chunks."""
    inputs, chunks = batch.on(device)
    if not text:
        inputs = {k: v for k, v in inputs.items() if k not in ("targets", "loss_weights")}
    out = model(**inputs, chunks=chunks if flow else None, with_accuracy=True)
    sums = torch.zeros(5, dtype=torch.float64)
    if out.text is not None:
        weights = out.text_weights.double().cpu()
        sums[0] = (out.text.nll_R.double().cpu() * weights).sum()
        sums[1] = weights.sum()
        sums[2] = (out.text.correct_R.double().cpu() * weights).sum()
    if out.flow_BE is not None:
        sums[3] = out.flow_BE.double().sum().cpu()
        sums[4] = chunks.exists_BE.sum().cpu()
    return sums


def scores(sums: Tensor) -> dict[str, float]:
    """`eval/loss` and `eval/accuracy` of the tokens, `eval/flow_loss` of the chunks; each where there are any."""
    nll, weight, correct, flow, chunks = sums.tolist()
    found: dict[str, float] = {}
    if weight:
        found |= {"eval/loss": nll / weight, "eval/accuracy": correct / weight}
    if chunks:
        found["eval/flow_loss"] = flow / chunks
    return found


def answers(
    model: nn.Module, encoder: MolmoAct2Encoder, sources: Sequence[Source], config: TrainConfig
) -> list[AnswerErrors]:
    """Whole answers on frames spread over the held-out rows, sampled from a fixed seed."""
    usable = [s for s in sources if isinstance(s, ShardSource) and s.size and s.statistics]
    if not usable or not config.eval_generate or encoder.settings.style_action <= 0:
        return []
    found = []
    with whole(model) as plain:
        for number in range(config.eval_generate):
            source = usable[number % len(usable)]
            found.append(
                _errors(plain, encoder, source, number * source.size // config.eval_generate)
            )
    return found


@contextmanager
def whole(model: nn.Module) -> Iterator[MolmoAct2]:
    """The network with the parameters of its root gathered, so that its parts can be called one by one."""
    assert isinstance(model, MolmoAct2)
    if not isinstance(model, FSDPModule):
        yield model
        return
    model.unshard()
    try:
        yield model
    finally:
        model.reshard()


def _errors(
    model: MolmoAct2, encoder: MolmoAct2Encoder, source: ShardSource, index: int
) -> AnswerErrors:
    """One answer against what was recorded; an answer that is no action is said and counted."""
    row = source.row(index)
    assert row.actions_HD is not None
    tag = encoder.tag(row)
    discrete = encoder.settings.action_mode == "discrete"
    options = ActOptions(mode="discrete" if discrete else "continuous", whole_chunk=True)
    policy = MolmoAct2Policy(model, encoder.processor, tag, options, fast=encoder.fast)
    policy.reset(index)
    images = {
        f"camera_{n}": np.asarray(decode_image(encoded, row.where))
        for n, encoded in enumerate(row.images)
    }
    seen = Seen(next(iter(images.values())), row.instruction, row.where)
    try:
        done = policy.act(Observation(images, row.instruction, row.state, episode=row.where))
    except PredictionFailed as error:
        logger.warning("%s: the answer is no action (%s)", row.where, error)
        return AnswerErrors(None, None, None, failed=error.reason, seen=seen)
    recorded = row.actions_HD[: min(row.num_valid, tag.action_horizon)]
    codes = None if done.depth_codes is None else done.depth_codes.tolist()
    return AnswerErrors(
        code_accuracy=compare_codes(codes, encoder.depth_target(row)),
        trace_distance=None,
        action_error_D=action_error(done.actions_HD, recorded),
        seen=seen,
    )
