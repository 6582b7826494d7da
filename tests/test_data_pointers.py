"""Pointers that are not a network on this machine: recorded columns (hand-computed answers)."""

from __future__ import annotations

import numpy as np
import pytest

from molmoact_data.adapters.column_pointer import RecordedPoints, Units
from molmoact_data.errors import UserError
from molmoact_data.pointing import ColumnPointer

IMAGE_HW = (241, 321)


@pytest.mark.parametrize(
    ("units", "recorded"),
    [
        ("pixels", [80, 180]),
        ("unit", [0.25, 0.75]),
        ("percent", [100 * 80 / 321, 100 * 180 / 241]),
        ("grid", [63.75, 191.25]),
    ],
)
def test_every_unit_gives_the_same_point(units: Units, recorded: list[float]) -> None:
    """Pixel (80, 180) of 321 x 241 is a quarter of 320 to the right and three quarters of 240 down."""
    pointer = RecordedPoints("observation.gripper", units)
    assert isinstance(pointer, ColumnPointer)
    points = pointer.point_columns(
        {"observation.gripper": np.array([recorded], np.float32)}, IMAGE_HW
    )
    np.testing.assert_allclose(points.xy_NA2, [[[0.25, 0.75]]], rtol=1e-6)
    assert points.confidence_NA.tolist() == [[1.0]]


def test_missing_and_outside_are_not_found() -> None:
    recorded = np.array(
        [[0, 0], [320, 240], [np.nan, 3], [321, 5], [5, -1], [np.inf, 5]], np.float64
    )
    points = RecordedPoints("p", "pixels").point_columns({"p": recorded}, IMAGE_HW)
    np.testing.assert_array_equal(points.confidence_NA[:, 0], [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(points.xy_NA2[:2, 0], [[0, 0], [1, 1]])
    assert np.isnan(points.xy_NA2[2:]).all()


def test_two_arms() -> None:
    recorded = np.array([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [np.nan, np.nan]]])
    points = RecordedPoints("p", "unit", num_arms=2).point_columns({"p": recorded}, IMAGE_HW)
    np.testing.assert_allclose(points.xy_NA2, recorded.astype(np.float32))
    np.testing.assert_array_equal(points.confidence_NA, [[1, 1], [1, 0]])


def test_column_errors_name_what_to_change() -> None:
    with pytest.raises(UserError, match="Did you mean 'pixels'"):
        RecordedPoints("p", "pixel")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="needs the name of the column"):
        RecordedPoints("", "unit")
    with pytest.raises(UserError, match=r"shape \[T, 3\]; points of 1 arm"):
        RecordedPoints("p", "unit").point_columns({"p": np.zeros((4, 3))}, IMAGE_HW)
