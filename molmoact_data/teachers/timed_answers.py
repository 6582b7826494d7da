"""What Molmo2 says -> points with a time and an identity. Pure; the second of the two answer formats.

`<points coords="G;G;...">label</points>` for pictures and clips, `<tracks coords="...">label</tracks>` for tracking;
a group G is `time object x y object x y ...`: the time in seconds (one decimal) or the number of the picture from 1,
x and y in thousandths of the width and height. Nothing there: `There are none.`

The format is chosen by the checkpoint, never by the text: per cent (Molmo) and per mille do not mix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

_CLOSED = re.compile(r'<(?:points|tracks)\b[^<>]*?\scoords="([0-9 .,:;\t]*)"')
_OPEN = re.compile(r'<(?:points|tracks)\b[^<>"]*?\scoords="([0-9 .,:;\t]*)\Z')
_SEPARATOR = re.compile(r"[;\t:,]")
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


def parse_timed_points(answer: str, *, streaming: bool = False) -> list[TimedPoint]:
    """All well-formed points, in the order they are told.

    A number with two digits or above 1000 is no coordinate; its point is left out and the rest is read.
    An attribute that is not closed counts for nothing, as in the makers' reader, unless `streaming`: then it is read
    up to the last number, which may still grow.
    """
    told = [found[1] for found in _CLOSED.finditer(answer)]
    if streaming and (cut := _OPEN.search(answer)):
        whole, blank, _ = cut[1].rpartition(" ")
        told.append(whole if blank else "")
    return [point for coords in told for point in _points(coords)]


def _points(coords: str) -> Iterator[TimedPoint]:
    for group in _SEPARATOR.split(coords):
        time, *numbers = group.split() or [""]
        if not _TIME.fullmatch(time):
            continue
        for thing, x, y in zip(
            *[iter(numbers)] * 3, strict=False
        ):  # a cut last point has fewer numbers
            if not (thing.isdigit() and _THOUSANDTHS.fullmatch(x) and _THOUSANDTHS.fullmatch(y)):
                continue
            if max(int(x), int(y)) <= _LARGEST:
                yield TimedPoint(float(time), int(thing), int(x) / 10, int(y) / 10)


def tracks(points: Sequence[TimedPoint]) -> dict[float, dict[int, TimedPoint]]:
    """Time -> thing -> point, sorted by time; of a thing told twice at one time the first counts."""
    found: dict[float, dict[int, TimedPoint]] = {}
    for point in points:
        found.setdefault(point.time, {}).setdefault(point.thing, point)
    return dict(sorted(found.items()))


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
