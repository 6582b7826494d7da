"""Broken statistics files: refused, or read as exactly what is written."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from fuzz.outcomes import EQUAL, EXPLAINED, UNEXPLAINED, Kind, attempt
from fuzz.values import change_bytes, change_json
from molmoact_data.statistics import (
    FEATURE_FIELDS,
    ActionSpec,
    DatasetStatistics,
    feature_statistics,
    read_statistics,
)


def sound() -> dict[str, Any]:
    """A statistics file of seven dimensions."""
    values = np.random.default_rng(0).normal(size=(40, 7))
    state = feature_statistics(values[:, :2])
    spec = ActionSpec.default(7)
    return DatasetStatistics("cups", feature_statistics(values), spec, state, 40, 2).to_json()


def statistics_file(rng: Random, place: Path) -> tuple[str, str, str]:
    """One broken file."""
    place.mkdir(parents=True)
    path = place / "dataset_statistics.json"
    before = sound()
    path.write_text(json.dumps(before))
    where: tuple[str | int, ...] = ()
    if rng.random() < 0.15:
        change_bytes(path, rng)
    else:
        changed, where = change_json(before, rng)
        path.write_text(json.dumps(changed))

    def work() -> tuple[str, str]:
        found = read_statistics(path)
        written = json.loads(path.read_text())
        if found.to_json() == before:
            return EQUAL, ""
        same = means_what_is_written(found, written[found.key])
        return (EXPLAINED, "") if same else (UNEXPLAINED, "read as something else than is written")

    return f"{'.'.join(map(str, where)) or 'bytes'}", *attempt(work)


def means_what_is_written(found: DatasetStatistics, written: dict[str, Any]) -> bool:
    """Every number of the file, as float32, and every mask."""
    features = [(found.action, written["action"])]
    if found.state is not None:
        features.append((found.state, written["proprio"]))
    numbers = all(
        np.array_equal(getattr(feature, name), np.asarray(entry[name], np.float32))
        for feature, entry in features
        for name in FEATURE_FIELDS
    )
    mask = written["action"].get("mask", found.spec.normalize_D.tolist())
    return numbers and mask == found.spec.normalize_D.tolist()


KINDS: dict[str, Kind] = {"statistics": statistics_file}
