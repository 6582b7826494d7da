"""Strict configuration: every misspelt key and choice is an error that names the nearest, however deep it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from molmoact_data.config import as_dict, build, load_yaml
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


def bomb(levels: int, item: str) -> str:
    lines = [f"a{i}: &a{i} {item.format(', '.join([f'*a{i - 1}'] * 9))}" for i in range(1, levels)]
    return "\n".join(["a0: &a0 {x: 1}", *lines])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(9, "[{}]"), "aliases of aliases"),
        (bomb(30, "[{}]"), "aliases of aliases"),
        (bomb(30, "{{<<: [{}]}}"), "aliases of aliases"),
        ("a: &a [*a]", "in itself"),
        ("a: &a {b: *a}", "in itself"),
        ("a: " + "[" * 100_000, "50 levels"),
        ("a: " + "[" * 60 + "]" * 60, "50 levels"),
        ("- " * 2_000, "levels|valid YAML"),
        ("fps: 10\nfps: 20", "'fps' twice"),
        ("a: {b: 1, b: 2}", "'b' twice"),
        ("frames-per-shard: 1\nframes_per_shard: 2", "'frames_per_shard' twice"),
        ("x" * 2_000_000, "longer than"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: " + "9" * 5_000, "not valid YAML"),
        ("a: 1\n---\na: 2", "not valid YAML"),
    ],
)
def test_yaml_that_nobody_means_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        load_yaml(path)
    assert "\n" not in str(refused.value)


def test_aliases_and_merges_that_somebody_means_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("base: &base {a: 1, b: 2}\nmine:\n  <<: *base\n  b: 3\nlist: [*base, *base]\n")
    assert load_yaml(path) == {
        "base": {"a": 1, "b": 2},
        "mine": {"a": 1, "b": 3},
        "list": [{"a": 1, "b": 2}, {"a": 1, "b": 2}],
    }
