"""Weighted cross-entropy with z-loss, chunk by chunk, so that the logits never exist all at once.

One row of logits is 152,064 numbers (0.6 MB in fp32): a LIBERO batch of eight on every row would be 11 GB,
on the rows that carry loss 2 GB, and a chunk of 1024 rows is 0.6 GB whatever the batch.
Legend: R rows that carry loss, L model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Z_LOSS_SCALE = 1e-4


@dataclass(frozen=True)
class TokenLoss:
    """The loss to differentiate, and what it is made of (detached)."""

    loss: Tensor
    """cross_entropy + z_loss, scalar fp32."""
    cross_entropy: Tensor
    """sum(weight * nll) / divisor, scalar."""
    z_loss: Tensor
    """scale * sum(weight * logsumexp**2) / divisor, scalar."""
    nll_R: Tensor
    """Negative log likelihood of each row's target, nats, unweighted."""
    correct_R: Tensor | None
    """Whether the arg max is the target; None unless asked for (it costs a pass over the vocabulary)."""


def token_loss(
    hidden_RL: Tensor,
    project: Callable[[Tensor], Tensor],
    targets_R: Tensor,
    weights_R: Tensor,
    *,
    divisor: Tensor | float,
    z_loss_scale: float = Z_LOSS_SCALE,
    chunk_rows: int | None = 1024,
    with_accuracy: bool = False,
) -> TokenLoss:
    """Mean loss of the rows over `divisor`; `project` is the LM head, hidden rows -> logits.

    Logits are cast to fp32. With more than `chunk_rows` rows, each chunk's logits are dropped after use and
    computed again in the backward pass; `chunk_rows=None` keeps them all (the plain path).
    """
    whole = chunk_rows is None or len(hidden_RL) <= chunk_rows
    size = max(1, len(hidden_RL)) if whole or chunk_rows is None else chunk_rows
    parts = []
    for hidden, targets in zip(hidden_RL.split(size), targets_R.split(size), strict=True):
        if whole or not torch.is_grad_enabled():
            parts.append(_rows(hidden, project, targets, with_accuracy=with_accuracy))
        else:
            parts.append(
                checkpoint(
                    _rows,
                    hidden,
                    project,
                    targets,
                    with_accuracy=with_accuracy,
                    use_reentrant=False,
                )
            )
    nll_R, lse_R, correct_R = (torch.cat(column) for column in zip(*parts, strict=True))
    weights_R = weights_R.float()
    cross_entropy = (weights_R * nll_R).sum() / divisor
    z_loss = z_loss_scale * (weights_R * lse_R.square()).sum() / divisor
    return TokenLoss(
        loss=cross_entropy + z_loss,
        cross_entropy=cross_entropy.detach(),
        z_loss=z_loss.detach(),
        nll_R=nll_R.detach(),
        correct_R=correct_R if with_accuracy else None,
    )


def _rows(
    hidden_RL: Tensor,
    project: Callable[[Tensor], Tensor],
    targets_R: Tensor,
    *,
    with_accuracy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: negative log likelihood, logsumexp, whether the arg max is right (else an empty tensor)."""
    logits = project(hidden_RL).float()
    with torch.autocast(logits.device.type, enabled=False):
        lse_R = logits.logsumexp(dim=-1)
        nll_R = lse_R - logits.gather(-1, targets_R[:, None])[:, 0]
    correct_R = logits.argmax(-1) == targets_R if with_accuracy else targets_R[:0].bool()
    return nll_R, lse_R, correct_R


def next_token_loss(logits_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    """The Hugging Face convention: labels are shifted here, -100 is ignored, plain mean in fp32."""
    logits = logits_BSV[:, :-1].float().flatten(0, 1)
    return F.cross_entropy(logits, labels_BS[:, 1:].flatten(), ignore_index=-100)
