"""Which value of a gripper means open: what the released models were trained on, and what a dataset's values become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from molmoact_data.labels.actions import normalize
from molmoact_data.statistics import DatasetStatistics

MEANING: Mapping[float, str] = {0.0: "open", 1.0: "closed"}
"""Stored value -> what the released models take it for."""
HOW_TO_DECIDE = (
    "Not sure which end is open? Look at the first frames of an episode (`molmoact viz`): "
    "a hand that has not grasped yet is open."
)


@dataclass(frozen=True)
class GripperValue:
    """One end of the recorded range, and what becomes of it."""

    recorded: float
    stored: float
    meaning: str


def gripper_values(statistics: DatasetStatistics, dimension: int) -> tuple[GripperValue, ...]:
    """The smallest and the largest recorded value of a dimension."""
    action, spec = statistics.action, statistics.spec.dimensions[dimension]
    ends = sorted({float(action.min[dimension]), float(action.max[dimension])})
    rows_ND = np.tile(action.mean.astype(np.float32), (len(ends), 1))
    rows_ND[:, dimension] = ends
    stored = normalize(rows_ND, statistics)[:, dimension]
    return tuple(
        GripperValue(
            end,
            float(value),
            "scaled: they never saw it so"
            if spec.normalize
            else MEANING.get(round(float(value), 3), "not a value that they were trained on"),
        )
        for end, value in zip(ends, stored, strict=True)
    )


def gripper_table(statistics: DatasetStatistics, dimension: int, observed: str) -> list[str]:
    """For people, aligned: what was seen, what is stored, what it means, and how to change it."""
    head = ("recorded", "stored", "which the released models take for")
    rows = [head] + [
        (f"{v.recorded:.4g}", f"{v.stored:.4g}", v.meaning)
        for v in gripper_values(statistics, dimension)
    ]
    return [
        f"action dimension {dimension} is a gripper: observed {observed}",
        *(f"  {recorded:>8}  {stored:>8}  {meaning}" for recorded, stored, meaning in rows),
        f"  The wrong way round? --gripper {dimension}=keep stores it as recorded, {dimension}=invert as "
        f"1 - a, {dimension}=scale like a joint; --gripper none: there is no gripper.",
        f"  {HOW_TO_DECIDE}",
    ]
