"""Points that the dataset already has: a numeric column with an explicit unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError, unknown_name
from molmoact_data.labels.pointing import GripperPoints

Units = Literal["pixels", "unit", "percent", "grid"]


@dataclass(frozen=True)
class ColumnSettings:
    """What a run says of this teacher; fields are `TeacherConfig`'s."""

    pointer_column: str | None = None
    pointer_units: Units = "unit"
    arms: int = 1

    def __post_init__(self) -> None:
        if self.pointer_column is None:
            raise ValueError("--pointer column needs --pointer-column NAME")


class RecordedPoints:
    """`ColumnPointer` over a column [T,2] or [T,A,2], x right, y down.

    The unit is never guessed: `pixels` of the recorded frame (centre of column i is i), `unit` 0..1,
    `percent` 0..100 (as Molmo tells it), `grid` 0..255 (as MolmoAct's traces). NaN = not found; a point
    outside the frame is not in the picture and hence not found either.
    """

    Settings = ColumnSettings

    @classmethod
    def load(cls, settings: ColumnSettings, device: str) -> RecordedPoints:
        """As a run asks for it."""
        assert settings.pointer_column is not None
        return cls(settings.pointer_column, settings.pointer_units, num_arms=settings.arms)

    def __init__(self, column: str, units: Units, *, num_arms: int = 1) -> None:
        if not column:
            raise UserError(
                "the pointer 'column' needs the name of the column that holds the points."
            )
        if units not in get_args(Units):
            raise unknown_name("unit of recorded points", units, get_args(Units))
        self.columns = (column,)
        self.num_arms = num_arms
        self.units = units

    def describe(self) -> dict[str, str]:
        """The column and its unit; the points are as licensed as the dataset."""
        return {
            "name": f"column/{self.columns[0]}",
            "revision": self.units,
            "licence": "that of the dataset",
        }

    def point_columns(
        self, columns: Mapping[str, NDArray[np.generic]], image_hw: tuple[int, int]
    ) -> GripperPoints:
        """The column of one episode -> points of its T frames, confidence 1 where found."""
        recorded = columns[self.columns[0]].astype(np.float64)
        if recorded.ndim == 2 and recorded.shape[1] == 2:
            recorded = recorded[:, None]
        if recorded.ndim != 3 or recorded.shape[1:] != (self.num_arms, 2):
            raise UserError(
                f"column {self.columns[0]!r} has the shape [T, {', '.join(map(str, recorded.shape[1:]))}]; "
                f"points of {self.num_arms} arm(s) are [T, {self.num_arms}, 2]"
                f"{' or [T, 2]' if self.num_arms == 1 else ''}."
            )
        return points_from_unit(recorded / _full_scale(self.units, image_hw))


def points_from_unit(xy_TA2: NDArray[np.float64]) -> GripperPoints:
    """Unit coordinates [T,A,2] -> points; outside 0..1 (by more than rounding) or not finite = not found."""
    rounding = 1e-6
    inside_TA = np.all((xy_TA2 >= -rounding) & (xy_TA2 <= 1 + rounding), axis=-1)
    xy_TA2 = np.where(inside_TA[..., None], np.clip(xy_TA2, 0, 1), np.nan)
    return GripperPoints(xy_TA2.astype(np.float32), np.asarray(inside_TA, np.float32))


def _full_scale(units: Units, image_hw: tuple[int, int]) -> NDArray[np.float64]:
    """What the recorded value of the right lower corner's centre is, as (x, y)."""
    height, width = image_hw
    match units:
        case "pixels":
            return np.array([width - 1, height - 1], np.float64)
        case "unit":
            return np.array([1.0, 1.0])
        case "percent":
            return np.array([100 * (width - 1) / width, 100 * (height - 1) / height])
        case "grid":
            return np.array([255.0, 255.0])
