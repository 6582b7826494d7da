"""A position of the stream -> the numbers the network reads. Pure in (seed, position); workers share nothing.

`rendering.render` turns a row into pictures and text, `TrainingData` adds the processor.
Letters: S tokens, T crop slots, U distinct crops, P patches, C numbers per patch, M pooling windows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.text import tokens
from molmoact_train.config import TrainConfig
from molmoact_train.data.mixture import (
    DataArgument,
    Mixture,
    parse_data_argument,
    sample_rng,
    sampling_rates,
)
from molmoact_train.data.rendering import Rendered, RenderSettings, render, render_settings
from molmoact_train.data.sources import ShardSource, Source, open_source
from molmoact_train.families.molmoact.processor import MolmoActProcessor

Part = Literal["other", "depth", "trace", "action"]
PARTS: tuple[Part, ...] = ("other", "depth", "trace", "action")
"""What a target token belongs to; its index is what `Sample.parts` holds."""

_DEPTH = re.compile(re.escape(tokens.DEPTH_START) + ".*?" + re.escape(tokens.DEPTH_END), re.DOTALL)
_BRACKETS = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]")


def answer_parts(answer: str, processor: MolmoActProcessor) -> NDArray[np.int8]:
    """Which part each token of ` {answer}` belongs to, by index into `PARTS`; EOS is not included.

    A token belongs to the part that its first character, spaces aside, lies in: `]].` closes a trace.
    """
    text = f" {answer}"
    part_of_character = np.zeros(len(text), dtype=np.int8)
    for span in _BRACKETS.finditer(text):
        part: Part = "trace" if span.group().isascii() else "action"
        part_of_character[span.start() : span.end()] = PARTS.index(part)
    for span in _DEPTH.finditer(text):
        part_of_character[span.start() : span.end()] = PARTS.index("depth")
    encoding = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    firsts = [
        next((i for i in range(start, end) if text[i] != " "), start)
        for start, end in encoding["offset_mapping"]
    ]
    return part_of_character[firsts]


@dataclass(frozen=True)
class Sample:
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

    @property
    def num_tokens(self) -> int:
        """S."""
        return len(self.input_tokens)


@dataclass(frozen=True)
class TooLong:
    """A sample that does not fit; it is left out of its batch and counted."""

    position: int
    where: str
    num_tokens: int


def build_sample(position: int, rendered: Rendered, processor: MolmoActProcessor) -> Sample:
    """Tokens, weights, parts and crops of a rendered sample."""
    fields = processor.training_sample(rendered.images, rendered.question, rendered.answer)
    weights = fields["loss_masks"]
    parts = np.zeros(len(weights), dtype=np.int8)
    answered = np.flatnonzero(weights > 0)
    parts[answered[:-1]] = answer_parts(rendered.answer, processor)  # the last one is EOS
    crops, slots = fold_equal_crops(fields["images"])
    return Sample(
        position=position,
        kind=rendered.kind,
        input_tokens=fields["input_tokens"],
        target_tokens=fields["target_tokens"],
        loss_weights=weights,
        parts=parts,
        crops_UPC=crops,
        crop_slots=slots,
        image_masks=fields["image_masks"],
        pooled_patches_idx=fields["pooled_patches_idx"],
    )


def fold_equal_crops(
    crops_TPC: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Distinct crops [U, P, C] and the row of each slot [T]; halves what travels to the GPU."""
    rows: dict[bytes, int] = {}
    slots = [rows.setdefault(crop.tobytes(), len(rows)) for crop in crops_TPC]
    first = [slots.index(row) for row in range(len(rows))]
    return crops_TPC[first], np.asarray(slots, dtype=np.int64)


class TrainingData:
    """Position -> `Sample` or `TooLong`; a map-style dataset for `torch.utils.data.DataLoader`."""

    def __init__(
        self,
        sources: Sequence[Source],
        mixture: Mixture,
        settings: RenderSettings,
        processor: MolmoActProcessor,
        *,
        seq_len: int,
        seed: int,
    ) -> None:
        self.sources = tuple(sources)
        self.mixture = mixture
        self.settings = settings
        self.processor = processor
        self.seq_len = seq_len
        self.seed = seed

    def rendered(self, position: int) -> Rendered:
        """The sample at a position, before tokenisation."""
        draw = self.mixture.at(position)
        row = self.sources[draw.source].row(draw.row)
        return render(row, sample_rng(self.seed, position), self.settings)

    def __getitem__(self, position: int) -> Sample | TooLong:
        rendered = self.rendered(position)
        sample = build_sample(position, rendered, self.processor)
        if sample.num_tokens > self.seq_len:
            return TooLong(position, rendered.where, sample.num_tokens)
        return sample

    def describe(self) -> list[dict[str, Any]]:
        """Per source: name, usable rows, rate, rows left out by reason."""
        return [
            {"name": source.name, "path": str(source.folder), "samples": source.size,
             "rate": rate, "left_out": dict(source.left_out)}
            for source, rate in zip(self.sources, self.mixture.rates, strict=True)
        ]  # fmt: skip


def open_training_data(config: TrainConfig, processor: MolmoActProcessor) -> TrainingData:
    """Everything that training draws from, opened and checked."""
    settings = render_settings(config, max_image_side(processor), training=True)
    arguments = [parse_data_argument(text) for text in config.data]
    sources = [_open(argument, config, settings) for argument in arguments]
    refuse_empty(sources, list(settings.kinds))
    check_action_dimensions(sources)
    rates = sampling_rates([s.size for s in sources], [a.weight for a in arguments])
    mixture = Mixture([s.size for s in sources], rates, config.data_seed)
    return TrainingData(
        sources, mixture, settings, processor, seq_len=config.seq_len, seed=config.data_seed
    )


def open_eval_data(config: TrainConfig, processor: MolmoActProcessor) -> TrainingData | None:
    """Held-out rows: `eval_data` in full and `eval_fraction` of the episodes of `data`; None if there are none."""
    settings = render_settings(config, max_image_side(processor), training=False)
    sources = [
        _open(DataArgument(path, None), config, settings, whole=True) for path in config.eval_data
    ]
    if config.eval_fraction > 0:
        for text in config.data:
            source = _open(parse_data_argument(text), config, settings, held_out=True)
            if isinstance(source, ShardSource) and source.size:
                sources.append(source)
    if not sources:
        return None
    rates = sampling_rates([s.size for s in sources], [None] * len(sources))
    mixture = Mixture([s.size for s in sources], rates, config.data_seed)
    return TrainingData(
        sources, mixture, settings, processor, seq_len=config.seq_len, seed=config.data_seed
    )


def _open(
    argument: DataArgument,
    config: TrainConfig,
    settings: RenderSettings,
    *,
    held_out: bool = False,
    whole: bool = False,
) -> Source:
    return open_source(
        argument.path,
        max_images=config.max_images,
        kinds=list(settings.kinds),
        held_out_fraction=0.0 if whole else config.eval_fraction,
        held_out=held_out,
        seed=config.data_seed,
        max_samples=None if held_out or whole else config.max_samples,
    )


def max_image_side(processor: MolmoActProcessor) -> int:
    """The longest side at which a picture is one distinct crop for this checkpoint (378 or 336 px)."""
    return min(processor.image_processor.config.base_image_input_size)


def refuse_empty(sources: Sequence[Source], kinds: Sequence[str]) -> None:
    """Raises `UserError` naming the data without a sample, and why its rows cannot be used."""
    for source in sources:
        if source.size < 1:
            why = ", ".join(f"{reason}: {n}" for reason, n in source.left_out.items())
            raise UserError(
                f"--data {source.folder} has no sample for what this stage trains ({', '.join(kinds)}); "
                f"rows left out: {why or 'none, it has no rows'}. Run `molmoact preprocess` with the labels "
                "that are missing."
            )


def check_action_dimensions(sources: Sequence[Source]) -> None:
    """Robots of different action dimension share no answer format with one checkpoint's statistics."""
    dims = {s.name: s.action_dim for s in sources if isinstance(s, ShardSource) and s.action_dim}
    if len(set(dims.values())) > 1:
        listed = ", ".join(f"{name}: {dim}" for name, dim in dims.items())
        raise UserError(
            f"the data have different action dimensions ({listed}). Train one robot at a time, or write "
            "the datasets with the same action layout."
        )
