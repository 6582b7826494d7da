"""Packed rows laid out anew, one document per row: attention then sees rectangles instead of one large mask.

Legend: B packed rows, S their places, D documents, M tokens of the longest, E action chunks per row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from molmoact_train.families.molmoact.network.attention import document_runs
from molmoact_train.families.molmoact2.network.flow import ActionChunks


@dataclass(frozen=True)
class DocumentRows:
    """Which place of the packed rows each place of the new ones is."""

    places_DM: Tensor
    """Index into B * S, int64; -1 = padding."""
    owner_BE: Tensor
    """The new row of each place for a chunk, int64; -1 = no chunk."""
    packed: tuple[int, int]
    """B, S."""

    @classmethod
    def of(cls, documents_BS: Tensor, chunks: ActionChunks | None) -> DocumentRows:
        """Runs of equal ids are documents; -1 is padding. Chunks belong to the document of their number."""
        batch, length = documents_BS.shape
        real = documents_BS.flatten() >= 0
        first = torch.arange(batch, device=documents_BS.device)[:, None] * length
        runs_N = (document_runs(documents_BS) + first).flatten()[real]
        _, row_N, count_D = runs_N.unique_consecutive(return_inverse=True, return_counts=True)
        starts_D = count_D.cumsum(0) - count_D
        within_N = torch.arange(len(row_N), device=row_N.device) - starts_D[row_N]
        places = documents_BS.new_full((len(count_D), int(count_D.max())), -1)
        places[row_N, within_N] = real.nonzero()[:, 0]
        owner = _owners(documents_BS, row_N, real, chunks)
        return cls(places, owner, (batch, length))

    @property
    def saves_attention(self) -> bool:
        """Whether the new rectangles have fewer pairs of places; one long document among short ones may have more."""
        (batch, length), (rows, longest) = self.packed, self.places_DM.shape
        return rows * longest**2 <= batch * length**2

    def of_tokens(self, values_BS: Tensor, padding: float) -> Tensor:
        """[D, M]."""
        found = values_BS.flatten()[self.places_DM.clamp(min=0)]
        return found.masked_fill(self.places_DM < 0, padding)

    def of_chunks(self, chunks: ActionChunks) -> ActionChunks:
        """At most one chunk per row, that of its document."""
        there = self.owner_BE >= 0
        values: dict[str, Any] = {}
        for field in fields(chunks):
            old = getattr(chunks, field.name)
            if field.name == "documents_BE":
                values[field.name] = None
                continue
            new = old.new_zeros(len(self.places_DM), 1, *old.shape[2:])
            values[field.name] = new.index_put(
                (self.owner_BE[there], torch.zeros_like(self.owner_BE[there])), old[there]
            )
        return ActionChunks(**values)


def _owners(
    documents_BS: Tensor, row_N: Tensor, real: Tensor, chunks: ActionChunks | None
) -> Tensor:
    """[B, E]: the first token of the chunk's document says which row it is in."""
    if chunks is None or chunks.documents_BE is None:
        return documents_BS.new_zeros(len(documents_BS), 0)
    row_BS = documents_BS.new_full((real.numel(),), -1)
    row_BS[real] = row_N
    same_BES = chunks.documents_BE[:, :, None] == documents_BS[:, None]
    first_BE = same_BES.int().argmax(dim=-1)
    rows_BE = row_BS.view_as(documents_BS).gather(1, first_BE)
    return torch.where(chunks.exists_BE & same_BES.any(dim=-1), rows_BE, -1)
