"""Flow matching: a straight path from noise (t = 0) to the actions (t = 1), its loss, and its Euler solution.

Legend: B rows of context, E action chunks per row, F draws of (noise, t) per chunk, T steps, A action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from molmoact_train.families.molmoact2.network.config import FlowConfig
from molmoact_train.families.molmoact2.network.expert import ActionExpert, ExpertContext


@dataclass(frozen=True)
class ActionChunks:
    """The chunks of a batch with their draws; padded dimensions and steps are zeros. All fp32."""

    actions_BETA: Tensor
    noise_BEFTA: Tensor
    times_BEF: Tensor
    """0..1."""
    steps_BET: Tensor
    """bool; False = beyond the horizon of the chunk's robot. All False = no chunk in this place."""
    dims_BEA: Tensor
    """bool; False = a dimension that the chunk's robot does not have."""
    documents_BE: Tensor | None = None
    """The document each chunk belongs to; None = one chunk per row, of the whole row."""

    @property
    def exists_BE(self) -> Tensor:
        return self.steps_BET.any(dim=-1)


def draw_times(rng: np.random.Generator, count: int, flow: FlowConfig) -> NDArray[np.float32]:
    """t = offset + (min(cutoff, offset + scale) - offset) u with u ~ Beta(alpha, beta), fp32 [count]."""
    span = min(flow.cutoff, flow.time_offset + flow.time_scale) - flow.time_offset
    drawn = rng.beta(flow.beta_alpha, flow.beta_beta, size=count)
    return (flow.time_offset + span * drawn).astype(np.float32)


def flow_loss(expert: ActionExpert, context: ExpertContext, chunks: ActionChunks) -> Tensor:
    """Squared error of the velocity per chunk, fp32 [B, E]; 0 where there is no chunk.

    Mean over the real dimensions, then over draws and all T steps: padded steps count in the denominator, as in
    the original. The decoder's context is shared by all chunks and draws of its row.
    """
    with torch.autocast(chunks.actions_BETA.device.type, enabled=False):
        dims = chunks.dims_BEA[:, :, None, None].float()
        t = chunks.times_BEF[..., None, None]
        actions = chunks.actions_BETA[:, :, None] * dims
        noise = chunks.noise_BEFTA * dims
        noisy = (1 - t) * noise + t * actions
        target = actions - noise
    draws = chunks.times_BEF.shape[2]
    steps_BEFT = chunks.steps_BET[:, :, None].expand(-1, -1, draws, -1)
    # Where there is no chunk at all, every step sees every step: softmax over nothing would be NaN.
    seen_BEFT = steps_BEFT | ~chunks.exists_BE[:, :, None, None]
    velocity = expert(
        noisy.flatten(1, 2),
        expert.condition(chunks.times_BEF.flatten(1)),
        context,
        None if bool(chunks.steps_BET.all()) else seen_BEFT.flatten(1, 2),
    )
    with torch.autocast(velocity.device.type, enabled=False):
        error = (velocity.float().view_as(target) - target).square() * dims
        per_step = error.sum(-1) / dims.sum(-1).clamp(min=1)
        return (per_step * steps_BEFT).mean(dim=(2, 3))


@torch.no_grad()
def euler(
    expert: ActionExpert,
    context: ExpertContext,
    noise_BTA: Tensor,
    num_steps: int,
    dims_BA: Tensor | None = None,
) -> Tensor:
    """From noise to actions [B, T, A] in `num_steps` equal steps; the trajectory is fp32 whatever the weights are.

    `dims_BA` False = a dimension that stays 0. No data-dependent Python inside, so that it can be captured.
    """
    times = torch.arange(num_steps, device=noise_BTA.device, dtype=torch.float32) / num_steps
    conditions = expert.condition(times[:, None]).unbind()  # depend on t alone: [N] of [1, D]
    batch = len(noise_BTA)
    keep = None if dims_BA is None else dims_BA[:, None].float()
    x = noise_BTA.float() if keep is None else noise_BTA.float() * keep
    for condition in conditions:
        velocity = expert(x[:, None], condition.expand(batch, 1, -1), context)[:, 0].float()
        if keep is not None:
            velocity = velocity * keep
        x = x + velocity / num_steps
    return x
