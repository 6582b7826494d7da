"""One annotation of a general vision-language set -> question and answer, worded as the published training words it.

An annotation keeps what its set recorded (references, options, points); wording is drawn when a sample is rendered,
so that every epoch asks differently. Points are in percent of the picture, x right, y down, 0..100.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from molmoact_data.text import templates

POINTING, POINT_COUNT, LONG_CAPTION = "pointing", "point_count", "long_caption"
DEMO_STYLES = frozenset(
    {
        POINT_COUNT,
        POINTING,
        "cosyn_point",
        "user_qa",
        LONG_CAPTION,
        "short_caption",
        "correction_qa",
    }
)
"""Styles whose questions a person would ask as they are; they carry their prefix in one sample of ten."""
UNPREFIXED = frozenset({"android_control", "demo"})
ASKED_WITHOUT_POINTS = frozenset({"user_qa", "synthetic_qa"})
"""Styles in which a counting question is told not to point."""
DEMO_PREFIX_RATE = 0.1
LETTERS = "ABCDEFG"
POINT_MARK = "<|POINT|>"
"""Where an answer has points, in the order of `inline_points`."""

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class InlinePoints:
    """Points inside an answer's text."""

    points: Points
    inline_text: str
    alt_text: str


@dataclass(frozen=True)
class Annotation:
    """What one set says about one picture; exactly the fields that its style needs are there."""

    style: str
    question: str = ""
    answers: tuple[str, ...] = ()
    """References; the most frequent is the answer, one of them where several are."""
    options: tuple[str, ...] = ()
    """Choices; with `lettered` the answer is a letter, otherwise the option itself."""
    answer_index: int | None = None
    lettered: bool = True
    label: str | None = None
    """What is pointed at."""
    points: Points | None = None
    inline_points: tuple[InlinePoints, ...] = ()
    turns: tuple[str, ...] = ()
    """A whole conversation, question first; the other fields are empty then."""

    def __post_init__(self) -> None:
        if len(self.turns) % 2:
            raise ValueError(f"{len(self.turns)} turns are not question and answer pairs")
        if self.options and (
            self.answer_index is None or not 0 <= self.answer_index < len(self.options)
        ):
            raise ValueError(f"answer {self.answer_index} is none of {len(self.options)} options")
        if self.lettered and len(self.options) > len(LETTERS):
            raise ValueError(f"{len(self.options)} options, there are letters for {len(LETTERS)}")
        if not (self.turns or self.answers or self.options or self.points is not None):
            raise ValueError("an annotation without an answer")

    def to_json(self) -> dict[str, Any]:
        """The fields that are not at their default, as plain data."""
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        plain = {name: value for name, (value, default) in values.items() if value != default}
        if self.inline_points:
            plain["inline_points"] = [vars(part) for part in self.inline_points]
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Annotation:
        """The inverse of `to_json`. Raises `ValueError` or `TypeError` where the data are not an annotation."""
        values = dict(plain)
        for name in ("answers", "options", "turns"):
            values[name] = tuple(map(str, values.get(name, ())))
        if values.get("points") is not None:
            values["points"] = as_points(values["points"])
        values["inline_points"] = tuple(
            InlinePoints(as_points(part["points"]), str(part["inline_text"]), str(part["alt_text"]))
            for part in values.get("inline_points", ())
        )
        return cls(**values)


def dump(annotations: Sequence[Annotation]) -> str:
    """Annotations of one picture -> one JSON text."""
    return json.dumps([a.to_json() for a in annotations], ensure_ascii=False)


def load(text: str) -> tuple[Annotation, ...]:
    """The inverse of `dump`. Raises `ValueError` or `TypeError` where the text is something else."""
    return tuple(Annotation.from_json(plain) for plain in json.loads(text))


def as_points(values: Sequence[Any]) -> Points:
    """[[x, y], ...] or [{"x": x, "y": y}, ...] -> pairs of floats."""
    pairs = [(v["x"], v["y"]) if isinstance(v, Mapping) else tuple(v) for v in values]
    return tuple((float(x), float(y)) for x, y in pairs)


def render(annotation: Annotation, rng: np.random.Generator) -> list[str]:
    """Question, answer, question, ... with the style's prefix before the first question."""
    turns = list(annotation.turns) or [_question(annotation, rng), _answer(annotation, rng)]
    if annotation.style in ASKED_WITHOUT_POINTS:
        turns[::2] = [_without_points(question, rng) for question in turns[::2]]
    turns[0] = _prefixed(annotation.style, turns[0], rng)
    return turns


def _prefixed(style: str, question: str, rng: np.random.Generator) -> str:
    if style in UNPREFIXED or (style in DEMO_STYLES and rng.random() > DEMO_PREFIX_RATE):
        return question
    return f"{style}: {question}" if question else f"{style}:"


def _without_points(question: str, rng: np.random.Generator) -> str:
    asks_how_many = re.fullmatch("how many.*", question.lower())
    return _one_of(templates.NO_POINTS, rng) + question if asks_how_many else question


def _question(annotation: Annotation, rng: np.random.Generator) -> str:
    if annotation.options:
        return f"{annotation.question}\n{_options(annotation)}\n"
    if annotation.question:
        return annotation.question
    if annotation.style == LONG_CAPTION:
        return _one_of(templates.LONG_CAPTION, rng)
    if annotation.label is not None:
        wordings = templates.POINT_COUNT if annotation.style == POINT_COUNT else templates.POINTING
        return _one_of(wordings, rng).replace("{label}", annotation.label.lower())
    return ""


def _options(annotation: Annotation) -> str:
    if not annotation.lettered:
        return "\n".join(annotation.options)
    return "\n".join(f"{a}: {b}" for a, b in zip(LETTERS, annotation.options, strict=False))


def _answer(annotation: Annotation, rng: np.random.Generator) -> str:
    if annotation.points is not None:
        return _pointed(annotation)
    if annotation.options:
        assert annotation.answer_index is not None
        names = LETTERS if annotation.lettered else annotation.options
        return names[annotation.answer_index]
    answer = most_frequent(annotation.answers, rng)
    for part in annotation.inline_points:
        told = points_text(part.points, part.inline_text, part.alt_text)
        answer = answer.replace(POINT_MARK, told, 1)
    return answer


def _pointed(annotation: Annotation) -> str:
    assert annotation.points is not None
    label = annotation.label.lower() if annotation.label is not None else annotation.question
    if not annotation.points:
        return templates.NONE_THERE
    told = points_text(annotation.points, label, label)
    if annotation.style == POINT_COUNT:
        return f"Counting the {told} shows a total of {len(annotation.points)}."
    return told


def points_text(points: Points, inline_text: str, alt_text: str) -> str:
    """Points in percent -> the tag that Molmo writes, one decimal, from left to right."""
    rounded = sorted(
        ([_tenth(x), _tenth(y)] for x, y in points), key=lambda p: p[0] * 10_000 + p[1]
    )
    if len(rounded) == 1:
        x, y = rounded[0]
        return f'<point x="{x:0.1f}" y="{y:0.1f}" alt="{alt_text}">{inline_text}</point>'
    numbers = " ".join(f'x{i}="{x:0.1f}" y{i}="{y:0.1f}"' for i, (x, y) in enumerate(rounded, 1))
    return f'<points {numbers} alt="{alt_text}">{inline_text}</points>'


def _tenth(value: float) -> float:
    """One decimal, rounded as numpy rounds, which the published texts were made with."""
    return float(np.round(value, 1))


def most_frequent(answers: Sequence[str], rng: np.random.Generator) -> str:
    """The reference that most people gave; one of them at random where several are as frequent."""
    counts = Counter(answers)
    best = max(counts.values())
    return _one_of([answer for answer, count in counts.items() if count == best], rng)


def _one_of(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
