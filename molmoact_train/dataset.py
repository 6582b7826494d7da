"""A position of the stream -> the numbers the network reads. Pure in (seed, position); workers share nothing.

`render` turns a row into pictures and text (no model needed), `TrainingData` adds the processor.
Letters: S tokens, T crop slots, U distinct crops, P patches, C numbers per patch, M pooling windows.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from molmoact_data import prompts, tokens
from molmoact_data.errors import UserError
from molmoact_data.prompts import SampleKind
from molmoact_train.augment import augment
from molmoact_train.config import TrainConfig, kind_weights
from molmoact_train.conversations import ConversationRow
from molmoact_train.mixture import (
    DataArgument,
    Mixture,
    parse_data_argument,
    sample_rng,
    sampling_rates,
)
from molmoact_train.processor import MolmoActProcessor
from molmoact_train.sources import RobotRow, ShardSource, Source, open_source, possible_kinds

Part = Literal["other", "depth", "trace", "action"]
PARTS: tuple[Part, ...] = ("other", "depth", "trace", "action")
"""What a target token belongs to; its index is what `Sample.parts` holds."""

_DEPTH = re.compile(re.escape(tokens.DEPTH_START) + ".*?" + re.escape(tokens.DEPTH_END), re.DOTALL)
_BRACKETS = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]")


@dataclass(frozen=True)
class Rendered:
    """One sample as people read it."""

    where: str
    kind: str
    """A sample kind, or `conversation`."""
    images: list[Image.Image]
    """As the network will see them: augmented, trace drawn, shrunk."""
    question: str
    answer: str
    row: RobotRow | ConversationRow
    """The labels before augmentation."""


@dataclass(frozen=True)
class RenderSettings:
    """How rows become pictures and text."""

    kinds: Mapping[SampleKind, float]
    wording: Literal["released", "reference"]
    augment: bool
    crop_depth: bool
    """Crop the first camera even where its depth codes are the answer."""
    max_side: int
    """Pixels; larger pictures are shrunk to it, so that each costs one distinct crop."""


def render(
    row: RobotRow | ConversationRow, rng: np.random.Generator, settings: RenderSettings
) -> Rendered:
    """The row's sample under the random numbers of its position."""
    if isinstance(row, ConversationRow):
        return _render_conversation(row, rng, settings)
    kind = draw_kind(row, rng, settings.kinds)
    images = [decode_image(encoded, row.where) for encoded in row.images]
    traces = row.traces
    if settings.augment:
        has_depth = kind in ("reasoning", "depth")
        view = augment(images, traces, rng, crop_first=settings.crop_depth or not has_depth)
        images, traces = view.images, view.traces
    if kind == "trajectory":
        assert traces is not None, "a trajectory sample is only drawn where there is a trace"
        images[0] = _draw(images[0], traces)
    return Rendered(
        where=row.where,
        kind=kind,
        images=[shrink(image, settings.max_side) for image in images],
        question=prompts.question(row.instruction, kind, len(images), wording=settings.wording),
        answer=prompts.answer(
            kind,
            depth_codes=row.depth_codes,
            trace=traces,
            action_bins=row.action_bins,
            num_images=len(images),
            wording=settings.wording,
        ),
        row=row,
    )


def draw_kind(
    row: RobotRow, rng: np.random.Generator, weights: Mapping[SampleKind, float]
) -> SampleKind:
    """One of the kinds this row allows, by their relative frequency."""
    allowed = possible_kinds(
        depth=row.depth_codes is not None,
        trace=row.traces is not None,
        action=row.action_bins is not None,
    )
    kinds = [kind for kind in allowed if weights.get(kind, 0.0) > 0]
    if not kinds:
        raise UserError(f"{row.where}: its labels allow none of the kinds {dict(weights)}.")
    frequencies = np.asarray([weights[kind] for kind in kinds])
    edges = np.cumsum(frequencies / frequencies.sum())
    return kinds[min(int(np.searchsorted(edges, rng.random(), side="right")), len(kinds) - 1)]


def _render_conversation(
    row: ConversationRow, rng: np.random.Generator, settings: RenderSettings
) -> Rendered:
    """A published row as it is; of several question-answer pairs one is drawn.

    Its text may hold a trace or depth of the whole frame, so the first camera is never cropped.
    """
    question, answer = row.turns[int(rng.integers(len(row.turns)))]
    images = [decode_image(encoded, row.where) for encoded in row.images]
    traces = None if row.trace is None else [row.trace]
    if settings.augment:
        images = augment(images, traces, rng, crop_first=False).images
    if traces is not None:
        images[0] = _draw(images[0], traces)
    shrunk = [shrink(image, settings.max_side) for image in images]
    return Rendered(row.where, "conversation", shrunk, question, answer, row)


def shrink(image: Image.Image, max_side: int) -> Image.Image:
    """Down to `max_side` pixels on the longer side, aspect kept; never enlarged."""
    scale = max_side / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _draw(image: Image.Image, traces: Sequence[Sequence[Sequence[int]]]) -> Image.Image:
    from molmoact_data.overlay import draw_trace  # needs OpenCV, which only drawn samples do

    rgb = np.array(image)
    for trace in traces:
        rgb = draw_trace(rgb, trace)
    return Image.fromarray(rgb)


def decode_image(encoded: bytes, where: str) -> Image.Image:
    """Encoded RGB -> picture; `where` names the row in the error."""
    try:
        return Image.open(io.BytesIO(encoded)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{where}: an image cannot be decoded ({error}).") from error


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


def render_settings(config: TrainConfig, max_side: int, *, training: bool) -> RenderSettings:
    """What the configuration says about rendering; evaluation never augments."""
    kinds = {kind: weight for kind, weight in kind_weights(config).items() if weight > 0}
    return RenderSettings(
        kinds=kinds,
        wording=config.wording,
        augment=config.img_aug and training,
        crop_depth=config.img_aug_crop_depth,
        max_side=max_side,
    )


def open_training_data(config: TrainConfig, processor: MolmoActProcessor) -> TrainingData:
    """Everything that training draws from, opened and checked."""
    settings = render_settings(config, max_image_side(processor), training=True)
    arguments = [parse_data_argument(text) for text in config.data]
    sources = [_open(argument, config, settings) for argument in arguments]
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


def check_action_dimensions(sources: Sequence[Source]) -> None:
    """Robots of different action dimension share no answer format with one checkpoint's statistics."""
    dims = {s.name: s.action_dim for s in sources if isinstance(s, ShardSource) and s.action_dim}
    if len(set(dims.values())) > 1:
        listed = ", ".join(f"{name}: {dim}" for name, dim in dims.items())
        raise UserError(
            f"the data have different action dimensions ({listed}). Train one robot at a time, or write "
            "the datasets with the same action layout."
        )
