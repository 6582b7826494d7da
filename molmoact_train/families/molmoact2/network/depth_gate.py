"""The depth gate of Think: how much the action expert trusts the depth answer it reads.

Legend: B batch, S context tokens, E width of keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from molmoact_train.families.molmoact.network.attention import document_runs


class DepthGate(nn.Linear):
    """A scalar in 0..1 from the mean value vector of the visible tokens that are not depth."""

    def __init__(self, width: int, init_bias: float) -> None:
        super().__init__(width, 1)
        self.init_bias = init_bias

    def reset_parameters(self) -> None:
        """Zeros; `initialise` sets the bias once the wanted value is known."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def initialise(self) -> None:
        """As published: weight 0, bias negative, so that depth starts nearly hidden."""
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, self.init_bias)

    def forward(self, mean_value: Tensor) -> Tensor:
        """[..., E] -> [..., 1]."""
        return torch.sigmoid(super().forward(mean_value))


def gate_depth(
    gates: DepthGate | nn.ModuleList,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    visible_BS: Tensor,
    depth_BS: Tensor,
    documents_BS: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values [B, S, E] per layer, those of depth tokens multiplied by their gate.

    One gate reads the last layer and serves all; a list holds one per layer, each reading its own. Packed documents
    have a gate each.
    """
    runs_BS = torch.zeros_like(depth_BS, dtype=torch.long)
    if documents_BS is not None:
        runs_BS = document_runs(documents_BS)
    others_BS = visible_BS & ~depth_BS
    if isinstance(gates, nn.ModuleList):
        pairs = zip(gates, values, strict=True)
        found = [_gate_of_tokens(gate, value, others_BS, runs_BS) for gate, value in pairs]
    else:
        found = [_gate_of_tokens(gates, values[-1], others_BS, runs_BS)] * len(values)
    depth = depth_BS.unsqueeze(-1)

    def applied(x: Tensor, gate: Tensor) -> Tensor:
        return torch.where(depth, x * gate.to(x.dtype), x)

    return (
        [applied(key, gate) for key, gate in zip(keys, found, strict=True)],
        [applied(value, gate) for value, gate in zip(values, found, strict=True)],
    )


def _gate_of_tokens(
    gate: nn.Module, values_BSE: Tensor, others_BS: Tensor, runs_BS: Tensor
) -> Tensor:
    """[B, S, 1]: the gate of the document each token is in."""
    weights_BS1 = others_BS.to(values_BSE.dtype).unsqueeze(-1)
    index = runs_BS.unsqueeze(-1)
    num_runs = int(runs_BS.max()) + 1
    sums = values_BSE.new_zeros(len(runs_BS), num_runs, values_BSE.shape[-1])
    sums = sums.scatter_add(1, index.expand_as(values_BSE), values_BSE * weights_BS1)
    counts = weights_BS1.new_zeros(len(runs_BS), num_runs, 1).scatter_add(1, index, weights_BS1)
    return gate(sums / counts.clamp(min=1)).gather(1, index)
