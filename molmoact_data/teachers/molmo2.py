"""Molmo2 as a gripper pointer (Molmo2-4B by default), a picture at a time, with tiles.

Half the size of Molmo-7B-D. Answers name pictures and things and count in thousandths (`timed_answers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from molmoact_data.teachers.molmo import MolmoPointer
from molmoact_data.teachers.published import MOLMO2_4B, MOLMO2_WEIGHTS, Published
from molmoact_data.teachers.timed_answers import points_of_picture


class Molmo2Pointer(MolmoPointer):
    """As `MolmoPointer`, with the second family's network and words."""

    family = "molmo2"
    default: ClassVar[Published] = MOLMO2_4B
    known: ClassVar[Mapping[str, Published]] = MOLMO2_WEIGHTS

    def read(self, text: str) -> list[tuple[float, float]]:
        """The points of an answer, whole or in the making, per cent of the picture."""
        return points_of_picture(text, streaming=True)
