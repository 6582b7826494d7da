"""A statistics file is right, or one line: it decides what every action bin means."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from molmoact_data.errors import UserError
from molmoact_data.statistics import (
    ActionSpec,
    DatasetStatistics,
    feature_statistics,
    read_statistics,
)

Spoil = Callable[[dict[str, Any]], None]
DIM = 7


@pytest.fixture
def entry() -> dict[str, Any]:
    action = np.random.default_rng(0).normal(size=(50, DIM))
    statistics = DatasetStatistics(
        key="cups",
        action=feature_statistics(action),
        spec=ActionSpec.default(DIM),
        state=feature_statistics(action[:, :3]),
        num_transitions=50,
        num_trajectories=2,
    )
    return statistics.to_json()["cups"]


def put(*path: str | int, value: Any) -> Spoil:
    def spoil(entry: dict[str, Any]) -> None:
        here: Any = entry
        for key in path[:-1]:
            here = here[key]
        here[path[-1]] = value

    return spoil


def swap(name: str, other: str, feature: str = "action") -> Spoil:
    def spoil(entry: dict[str, Any]) -> None:
        here = entry[feature]
        here[name][0], here[other][0] = here[other][0], here[name][0]

    return spoil


def far_apart(entry: dict[str, Any]) -> None:
    for name, value in (("min", -3e38), ("q01", -3e38), ("q99", 3e38), ("max", 3e38)):
        entry["action"][name][0] = value


DAMAGE: dict[str, tuple[Spoil, str]] = {
    "q01 above q99": (swap("q01", "q99"), "q01 above its q99"),
    "state's q01 above q99": (swap("q01", "q99", "proprio"), "q01 above its q99"),
    "min above max": (swap("min", "max"), "min above its max"),
    "q01 above max": (put("action", "max", 2, value=-50.0), "above its max"),
    "negative std": (put("action", "std", 2, value=-1.0), "negative std"),
    "mask of 6": (put("action", "mask", value=[True] * 6), "mask of statistics has 6 entries for 7"),
    "mask of 8": (put("action", "mask", value=[True] * 8), "mask of statistics has 8 entries for 7"),
    "mask of text": (put("action", "mask", value=["false"] * 7), "a list of true and false"),
    "mask of numbers": (put("action", "mask", value=[1] * 7), "a list of true and false"),
    "mask is true": (put("action", "mask", value=True), "a list of true and false"),
    "mask against spec": (put("action", "mask", value=[True] * 7), "a mask and a spec that contradict"),
    "a boolean for a number": (put("action", "q01", 0, value=True), "q01 holds True"),
    "a rounded whole number": (put("action", "mean", 0, value=2**24 + 1), "mean holds 16777217"),
    "a text for a number": (put("action", "q99", 0, value="1.0"), "q99 holds '1.0'"),
    "a list for a number": (put("action", "mean", 0, value=[1.0]), r"mean holds \[1.0\]"),
    "1e308": (put("action", "q99", 0, value=1e308), "null, NaN or infinite values in q99"),
    "10 ** 400": (put("action", "q99", 0, value=10**400), "null, NaN or infinite values in q99"),
    "too wide": (far_apart, "too far apart"),
    "empty": (lambda e: e["action"].update({k: [] for k in ("mean", "std", "min", "max", "q01", "q99")}),
              r"mean is \[\]"),
    "one shorter": (lambda e: e["action"]["q99"].pop(), "differ in length"),
    "spec of text": (put("spec", value="abc"), "action spec of the statistics is damaged"),
    "spec row of numbers": (put("spec", 0, value={"normalize": 1}), "action spec of the statistics is damaged"),
    "spec row unknown": (put("spec", 0, value={"normalise": True}), "action spec of the statistics is damaged"),
    "spec of 6": (lambda e: (e["spec"].pop(), e["action"].pop("mask"))[0], "7 action dimensions, the spec 6"),
    "transitions true": (put("num_transitions", value=True), "whole number 'num_transitions'"),
    "transitions below 0": (put("num_transitions", value=-1), "whole number 'num_transitions'"),
    "trajectories 1e30": (put("num_trajectories", value=10**30), "whole number 'num_trajectories'"),
    "proprio is a list": (put("proprio", value=[1]), "must be an object"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_what_no_statistics_can_be_is_one_line(
    tmp_path: Path, entry: dict[str, Any], name: str
) -> None:
    path = tmp_path / "dataset_statistics.json"
    path.write_text(json.dumps({"cups": entry}))
    assert read_statistics(path).to_json() == {"cups": entry}
    spoil, message = DAMAGE[name]
    spoilt = copy.deepcopy(entry)
    spoil(spoilt)
    path.write_text(json.dumps({"cups": spoilt}))
    with pytest.raises(UserError, match=message) as caught:
        read_statistics(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "[" * 100_000, '{"cups": 3}', '{"cups": {"action": []}}']
)
def test_a_file_of_something_else_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "dataset_statistics.json"
    path.write_text(content)
    with pytest.raises(UserError, match="dataset_statistics"):
        read_statistics(path)


def test_a_file_without_our_spec_is_read_by_its_mask(tmp_path: Path, entry: dict[str, Any]) -> None:
    del entry["spec"]
    path = tmp_path / "dataset_statistics.json"
    path.write_text(json.dumps({"cups": entry}))
    assert read_statistics(path).spec == ActionSpec.default(DIM)
    entry["action"]["mask"] = [True] * 7
    path.write_text(json.dumps({"cups": entry}))
    assert read_statistics(path).spec.normalize_D.all()
