"""PixMo: rows of Parquet with the address of a picture; all rows of one address become one example.

The published code holds validation rows out by shuffling what it could still fetch, which nobody can repeat. Here a
picture belongs to `validation` by the hash of its address, so a dead link moves no other picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from molmoact_data.errors import UserError
from molmoact_data.text.annotations import (
    LONG_CAPTION,
    POINT_COUNT,
    POINTING,
    Annotation,
    InlinePoints,
    Points,
    as_points,
)
from molmoact_data.web.examples import Picture, WebExample, field
from molmoact_data.web.layouts.tables import parquet_rows

HELD_OUT = 0.01
"""Share of the pictures in `validation` where the set has no split of its own."""
MAX_POINTS = 60
"""Per annotation and per example; more would be cut off by the published sequence length."""
POINT_STYLES = (POINT_COUNT, POINTING)

Row = Mapping[str, Any]


def captions(root: Path, split: str) -> Iterator[WebExample]:
    """pixmo-cap: one long caption a picture."""
    return _grouped(
        root, split, lambda row: [Annotation(LONG_CAPTION, answers=(str(row["caption"]),))]
    )


def caption_questions(root: Path, split: str) -> Iterator[WebExample]:
    """pixmo-cap-qa: conversations about a picture."""
    return _grouped(
        root,
        split,
        lambda row: [
            Annotation("synthetic_qa", turns=tuple(map(str, field(row, "messages", "a row"))))
        ],
    )


def asked(root: Path, split: str) -> Iterator[WebExample]:
    """pixmo-ask-model-anything: questions of people."""
    return _grouped(
        root,
        split,
        lambda row: [
            Annotation("user_qa", question=str(row["question"]), answers=(str(row["answer"]),))
        ],
    )


def explanations(root: Path, split: str) -> Iterator[WebExample]:
    """pixmo-point-explanations: answers with points in them; pictures with several questions become two examples."""

    def annotate(row: Row) -> list[Annotation]:
        if row["parsed_response"] is None:
            return []
        parts = zip(row["points"], row["inline_text"], row["alt_text"], strict=True)
        inline = tuple(InlinePoints(as_points(p), str(text), str(alt)) for p, text, alt in parts)
        told = str(row["parsed_response"])
        return [Annotation("point_qa", str(row["question"]), (told,), inline_points=inline)]

    for example in _grouped(root, split, annotate):
        asked_here = example.annotations
        half = (len(asked_here) + 1) // 2
        yield from _parts(
            example, [part for part in (asked_here[:half], asked_here[half:]) if part]
        )


def points(root: Path, split: str) -> Iterator[WebExample]:
    """pixmo-points, the part collected by pointing: every picture is asked to count and to point."""
    return _pointed(root, split, "pointing")


def high_frequency_points(root: Path, split: str) -> Iterator[WebExample]:
    """pixmo-points, the part collected by counting: many points each."""
    return _pointed(root, split, "counting")


def counts(root: Path, split: str) -> Iterator[WebExample]:
    """pixmo-count: points in pixels, a split of its own; every picture is asked to count and to point."""
    for number, row in enumerate(parquet_rows(root, split)):
        found = _count_points(row["points"])
        for style in POINT_STYLES:
            annotation = Annotation(style, label=str(row["label"]), points=found)
            yield WebExample(f"{number}-{style}", _picture(row), (annotation,), pixel_points=True)


def _pointed(root: Path, split: str, method: str) -> Iterator[WebExample]:
    def annotate(row: Row) -> list[Annotation]:
        if field(row, "collection_method", "a row") != method:
            return []
        found = as_points(row["points"])
        if len(found) > MAX_POINTS:
            return []
        return [Annotation(POINTING, label=str(row["label"]), points=found)]

    for example in _grouped(root, split, annotate):
        for part in _parts(example, _batches(example.annotations)):
            for style in POINT_STYLES:
                styled = tuple(
                    Annotation(style, label=a.label, points=a.points) for a in part.annotations
                )
                yield WebExample(f"{part.key}-{style}", part.picture, styled)


def _batches(annotations: Sequence[Annotation]) -> list[tuple[Annotation, ...]]:
    """Consecutive annotations with at most `MAX_POINTS` points together."""
    batches: list[list[Annotation]] = []
    total = 0
    for annotation in annotations:
        count = len(annotation.points or ())
        if not batches or total + count > MAX_POINTS:
            batches.append([])
            total = 0
        batches[-1].append(annotation)
        total += count
    return [tuple(batch) for batch in batches]


def _parts(example: WebExample, parts: Sequence[tuple[Annotation, ...]]) -> Iterator[WebExample]:
    for number, part in enumerate(parts):
        yield WebExample(f"{example.key}-{number}", example.picture, part)


def _grouped(
    root: Path, split: str, annotate: Callable[[Row], list[Annotation]]
) -> Iterator[WebExample]:
    if split not in ("train", "validation"):
        raise UserError(f"this set has the splits train and validation, not {split!r}.")
    by_url: dict[str, tuple[Picture, list[Annotation]]] = {}
    for row in parquet_rows(root, "train"):
        picture = _picture(row)
        if is_held_out(picture.url) == (split == "validation"):
            known, told = by_url.setdefault(picture.url, (picture, []))
            if known.sha256 != picture.sha256:
                raise UserError(
                    f"{root}: {picture.url} has two different sha256 in the set's own rows."
                )
            told += annotate(row)
    for url, (picture, told) in by_url.items():
        if told:
            yield WebExample(hashlib.sha256(url.encode()).hexdigest()[:16], picture, tuple(told))


def _picture(row: Row) -> Picture:
    return Picture(
        url=str(field(row, "image_url", "a row")), sha256=str(row.get("image_sha256") or "")
    )


def is_held_out(url: str) -> bool:
    """Whether the picture at an address belongs to `validation`: the address alone decides."""
    hashed = int.from_bytes(hashlib.sha256(f"split {url}".encode()).digest()[:6], "big")
    return hashed / 2**48 < HELD_OUT


def _count_points(value: Any) -> Points:
    """Lists of x and of y, or a list of points."""
    if isinstance(value, Mapping):
        return tuple((float(x), float(y)) for x, y in zip(value["x"], value["y"], strict=True))
    return as_points(value or ())
