"""One attention call for the whole network, and the mask that a batch needs (often: none).

Legend: B batch, S query positions, K key positions, H heads, G key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    query_BHSD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    *,
    mask_B1SK: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot product attention, [B, H, S, D]; G may be a divisor of H (grouped queries).

    Under a mask the key/value heads are repeated: PyTorch's masked CUDA kernels know no groups and would
    fall back to the one that materialises S x K scores.
    """
    grouped = key_BGKD.shape[1] != query_BHSD.shape[1]
    if grouped and mask_B1SK is not None:
        repeats = query_BHSD.shape[1] // key_BGKD.shape[1]
        key_BGKD = key_BGKD.repeat_interleave(repeats, dim=1)
        value_BGKD = value_BGKD.repeat_interleave(repeats, dim=1)
        grouped = False
    return F.scaled_dot_product_attention(
        query_BHSD,
        key_BGKD,
        value_BGKD,
        attn_mask=mask_B1SK,
        is_causal=is_causal,
        dropout_p=dropout,
        enable_gqa=grouped,
    )


def full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """fp32 copies, except under autocast, which would cast them straight back (as in the reference)."""
    if torch.is_autocast_enabled(tensors[0].device.type):
        return tensors
    return tuple(tensor.float() for tensor in tensors)


@dataclass(frozen=True)
class RealTokens:
    """The tokens of a batch that are no padding. What is computed token by token runs over these N alone."""

    places_N: Tensor
    """Index into the B * S places of the rectangle."""
    shape: tuple[int, int]
    """B, S."""

    @classmethod
    def of(cls, real_BS: Tensor) -> RealTokens:
        """From the mask of real tokens."""
        batch, places = real_BS.shape
        return cls(real_BS.flatten().nonzero()[:, 0], (batch, places))

    @property
    def are_all(self) -> bool:
        """Whether nothing is padded."""
        return len(self.places_N) == self.shape[0] * self.shape[1]

    def flat(self, x_BSL: Tensor) -> Tensor:
        """[1, N, L]."""
        return x_BSL.flatten(0, 1).index_select(0, self.places_N)[None]

    def padded(self, x_1NL: Tensor) -> Tensor:
        """[B, S, L], zeros at padded places; the inverse of `flat`."""
        batch, places = self.shape
        zeros = x_1NL.new_zeros(batch * places, x_1NL.shape[-1])
        return zeros.index_copy(0, self.places_N, x_1NL[0]).view(batch, places, -1)

    def numbers(self, chosen_BS: Tensor) -> Tensor:
        """Which of the N tokens are the chosen ones; int64, in order."""
        return chosen_BS.flatten()[self.places_N].nonzero()[:, 0]


def padding_is_on_the_right(attention_mask_BK: Tensor) -> bool:
    """Then a causal mask alone is right: no real token ever sees a padded one."""
    steps = attention_mask_BK[:, 1:] > attention_mask_BK[:, :-1]
    return not bool(steps.any())


def positions_from_mask(attention_mask_BK: Tensor) -> Tensor:
    """0..n-1 over the real tokens of each row, int64; padded places get 0."""
    return (attention_mask_BK.long().cumsum(dim=-1) - 1).clamp(min=0)


def document_runs(document_ids_BS: Tensor) -> Tensor:
    """0, 1, 2, ... for each run of equal ids, int64 [B, S]: an id that comes back is another document."""
    runs_BS = torch.zeros_like(document_ids_BS, dtype=torch.long)
    runs_BS[:, 1:] = (document_ids_BS[:, 1:] != document_ids_BS[:, :-1]).cumsum(dim=1)
    return runs_BS


def positions_from_documents(document_ids_BS: Tensor) -> Tensor:
    """0..n-1 within each run of equal ids, int64 [B, S]."""
    runs_BS = document_runs(document_ids_BS)
    places_S = torch.arange(document_ids_BS.shape[1], device=document_ids_BS.device)
    is_start_BS = torch.ones_like(runs_BS, dtype=torch.bool)
    is_start_BS[:, 1:] = runs_BS[:, 1:] != runs_BS[:, :-1]
    return places_S - torch.where(is_start_BS, places_S, 0).cummax(dim=1).values


def positions_from_branches(branch_ids_BS: Tensor) -> Tensor:
    """Position ids int64 [B, S]: the trunk (id 0) counts on, and every branch counts on from where the trunk ends."""
    trunk_B1 = (branch_ids_BS == 0).sum(dim=1, keepdim=True)
    within_BS = positions_from_documents(branch_ids_BS)
    return torch.where(branch_ids_BS > 0, within_BS + trunk_B1, within_BS)


def causal_mask(
    num_queries: int,
    *,
    attention_mask_BK: Tensor | None = None,
    document_ids_BK: Tensor | None = None,
    branch_ids_BK: Tensor | None = None,
) -> Tensor:
    """Boolean [B, 1, S, K], True = may be seen; the S queries are the last S of the K key positions.

    A token sees itself always, so that a padded row has something to attend to and stays finite.
    """
    masks = (attention_mask_BK, document_ids_BK, branch_ids_BK)
    given = next((mask for mask in masks if mask is not None), None)
    assert given is not None, "a mask is only needed for padding, documents or branches"
    key_K = torch.arange(given.shape[1], device=given.device)
    query_S = key_K[-num_queries:]
    visible_BSK = (key_K[None, :] <= query_S[:, None])[None]
    if attention_mask_BK is not None:
        visible_BSK = visible_BSK & attention_mask_BK.bool()[:, None, :]
    if document_ids_BK is not None:
        runs_BK = document_runs(document_ids_BK)
        same = runs_BK[:, -num_queries:, None] == runs_BK[:, None, :]
        visible_BSK = visible_BSK & same
    if branch_ids_BK is not None:
        same = branch_ids_BK[:, -num_queries:, None] == branch_ids_BK[:, None, :]
        visible_BSK = visible_BSK & (same | (branch_ids_BK == 0)[:, None, :])
    return (visible_BSK | (key_K[None, :] == query_S[:, None]))[:, None]
