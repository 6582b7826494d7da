"""Molmo2's answers: points with times and identities, read as their makers read them, written as it was trained."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from golden import GOLDEN
from hypothesis import given, strategies as st

from molmoact_data.teachers.answers import parse_points
from molmoact_data.teachers.timed_answers import (
    TimedPoint,
    format_timed_points,
    parse_timed_points,
    tracks,
)

FILE = GOLDEN / "molmo" / "points.json"
needs_points = pytest.mark.skipif(
    not FILE.is_file(), reason=f"no golden answers at {FILE}; set MOLMOACT_GOLDEN"
)


@cache
def golden(kind: str) -> list[dict[str, Any]]:
    return json.loads(FILE.read_text())[kind] if FILE.is_file() else []


@needs_points
@pytest.mark.parametrize("case", range(len(golden("read"))))
def test_strings_are_read_as_their_makers_read_them(case: int) -> None:
    told = golden("read")[case]
    width, height, points = told["width"], told["height"], parse_timed_points(told["text"])
    found = [[p.time, p.thing, p.x / 100 * width, p.y / 100 * height] for p in points]
    assert found == [pytest.approx(expected) for expected in told["molmo2_points"]]
    followed = [
        {
            "time": time,
            "frame": round(time * told["fps"]),
            "points": {
                str(i): {"point": pytest.approx([p.x / 100 * width, p.y / 100 * height])}
                for i, p in things.items()
            },
        }
        for time, things in tracks(points).items()
    ]
    assert followed == told["molmo2_tracks"]


@needs_points
@pytest.mark.parametrize("case", range(len(golden("read"))))
def test_the_first_format_is_read_too_and_the_second_never_as_the_first(case: int) -> None:
    """The makers' old reader takes Molmo2's numbers for its own, a fallback that would mix units."""
    told = golden("read")[case]
    points = [(x / 100 * told["width"], y / 100 * told["height"]) for x, y in parse_points(told["text"])]  # fmt: skip
    if "coords=" in told["text"]:
        assert points == []
    else:
        assert points == [pytest.approx(xy) for xy in told["molmo1_points"]]


def written_points(told: dict[str, Any]) -> list[TimedPoint]:
    """Per cent, from whichever scale and shape the file has."""
    scale = 100 / told["scale"]
    if told["kind"] == "image":
        return [TimedPoint(1, 0, x * scale, y * scale) for x, y in told["points"]]
    if told["kind"] == "video":
        return [
            TimedPoint(time, 0, x * scale, y * scale)
            for time, at in zip(told["times"], told["points"], strict=True)
            for x, y in at
        ]
    return [
        TimedPoint(frame["time"], int(thing), p["point"][0] * scale, p["point"][1] * scale)
        for frame in told["frames"]
        for thing, p in frame["points"].items()
        if not p["occluded"]
    ]


@needs_points
@pytest.mark.parametrize("case", range(len(golden("written"))))
def test_points_are_written_as_the_model_is_trained_to_say_them(case: int) -> None:
    told = golden("written")[case]
    text = format_timed_points(
        written_points(told),
        told["label"],
        unit="picture" if told["kind"] == "image" else "seconds",
        tag="tracks" if told["kind"] == "tracks" else "points",
    )
    assert text == told["text"]


POINTS = st.lists(
    st.builds(
        TimedPoint,
        st.integers(0, 40).map(lambda half: half / 2),
        st.integers(1, 4),
        st.integers(0, 1000).map(lambda x: x / 10),
        st.integers(0, 1000).map(lambda y: y / 10),
    ),
    unique_by=lambda p: (p.time, p.thing),
    max_size=8,
)


@given(POINTS)
def test_format_and_parse_are_inverse(points: list[TimedPoint]) -> None:
    for tag in ("points", "tracks"):
        read = parse_timed_points(format_timed_points(points, "gripper", unit="seconds", tag=tag))
        assert sorted((p.time, p.x, p.y) for p in read) == sorted(
            (p.time, p.x, p.y) for p in points
        )


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('<points coords="1 1 635 442 2 300 40', 1),
        ('<points coords="1 1 635 442;2 2 300 400', 1),  # 400 may still become 4000
        ('<tracks coords="0.0 1 635 522;0.5 1 606', 1),
        ('<points coords="1 1 635 44', 0),
        ('<points coords="', 0),
        ('<points coords="1 1 635 442">g</points><points coords="2 1 100 200 ', 2),
    ],
)
def test_a_streamed_answer_gives_what_is_certain(text: str, count: int) -> None:
    assert len(parse_timed_points(text, streaming=True)) == count


@given(st.text())
def test_any_text_gives_points_in_range_or_none(text: str) -> None:
    for answer in (text, f'<points coords="{text}">', f'<tracks coords="1 1 {text}'):
        for streaming in (False, True):
            points = parse_timed_points(answer, streaming=streaming)
            assert all(0 <= p.x <= 100 and 0 <= p.y <= 100 for p in points)
