"""What labels a frame, together."""

from __future__ import annotations

from dataclasses import dataclass

from molmoact_data.depth import DepthEstimator, DepthTokenizer
from molmoact_data.pointing import ColumnPointer, GripperPointer


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
