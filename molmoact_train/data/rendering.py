"""A row -> the pictures and the text of one sample, under the random numbers of its position; no model needed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from molmoact_data.errors import UserError
from molmoact_data.sources.images import NotEightBitError, as_rgb
from molmoact_data.text import prompts
from molmoact_data.text.annotations import render as render_annotation
from molmoact_data.text.prompts import SampleKind
from molmoact_train.data.augment import augment
from molmoact_train.data.base import ConversationRow, Part, RobotRow

KIND_NEEDS: Mapping[SampleKind, frozenset[Part]] = {
    "reasoning": frozenset({"depth", "trace", "action"}),
    "trajectory": frozenset({"trace", "action"}),
    "action": frozenset({"action"}),
    "depth": frozenset({"depth"}),
    "trace": frozenset({"trace"}),
}
"""The labels that a question of each kind needs to be answered truthfully."""


def kinds_of(row: RobotRow) -> list[SampleKind]:
    """What can truthfully be asked about a row."""
    return [kind for kind, needed in KIND_NEEDS.items() if needed <= row.parts]


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
    conversations: tuple[tuple[str, ...], ...] = ()
    """Several annotations of the pictures, each question, answer, ...; empty where there is one pair."""
    weight: float = 1.0
    """Factor of the loss."""


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
    kinds = [kind for kind in kinds_of(row) if weights.get(kind, 0.0) > 0]
    if not kinds:
        raise UserError(f"{row.where}: its labels allow none of the kinds {dict(weights)}.")
    frequencies = np.asarray([weights[kind] for kind in kinds])
    edges = np.cumsum(frequencies / frequencies.sum())
    return kinds[min(int(np.searchsorted(edges, rng.random(), side="right")), len(kinds) - 1)]


def _render_conversation(
    row: ConversationRow, rng: np.random.Generator, settings: RenderSettings
) -> Rendered:
    """A published row as it is; several annotations come in an order that is drawn.

    Its text may hold a trace or depth of the whole frame, so the first camera is never cropped.
    """
    conversations = _worded(row, rng)
    question, answer = conversations[0][:2]
    images = [decode_image(encoded, row.where) for encoded in row.images]
    traces = None if row.trace is None else [row.trace]
    if settings.augment:
        images = augment(images, traces, rng, crop_first=False).images
    if traces is not None:
        images[0] = _draw(images[0], traces)
    shrunk = [shrink(image, settings.max_side) for image in images]
    several = conversations if len(conversations) > 1 or len(conversations[0]) > 2 else ()
    return Rendered(row.where, "conversation", shrunk, question, answer, row, several, row.weight)


def _worded(row: ConversationRow, rng: np.random.Generator) -> tuple[tuple[str, ...], ...]:
    """Every annotation worded, in a drawn order; a row that is text already has each pair as one annotation."""
    told = [tuple(render_annotation(a, rng)) for a in row.annotations] or list(row.turns)
    return tuple(told[int(i)] for i in rng.permutation(len(told)))


def shrink(image: Image.Image, max_side: int) -> Image.Image:
    """Down to `max_side` pixels on the longer side, aspect kept; never enlarged."""
    scale = max_side / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _draw(image: Image.Image, traces: Sequence[Sequence[Sequence[int]]]) -> Image.Image:
    from molmoact_data.pictures.overlay import (
        draw_trace,  # needs OpenCV, which only drawn samples do
    )

    rgb = np.array(image)
    for trace in traces:
        rgb = draw_trace(rgb, trace)
    return Image.fromarray(rgb)


def decode_image(encoded: bytes, where: str) -> Image.Image:
    """Encoded RGB -> picture; `where` names the row in the error."""
    try:
        return as_rgb(Image.open(io.BytesIO(encoded)))
    except (NotEightBitError, UnidentifiedImageError, OSError) as error:
        raise UserError(f"{where}: an image cannot be decoded ({error}).") from error
