"""Which value of a gripper means open, beside what the encoder of actions really stores."""

from __future__ import annotations

import numpy as np
import pytest

from molmoact_data.labels.gripper import gripper_table, gripper_values
from molmoact_data.statistics import ActionSpec, DatasetStatistics, feature_statistics


def statistics(low: float, high: float, *, invert: bool, scale: bool) -> DatasetStatistics:
    actions_TD = np.zeros((100, 7), np.float32)
    actions_TD[:, 6] = np.where(np.arange(100) % 2, high, low)
    spec = ActionSpec.with_grippers(7, (6,), invert=invert, normalize=scale)
    return DatasetStatistics("d", feature_statistics(actions_TD), spec, None, 100, 1)


@pytest.mark.parametrize(
    ("low", "high", "invert", "scale", "meanings"),
    [
        (0, 1, True, False, ["closed", "open"]),
        (0, 1, False, False, ["open", "closed"]),
        (-1, 1, True, False, ["closed", "open"]),
        (-1, 1, False, True, ["scaled: they never saw it so"] * 2),
        (0, 0.08, False, False, ["open", "not a value that they were trained on"]),
    ],
)
def test_both_ends_are_told_as_they_are_stored(
    low: float, high: float, invert: int, scale: int, meanings: list[str]
) -> None:
    found = gripper_values(statistics(low, high, invert=bool(invert), scale=bool(scale)), 6)
    assert [v.recorded for v in found] == pytest.approx([low, high])
    assert [v.meaning for v in found] == meanings
    expected = {(True, False): np.clip(1 - np.array([low, high]), -1, 1), (False, False): np.array([low, high]),
                (False, True): np.array([-1, 1])}[invert, scale]  # fmt: skip
    assert [v.stored for v in found] == pytest.approx(list(expected))


def test_the_table_names_the_flags_and_how_to_decide() -> None:
    first, head, *rows = gripper_table(statistics(0, 1, invert=True, scale=False), 6, "{0, 1}")
    assert first == "action dimension 6 is a gripper: observed {0, 1}"
    assert head.split()[:2] == ["recorded", "stored"]
    assert rows[0].split() == ["0", "1", "closed"]
    assert rows[1].split() == ["1", "0", "open"]
    for word in ("--gripper 6=keep", "6=invert", "6=scale", "--gripper none", "molmoact viz"):
        assert word in "\n".join(rows)
