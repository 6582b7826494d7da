"""What pointing models say -> points. Pure; used by every pointer that reads text.

Molmo answers in percent of the width and height, from the left upper corner:
one point `<point x="63.5" y="44.5" alt="gripper">gripper</point>`, several
`<points x1="10.0" y1="20.0" x2="30.5" y2="40.1" alt="...">...</points>`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_TAG = re.compile(r"<points?(?=\s)")
_ATTRIBUTE = re.compile(r"""\s+(\w+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_COORDINATE = re.compile(r"([xy])(\d*)")
_NUMBER = re.compile(r"\s*\d+(?:\.\d*)?\s*|\s*\.\d+\s*")


@dataclass
class Answer:
    """One generated answer: its text, token by token, with natural-log probabilities."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    complete: bool = False
    """It ended by itself or told what was asked; False = it was cut off."""
    read_tokens: int = 0
    """Of the question, pictures included."""

    def append(
        self,
        token: int,
        logprob: float,
        *,
        end: int,
        decode: Callable[[Sequence[int]], str],
        is_complete: Callable[[str], bool],
    ) -> None:
        """Take the next token; `end` closes the answer and is no part of it."""
        if token == end:
            self.complete = True
            return
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.tokens.append(decode([token]))
        self.text = decode(self.ids)
        self.complete = is_complete(self.text)


def extend_answers(
    answers: Sequence[Answer],
    tokens: Sequence[int],
    logprobs: Sequence[float],
    *,
    end: int,
    decode: Callable[[Sequence[int]], str],
    is_complete: Callable[[str], bool],
) -> None:
    """One step of a batch: every answer that is not complete takes its token, see `Answer.append`."""
    for answer, token, logprob in zip(answers, tokens, logprobs, strict=True):
        if not answer.complete:
            answer.append(token, logprob, end=end, decode=decode, is_complete=is_complete)


class PointingModel(Protocol):
    """A vision-language model that answers in text."""

    def answer(
        self,
        frames: Sequence[NDArray[np.uint8]],
        question: str,
        *,
        is_complete: Callable[[str], bool],
        max_new_tokens: int,
    ) -> list[Answer]:
        """One answer per frame, RGB uint8 [H, W, 3]; it ends early where `is_complete` says so of its text."""
        ...


class ClipModel(PointingModel, Protocol):
    """One that also answers about many pictures at once."""

    def answer_clip(
        self,
        frames: Sequence[NDArray[np.uint8]],
        times_s: Sequence[float],
        question: str,
        *,
        is_complete: Callable[[str], bool],
        max_new_tokens: int,
    ) -> Answer:
        """One answer about the frames, RGB uint8 [H, W, 3], each told with its time."""
        ...


def tokens_of(answers: Sequence[Answer]) -> NDArray[np.int64]:
    """Tokens read and written for each answer, [C, 2]."""
    told = [(answer.read_tokens, len(answer.ids)) for answer in answers]
    return np.array(told, np.int64).reshape(-1, 2)


def parse_points(answer: str) -> list[tuple[float, float]]:
    """All well-formed points of an answer, percent 0..100 (x right, y down), in the order they are told.

    A point counts if both its coordinates are plain numbers within 0..100; anything else is not found,
    never guessed. An answer cut off after its first point still has that point.
    """
    points: list[tuple[float, float]] = []
    for tag in _TAG.finditer(answer):
        points += _points_of_tag(answer, tag.end())
    return points


def _points_of_tag(answer: str, position: int) -> list[tuple[float, float]]:
    coordinates: dict[str, dict[str, float]] = {}
    while attribute := _ATTRIBUTE.match(answer, position):
        position = attribute.end()
        name, text = attribute[1], attribute[2] if attribute[2] is not None else attribute[3]
        if (which := _COORDINATE.fullmatch(name)) and _NUMBER.fullmatch(text):
            coordinates.setdefault(which[2], {}).setdefault(which[1], float(text))
    pairs = [(c["x"], c["y"]) for c in coordinates.values() if c.keys() == {"x", "y"}]
    return [(x, y) for x, y in pairs if 0 <= x <= 100 and 0 <= y <= 100]


def arms_from_percent(
    points: Sequence[tuple[float, float]], num_arms: int, image_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """The first `num_arms` points as unit coordinates [arms, 2]; NaN where fewer were told.

    Percent p of a side of w pixels is pixel p/100*w, as the reference reads it, hence p/100*w/(w-1) in
    unit coordinates, at most 1. With two or more arms points are ordered from left to right, and fewer
    points than arms count as none, since nothing says whose they are.
    """
    if len(points) < num_arms:
        return np.full((num_arms, 2), np.nan, np.float32)
    told = sorted(points[:num_arms]) if num_arms > 1 else points[:1]
    return unit_from_percent(np.array(told), image_hw)


def unit_from_percent(
    percent_N2: NDArray[np.floating], image_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Percent of the sides -> unit coordinates; NaN stays."""
    height, width = image_hw
    scale = np.array([width / max(width - 1, 1), height / max(height - 1, 1)])
    return np.minimum(percent_N2 / 100 * scale, 1).astype(np.float32)


def answer_confidence(tokens: Sequence[str], logprobs: Sequence[float]) -> float:
    """Geometric mean of the probabilities of the tokens that spell digits; 0 where none does."""
    of_digits = [p for t, p in zip(tokens, logprobs, strict=True) if any(c.isdigit() for c in t)]
    return math.exp(math.fsum(of_digits) / len(of_digits)) if of_digits else 0.0
