"""A rendered row -> the numbers MolmoAct reads, and several of them -> one forward pass.

Nothing is padded to a fixed size, so no attention mask is needed (padding is on the right and causal attention never
looks there). Letters: B samples, S tokens, T crop slots, U distinct crops, P patches, C numbers per patch, M pooling
windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from molmoact_data.text import tokens
from molmoact_data.text.prompts import OUTER_BLOCK
from molmoact_train.data.rendering import Rendered
from molmoact_train.families.molmoact.processor import MolmoActProcessor

TextPart = Literal["other", "depth", "trace", "action"]
PARTS: tuple[TextPart, ...] = ("other", "depth", "trace", "action")
"""What a target token belongs to; its index is what `MolmoActSample.parts` holds."""
PADDING = -1


def answer_parts(answer: str, processor: MolmoActProcessor) -> NDArray[np.int8]:
    """Which part each token of ` {answer}` belongs to, by index into `PARTS`; EOS is not included.

    A token belongs to the part that its first character, spaces aside, lies in: `]].` closes a trace.
    """
    text = f" {answer}"
    part_of_character = np.zeros(len(text), dtype=np.int8)
    for span in OUTER_BLOCK.finditer(text):
        part: TextPart = "trace" if span.group().isascii() else "action"
        part_of_character[span.start() : span.end()] = PARTS.index(part)
    for start, end in tokens.depth_places(text):
        part_of_character[start:end] = PARTS.index("depth")
    encoding = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    firsts = [
        next((i for i in range(start, end) if text[i] != " "), start)
        for start, end in encoding["offset_mapping"]
    ]
    return part_of_character[firsts]


@dataclass(frozen=True)
class MolmoActSample:
    """One unpadded sample, equal crops already folded."""

    position: int
    kind: str
    input_tokens: NDArray[np.int64]
    """[S]."""
    target_tokens: NDArray[np.int64]
    """[S] the next token of each place."""
    loss_weights: NDArray[np.float32]
    """[S] 0 on the prompt."""
    parts: NDArray[np.int8]
    """[S] index into `PARTS` of the target."""
    crops_UPC: NDArray[np.float32]
    crop_slots: NDArray[np.int64]
    """[T] row of `crops_UPC` per crop slot."""
    image_masks: NDArray[np.float32]
    """[T, P]."""
    pooled_patches_idx: NDArray[np.int64]
    """[M, 4]."""
    branch_ids: NDArray[np.int64] | None = None
    """[S] 0 = shared, k = the k-th annotation of the pictures; None where there is one annotation."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the sample, S."""
        return len(self.input_tokens)


def build_sample(
    position: int,
    rendered: Rendered,
    processor: MolmoActProcessor,
    *,
    max_tokens: int | None = None,
) -> MolmoActSample:
    """Tokens, weights, parts and crops of a rendered sample; `max_tokens` limits how many annotations it has."""
    fields, parts = _text_fields(rendered, processor, max_tokens)
    crops, slots = fold_equal_crops(fields["images"])
    return MolmoActSample(
        position=position,
        kind=rendered.kind,
        input_tokens=fields["input_tokens"],
        target_tokens=fields["target_tokens"],
        loss_weights=fields["loss_masks"] * np.float32(rendered.weight),
        parts=parts,
        crops_UPC=crops,
        crop_slots=slots,
        image_masks=fields["image_masks"],
        pooled_patches_idx=fields["pooled_patches_idx"],
        branch_ids=fields.get("branch_ids"),
    )


def _text_fields(
    rendered: Rendered, processor: MolmoActProcessor, max_tokens: int | None
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int8]]:
    """What the processor makes of a sample, and the part of each target."""
    if rendered.conversations:
        fields = processor.annotated_sample(
            rendered.images, rendered.conversations, max_tokens=max_tokens
        )
        return fields, np.zeros(len(fields["loss_masks"]), dtype=np.int8)
    fields = processor.training_sample(rendered.images, rendered.question, rendered.answer)
    parts = np.zeros(len(fields["loss_masks"]), dtype=np.int8)
    answered = np.flatnonzero(fields["loss_masks"] > 0)
    parts[answered[:-1]] = answer_parts(rendered.answer, processor)  # the last one is EOS
    return fields, parts


def fold_equal_crops(
    crops_TPC: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Distinct crops [U, P, C] and the row of each slot [T]; halves what travels to the GPU."""
    rows: dict[bytes, int] = {}
    slots = [rows.setdefault(crop.tobytes(), len(rows)) for crop in crops_TPC]
    first = [slots.index(row) for row in range(len(rows))]
    return crops_TPC[first], np.asarray(slots, dtype=np.int64)


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass."""

    inputs: dict[str, torch.Tensor]
    """Keyword arguments of the model: ids, targets, weights [B, S], crops, slots, windows."""
    parts_BS: torch.Tensor
    """int8, index into `PARTS` of each target."""
    positions: tuple[int, ...]

    @property
    def weights(self) -> Mapping[str, float]:
        """The loss is a weighted mean over answer tokens; this is the sum of their weights."""
        return {"loss_tokens": float(self.inputs["loss_weights"].sum())}

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.inputs["input_ids"] >= 0).sum())

    @property
    def num_padded(self) -> int:
        """Tokens with padding."""
        return self.inputs["input_ids"].numel()

    def inputs_on(self, device: torch.device) -> dict[str, torch.Tensor]:
        """The inputs on a device."""
        return {name: t.to(device, non_blocking=True) for name, t in self.inputs.items()}

    def without_loss(self) -> MicroBatch:
        """The same pass, contributing nothing."""
        zeros = torch.zeros_like(self.inputs["loss_weights"])
        return MicroBatch({**self.inputs, "loss_weights": zeros}, self.parts_BS, ())


def collate(samples: Sequence[MolmoActSample]) -> MicroBatch:
    """Right-padded batch; ids of padding are -1, crop slots without a crop are -1."""
    crops, slots, first = [], [], 0
    for sample in samples:
        crops.append(sample.crops_UPC)
        slots.append(sample.crop_slots + first)
        first += len(sample.crops_UPC)
    inputs = {
        "input_ids": _pad([s.input_tokens for s in samples], PADDING),
        "targets": _pad([s.target_tokens for s in samples], PADDING),
        "loss_weights": _pad([s.loss_weights for s in samples], 0.0),
        "images": torch.from_numpy(np.concatenate(crops)),
        "crop_slots": _pad(slots, PADDING),
        "image_masks": _pad([s.image_masks for s in samples], float(PADDING)),
        "pooled_patches_idx": _pad([s.pooled_patches_idx for s in samples], PADDING),
    }
    if any(sample.branch_ids is not None for sample in samples):
        inputs["branch_ids"] = _pad([_branches(sample) for sample in samples], 0)
    return MicroBatch(
        inputs, _pad([s.parts for s in samples], 0), tuple(s.position for s in samples)
    )


def _branches(sample: MolmoActSample) -> NDArray[np.int64]:
    """A sample with one annotation is all trunk: plain causal attention."""
    return np.zeros_like(sample.input_tokens) if sample.branch_ids is None else sample.branch_ids


def _pad(arrays: Sequence[NDArray[Any]], value: float) -> torch.Tensor:
    longest = max(len(array) for array in arrays)
    out = np.full((len(arrays), longest, *arrays[0].shape[1:]), value, dtype=arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(out)
