"""What the two text formats share: which rows can be text at all, and their images by role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.labels.traces import is_usable
from molmoact_data.outputs.output import Output
from molmoact_data.text.prompts import check_speakable

NO_TRACE = "no_usable_trace"


def require_text_labels(output: Output) -> None:
    """Raise `UserError` where the output lacks a part that the text needs, or has bins without a token."""
    layout = output.layout
    missing = [
        words
        for words, value in {
            "depth codes (--depth)": layout.depth_codes,
            "traces (--pointer)": layout.num_arms,
            "actions (--process-actions)": layout.action_dim,
        }.items()
        if value is None
    ]
    if missing:
        raise UserError(
            f"{output.storage.root} was made without {', '.join(missing)}, which this format needs. "
            "Run `molmoact preprocess` with them."
        )
    check_speakable(
        output.storage.root,
        depth_codes=layout.depth_codes,
        codebook_size=layout.codebook_size,
        num_bins=output.num_bins,
    )


def has_usable_trace(row: Mapping[str, Any]) -> bool:
    """Whether there is something true to say about the frame's trace, see `labels.traces.is_usable`."""
    return is_usable(row[schema.TRACE], row[schema.TRACE_REJECT_REASON])


def two_views(cameras: Sequence[str], first: str, second: str) -> dict[str, str]:
    """Role -> published column: the labelled camera, then the wrist (or else the next) one."""
    others = list(cameras[1:])
    wrist = next((role for role in others if "wrist" in role), others[0] if others else None)
    return {cameras[0]: first} | ({wrist: second} if wrist else {})
