"""Strict configuration: every misspelt key and choice is an error that names the nearest, however deep it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from molmoact_data.config import as_dict, build
from molmoact_data.errors import UserError


@dataclass(frozen=True)
class Lens:
    focus: float = 1.0
    coating: Literal["none", "magnesium"] = "none"


@dataclass(frozen=True)
class Camera:
    lens: Lens = field(default_factory=Lens)
    spare: Lens | None = None
    more: tuple[Lens, ...] = ()
    by_name: Mapping[str, Lens] = field(default_factory=dict)
    mode: Mapping[int, Literal["keep", "invert"]] = field(default_factory=dict)
    shutter_s: float = 0.01

    def __post_init__(self) -> None:
        if self.shutter_s <= 0:
            raise ValueError("shutter_s must be positive")


DEEP = {
    "lens": {"focus": 2.0},
    "spare": {"coating": "magnesium"},
    "more": [{"focus": 3.0}, {}],
    "by_name": {"wide": {"focus": 0.5}},
    "mode": {6: "keep"},
    "shutter_s": "0.5",
}


def test_nested_values_arrive_where_they_belong() -> None:
    camera = build(Camera, DEEP)
    assert camera == Camera(
        Lens(2.0), Lens(coating="magnesium"), (Lens(3.0), Lens()), {"wide": Lens(0.5)}, {6: "keep"}, 0.5
    )  # fmt: skip
    assert build(Camera, as_dict(camera)) == camera


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lense": {}}, "'lense'. Did you mean 'lens'"),
        ({"lens": {"fokus": 2}}, r"'lens\.fokus'\. Did you mean 'lens\.focus'"),
        ({"spare": {"fokus": 2}}, r"Did you mean 'spare\.focus'"),
        ({"more": [{}, {"fokus": 2}]}, r"Did you mean 'more\.focus'"),
        ({"by_name": {"wide": {"fokus": 2}}}, r"Did you mean 'by_name\.wide\.focus'"),
        ({"lens": {"coating": "magnesum"}}, r"unknown lens\.coating 'magnesum'\. Did you mean 'magn"),
        ({"mode": {6: "invrt"}}, r"unknown mode\.6 'invrt'\. Did you mean 'invert'"),
        ({"shutter_s": 0}, "^shutter_s must be positive$"),
        ({"shutter_s": "fast"}, "^shutter_s: .*number"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_place_and_the_nearest(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Camera, values)
