"""What labels a frame, together."""

from __future__ import annotations

from dataclasses import dataclass

from molmoact_data.errors import unknown_name
from molmoact_data.labels.depth import DepthEstimator, DepthTokenizer
from molmoact_data.labels.pointing import ColumnPointer, GripperPointer
from molmoact_data.sources.base import SourceInfo


@dataclass(frozen=True)
class Teachers:
    """A depth estimator, a codebook for it, a gripper pointer; None = not asked for."""

    depth: DepthEstimator | None
    tokenizer: DepthTokenizer | None
    pointer: GripperPointer | ColumnPointer | None

    def describe(self) -> dict[str, dict[str, str]]:
        """Role -> the teacher's own description."""
        roles = {
            "depth": self.depth,
            "depth_tokenizer": self.tokenizer,
            "gripper_pointer": self.pointer,
        }
        return {role: teacher.describe() for role, teacher in roles.items() if teacher is not None}

    def check_source(self, info: SourceInfo) -> None:
        """Raises `UserError` where a pointer reads a column that the dataset does not have."""
        for name in self.pointer.columns if isinstance(self.pointer, ColumnPointer) else ():
            if name not in info.columns:
                raise unknown_name("column for the gripper pointer", name, info.columns)
