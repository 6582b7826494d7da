"""What Molmo2 says -> points with a time and an identity. Pure; the second of the two answer formats.

`<points coords="G;G;...">label</points>` for pictures and clips, `<tracks coords="...">label</tracks>` for tracking;
a group G is `time object x y object x y ...`: the time in seconds (one decimal) or the number of the picture from 1,
x and y in thousandths of the width and height. Nothing there: `There are none.`

The format is chosen by the checkpoint, never by the text: per cent (Molmo) and per mille do not mix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

_CLOSED = re.compile(r'<(?:points|tracks)\b[^<>]*?\scoords="([0-9 .,:;\t]*)"')
_OPEN = re.compile(r'<(?:points|tracks)\b[^<>"]*?\scoords="([0-9 .,:;\t]*)\Z')
_TRACKS = re.compile(r"<tracks\b")
_GROUP = re.compile(r"[^;\t:,]+")
_WORD = re.compile(r"\S+")
_TIME = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_THOUSANDTHS = re.compile(r"\d{3,4}")
_LARGEST = 1000


@dataclass(frozen=True)
class TimedPoint:
    """One point of an answer."""

    time: float
    """Seconds, or the number of the picture from 1."""
    thing: int
    """Which of the things pointed at, from 1: a running number in pointing, an identity in tracking."""
    x: float
    """Per cent of the width, 0..100, to the right."""
    y: float
    """Per cent of the height, 0..100, down."""
    span: tuple[int, int] = field(default=(0, 0), compare=False)
    """Where x and y stand in the answer."""


def parse_timed_points(answer: str, *, streaming: bool = False) -> list[TimedPoint]:
    """All well-formed points, in the order they are told.

    A number with two digits or above 1000 is no coordinate; its point is left out and the rest is read.
    An attribute that is not closed counts for nothing, as in the makers' reader, unless `streaming`: then it is read
    up to the last number, which may still grow.
    """
    told = [found.span(1) for found in _CLOSED.finditer(answer)]
    if streaming and (cut := _OPEN.search(answer)):
        start = cut.start(1)
        told.append((start, start + max(0, cut[1].rfind(" "))))
    return [point for start, stop in told for point in _points(answer, start, stop)]


def _points(answer: str, start: int, stop: int) -> Iterator[TimedPoint]:
    for group in _GROUP.finditer(answer, start, stop):
        words = list(_WORD.finditer(answer, *group.span()))
        if not words or not _TIME.fullmatch(words[0][0]):
            continue
        # A cut last point has fewer numbers.
        for thing, x, y in zip(*[iter(words[1:])] * 3, strict=False):
            if not (
                thing[0].isdigit() and _THOUSANDTHS.fullmatch(x[0]) and _THOUSANDTHS.fullmatch(y[0])
            ):
                continue
            if max(int(x[0]), int(y[0])) <= _LARGEST:
                yield TimedPoint(
                    float(words[0][0]),
                    int(thing[0]),
                    int(x[0]) / 10,
                    int(y[0]) / 10,
                    (x.start(), y.end()),
                )


def tracks(points: Sequence[TimedPoint]) -> dict[float, dict[int, TimedPoint]]:
    """Time -> thing -> point, sorted by time; of a thing told twice at one time the first counts."""
    found: dict[float, dict[int, TimedPoint]] = {}
    for point in points:
        found.setdefault(point.time, {}).setdefault(point.thing, point)
    return dict(sorted(found.items()))


def points_of_clip(
    answer: str, times_s: Sequence[float], num_arms: int
) -> list[list[TimedPoint | None]]:
    """What an answer, whole or cut off, says of each of the told times: a point per arm, None = not found.

    Tracking tells who is who: the arms are the `num_arms` lowest numbers, and one may be missing. Pointing numbers its
    points anew in every frame: they go from left to right, and fewer than there are arms count as none. A time that was
    not told belongs to no frame.
    """
    by_time = tracks(parse_timed_points(answer, streaming=True))
    told = {f"{time:.1f}": things for time, things in by_time.items()}
    if _TRACKS.search(answer):
        numbers = sorted({number for things in by_time.values() for number in things})[:num_arms]
        numbers += [-1] * (num_arms - len(numbers))
        return [[told.get(f"{time:.1f}", {}).get(number) for number in numbers] for time in times_s]
    frames: list[list[TimedPoint | None]] = []
    for time in times_s:
        points = list(told.get(f"{time:.1f}", {}).values())[:num_arms]
        points.sort(key=lambda p: (p.x, p.y))
        frames.append([*points] if len(points) == num_arms else [None] * num_arms)
    return frames


def is_told(answer: str) -> bool:
    """Whether the points of an answer in the making are complete."""
    return _CLOSED.search(answer) is not None


def format_timed_points(
    points: Sequence[TimedPoint],
    label: str,
    *,
    unit: Literal["picture", "seconds"] = "picture",
    tag: Literal["points", "tracks"] = "points",
) -> str:
    """What Molmo2 is trained to say for these points; inverse of `parse_timed_points` up to rounding.

    Pointing numbers the points by time, then x, then y; tracking numbers things by when they first appear, then x, y.
    """
    if not points:
        return "There are none."
    ordered = sorted(points, key=lambda p: (p.time, p.x, p.y))
    numbers: dict[int, int] = {}
    for point in ordered:
        numbers.setdefault(point.thing, len(numbers) + 1)
    groups: dict[float, list[tuple[int, str]]] = {}
    for place, point in enumerate(ordered, start=1):
        number = numbers[point.thing] if tag == "tracks" else place
        told = f"{number} {round(point.x * 10):03d} {round(point.y * 10):03d}"
        groups.setdefault(point.time, []).append((number, told))
    coords = ";".join(
        " ".join(
            [f"{time:.1f}" if unit == "seconds" else f"{time:.0f}", *(t for _, t in sorted(group))]
        )
        for time, group in groups.items()
    )
    return f'<{tag} coords="{coords}">{label}</{tag}>'


def points_of_picture(answer: str, *, streaming: bool = False) -> list[tuple[float, float]]:
    """The points of an answer about one picture, per cent, as they are told; the twin of `parse_points`."""
    return [(p.x, p.y) for p in parse_timed_points(answer, streaming=streaming)]
