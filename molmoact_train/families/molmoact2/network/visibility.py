"""Who sees whom: the decoder's mask, the positions, and what the action expert may read of the context.

Legend: B batch, S query positions (the last S of the K key positions), K key positions. True = may be seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from molmoact_train.families.molmoact.network.attention import (
    causal_mask,
    document_runs,
    padding_is_on_the_right,
    positions_from_documents,
    positions_from_mask,
)
from molmoact_train.families.molmoact2.network.config import TokenRange


def positions(real_BK: Tensor, num_queries: int, documents_BK: Tensor | None = None) -> Tensor:
    """int64 [B, S]: real tokens are counted from 0, in each document anew; padding never shifts a position.

    Logits would not care, but the expert reads absolutely rotated keys.
    """
    if documents_BK is not None:
        return positions_from_documents(documents_BK)[:, -num_queries:]
    return positions_from_mask(real_BK)[:, -num_queries:]


def is_one_of(input_ids: Tensor, token_ids: tuple[int, ...]) -> Tensor:
    """bool of the same shape."""
    return torch.isin(input_ids, torch.tensor(token_ids, device=input_ids.device))


def decoder_mask(
    real_BK: Tensor,
    num_queries: int,
    *,
    image_BK: Tensor | None = None,
    documents_BK: Tensor | None = None,
) -> tuple[Tensor | None, bool]:
    """The mask [B, 1, S, K] and whether the plain causal one will do; the cheapest that is right.

    With `image_BK`, the image tokens of a row (of a document) see each other in both directions, across images.
    """
    past = real_BK.shape[1] - num_queries
    plain = documents_BK is None and image_BK is None
    if plain and past == 0 and padding_is_on_the_right(real_BK):
        return None, True
    if plain and num_queries == 1 and bool(real_BK.all()):
        return None, False
    mask = causal_mask(num_queries, attention_mask_BK=real_BK, document_ids_BK=documents_BK)
    if image_BK is None:
        return mask, False
    image_BK = image_BK & real_BK
    pairs = image_BK[:, past:, None] & image_BK[:, None, :]
    if documents_BK is not None:
        runs = document_runs(documents_BK)
        pairs = pairs & (runs[:, past:, None] == runs[:, None, :])
    return mask | pairs[:, None], False


def spans(input_ids_BS: Tensor, start: int, end: int, documents_BS: Tensor | None = None) -> Tensor:
    """bool [B, S]: from each `start` through the next `end`, or to the end of its row or document."""
    places = torch.arange(input_ids_BS.shape[1], device=input_ids_BS.device).expand_as(input_ids_BS)
    last_start = torch.where(input_ids_BS == start, places, -1).cummax(dim=1).values
    closes = torch.where(input_ids_BS == end, places, -1)
    closed_before = torch.full_like(closes, -1)
    closed_before[:, 1:] = closes.cummax(dim=1).values[:, :-1]
    if documents_BS is not None:
        first = places - positions_from_documents(documents_BS)
        closed_before = torch.maximum(closed_before, first - 1)
    return last_start > closed_before


def expert_visible(
    input_ids_BS: Tensor,
    real_BS: Tensor,
    *,
    hide_answer: bool,
    eos_id: int,
    action_tokens: TokenRange | None,
    documents_BS: Tensor | None = None,
) -> Tensor:
    """bool [B, S]: real tokens and, with `hide_answer` (`action_mode` both), no EOS and no action answer.

    EOS is also BOS and the end of the user's turn; all of them are hidden, as in the original.
    """
    if not hide_answer:
        return real_BS
    visible = real_BS & (input_ids_BS != eos_id)
    if action_tokens is None:
        return visible
    return visible & ~spans(input_ids_BS, action_tokens.start, action_tokens.end, documents_BS)
