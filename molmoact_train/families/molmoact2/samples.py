"""One sample of MolmoAct2, and batches of them: padded rows, or rows packed with several samples.

Legend: S tokens, B rows, E action chunks per row, F flow draws, T steps (the expert's horizon), A action dimensions
(the expert's width), U crops, P patches per crop, C numbers per patch, V pooling windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from molmoact_train.families.molmoact2.network.flow import ActionChunks

PADDING = -1


@dataclass(frozen=True)
class Chunk:
    """What the flow loss of one sample needs, fp32; padded steps and dimensions are zeros."""

    actions_TA: NDArray[np.float32]
    noise_FTA: NDArray[np.float32]
    times_F: NDArray[np.float32]
    steps_T: NDArray[np.bool_]
    dims_A: NDArray[np.bool_]

    def nothing(self) -> Chunk:
        """A place without a chunk, of the same size."""
        return Chunk(
            np.zeros_like(self.actions_TA),
            np.zeros_like(self.noise_FTA),
            np.zeros_like(self.times_F),
            np.zeros_like(self.steps_T),
            np.zeros_like(self.dims_A),
        )


@dataclass(frozen=True)
class MolmoAct2Sample:
    """One unpadded sample."""

    position: int
    style: str
    input_tokens: NDArray[np.int64]
    """[S], prompt and answer, EOS included where there is one."""
    target_tokens: NDArray[np.int64]
    """[S] the next token of each place; meaningless at the last."""
    loss_weights: NDArray[np.float32]
    """[S] 2/sqrt(n) at each of the n places whose next token carries loss."""
    crops_UPC: NDArray[np.uint8]
    windows_V4: NDArray[np.int64]
    """Rows of all U*P patches; -1 = absent."""
    chunk: Chunk
    """`steps_T` all False = the sample carries no action."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the sample, S."""
        return len(self.input_tokens)

    @property
    def has_chunk(self) -> bool:
        return bool(self.chunk.steps_T.any())


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass."""

    inputs: Mapping[str, Tensor]
    """Arguments of the network by name: ids, pixels, windows, targets, weights and, packed, documents."""
    chunks: ActionChunks
    positions: tuple[int, ...]
    num_tokens: int
    """Real tokens."""
    text_first: bool
    """Whether the step's main weight is that of the text."""

    @property
    def weights(self) -> dict[str, float]:
        """What the two terms are divided by over a step."""
        text = float(self.inputs["loss_weights"].sum())
        chunks = float(self.chunks.exists_BE.sum()) if self.positions else 0.0
        ordered = {"loss_tokens": text, "chunks": chunks}
        return ordered if self.text_first else dict(reversed(ordered.items()))

    @property
    def num_padded(self) -> int:
        """Tokens with padding."""
        return self.inputs["input_ids"].numel()

    def without_loss(self) -> MicroBatch:
        """The same pass, contributing nothing."""
        zeros = torch.zeros_like(self.inputs["loss_weights"])
        none = replace(self.chunks, steps_BET=torch.zeros_like(self.chunks.steps_BET))
        return replace(
            self, inputs={**self.inputs, "loss_weights": zeros}, chunks=none, positions=()
        )

    def on(self, device: torch.device) -> tuple[dict[str, Tensor], ActionChunks]:
        """Everything on a device."""
        moved = {name: t.to(device, non_blocking=True) for name, t in self.inputs.items()}
        fields = {
            name: None if value is None else value.to(device, non_blocking=True)
            for name, value in vars(self.chunks).items()
        }
        return moved, ActionChunks(**fields)


def loss_weights(input_tokens: NDArray[np.int64], first: int) -> NDArray[np.float32]:
    """[S]: 2/sqrt(n) where the next token is one of the n from place `first` on."""
    weights = np.zeros(len(input_tokens), dtype=np.float32)
    count = len(input_tokens) - first
    if count > 0:
        weights[first - 1 : -1] = 2 / np.sqrt(np.float32(count))
    return weights


def collate(
    samples: Sequence[MolmoAct2Sample], *, seq_len: int | None, text_first: bool
) -> MicroBatch:
    """One sample per row, or with `seq_len` as many per row as fit."""
    if seq_len is None:
        rows = [[sample] for sample in samples]
    else:
        rows = pack(samples, max(seq_len, max(s.num_tokens for s in samples)))
    ordered = [sample for row in rows for sample in row]
    inputs = {
        "input_ids": _pad([_joined(row, "input_tokens") for row in rows], PADDING),
        "targets": _pad([_joined(row, "target_tokens") for row in rows], 0),
        "loss_weights": _pad([_joined(row, "loss_weights") for row in rows], 0.0),
        "pixels": torch.from_numpy(np.concatenate([s.crops_UPC for s in ordered])),
        "windows": torch.from_numpy(_shifted_windows(ordered)),
    }
    documents = None
    if seq_len is not None:
        inputs["documents"] = _pad([_documents(row) for row in rows], PADDING)
        documents = [[n for n, s in enumerate(row) if s.has_chunk] for row in rows]
    return MicroBatch(
        inputs=inputs,
        chunks=_chunks(rows, documents),
        positions=tuple(s.position for s in samples),
        num_tokens=sum(s.num_tokens for s in samples),
        text_first=text_first,
    )


def pack(samples: Sequence[MolmoAct2Sample], capacity: int) -> list[list[MolmoAct2Sample]]:
    """Rows of at most `capacity` tokens: longest first, each into the fullest row that still holds it."""
    rows: list[list[MolmoAct2Sample]] = []
    room: list[int] = []
    for sample in sorted(samples, key=lambda s: (-s.num_tokens, s.position)):
        fitting = [(free, n) for n, free in enumerate(room) if free >= sample.num_tokens]
        if fitting:
            _, place = min(fitting)
        else:
            place = len(rows)
            rows.append([])
            room.append(capacity)
        rows[place].append(sample)
        room[place] -= sample.num_tokens
    return rows


def _joined(row: Sequence[MolmoAct2Sample], name: str) -> NDArray[Any]:
    return np.concatenate([getattr(sample, name) for sample in row])


def _documents(row: Sequence[MolmoAct2Sample]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(row)), [s.num_tokens for s in row])


def _shifted_windows(samples: Sequence[MolmoAct2Sample]) -> NDArray[np.int64]:
    """Windows of all samples as rows of all their patches; absent patches stay absent."""
    out, first = [], 0
    for sample in samples:
        own = sample.windows_V4
        out.append(np.where(own >= 0, own + first, own))
        first += sample.crops_UPC.shape[0] * sample.crops_UPC.shape[1]
    return np.concatenate(out)


def _chunks(
    rows: Sequence[Sequence[MolmoAct2Sample]], documents: Sequence[Sequence[int]] | None
) -> ActionChunks:
    """The chunks as a rectangle; places without one are filled with nothing."""
    of_rows = [[s.chunk for s in row if s.has_chunk] for row in rows]
    width = max(1, max(map(len, of_rows)))
    empty = rows[0][0].chunk.nothing()
    filled = [[*row, *[empty] * (width - len(row))] for row in of_rows]

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([[getattr(c, name) for c in row] for row in filled]))

    owners = None
    if documents is not None:
        padded = [[*row, *[PADDING] * (width - len(row))] for row in documents]
        owners = torch.tensor(padded)
    return ActionChunks(
        actions_BETA=stacked("actions_TA"),
        noise_BEFTA=stacked("noise_FTA"),
        times_BEF=stacked("times_F"),
        steps_BET=stacked("steps_T"),
        dims_BEA=stacked("dims_A"),
        documents_BE=owners,
    )


def _pad(arrays: Sequence[NDArray[Any]], value: float) -> Tensor:
    longest = max(len(array) for array in arrays)
    out = np.full((len(arrays), longest), value, dtype=arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out)
