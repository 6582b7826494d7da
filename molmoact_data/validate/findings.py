"""What validation can find, by name, and the report it is counted in."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


class Finding(enum.StrEnum):
    """One kind of defect. The value is what reports and tests spell."""

    MANIFEST_UNREADABLE = "manifest_unreadable"
    MANIFEST_COUNTS_DIFFER = "manifest_counts_differ"
    SCHEMA_VERSION_DIFFERS = "schema_version_differs"
    CONFIG_HASH_DIFFERS = "config_hash_differs"
    STATISTICS_MISSING = "statistics_missing"
    STATISTICS_UNREADABLE = "statistics_unreadable"
    STATISTICS_HASH_DIFFERS = "statistics_hash_differs"
    REJECTS_DIFFER = "rejects_differ"
    TEMPORARY_FILE_LEFT = "temporary_file_left"
    SHARD_MISSING = "shard_missing"
    SHARD_UNLISTED = "shard_unlisted"
    SHARD_HASH_DIFFERS = "shard_hash_differs"
    SHARD_UNREADABLE = "shard_unreadable"
    SHARD_METADATA_DIFFERS = "shard_metadata_differs"
    SCHEMA_DIFFERS = "schema_differs"
    ROW_COUNT_DIFFERS = "row_count_differs"
    EPISODES_DIFFER = "episodes_differ"
    KEY_REPEATS = "key_repeats"
    FRAME_MISSING = "frame_missing"
    DATASET_DIFFERS = "dataset_differs"
    VALUE_MISSING = "value_missing"
    TIMESTAMP_NOT_INCREASING = "timestamp_not_increasing"
    INSTRUCTION_EMPTY = "instruction_empty"
    IMAGE_MISSING = "image_missing"
    IMAGE_UNDECODABLE = "image_undecodable"
    IMAGE_SIZE_CHANGES = "image_size_changes"
    DEPTH_CODE_OUT_OF_RANGE = "depth_code_out_of_range"
    DEPTH_RANGE_INVALID = "depth_range_invalid"
    DEPTH_BUFFER_DIFFERS = "depth_buffer_differs"
    POINT_INVALID = "point_invalid"
    CONFIDENCE_INVALID = "confidence_invalid"
    TRACE_TOO_LONG = "trace_too_long"
    TRACE_OUT_OF_GRID = "trace_out_of_grid"
    TRACE_NOT_FROM_NOW = "trace_not_from_now"
    TRACE_QUALITY_INVALID = "trace_quality_invalid"
    TRACE_REASON_INCONSISTENT = "trace_reason_inconsistent"
    ARMS_DIFFER = "arms_differ"
    ACTION_NON_FINITE = "action_non_finite"
    STATE_NON_FINITE = "state_non_finite"
    ACTION_BIN_OUT_OF_RANGE = "action_bin_out_of_range"
    ACTION_BINS_DISAGREE = "action_bins_disagree"
    NUM_VALID_ACTIONS_WRONG = "num_valid_actions_wrong"
    SAMPLE_UNREADABLE = "sample_unreadable"
    LOSS_MASK_EMPTY = "loss_mask_empty"


@dataclass(frozen=True)
class Problem:
    """One defect at one place."""

    finding: Finding
    where: str
    """File, or file with episode and frame."""
    detail: str


@dataclass
class Report:
    """All problems of one output, and how much was looked at."""

    output: str
    rows: int = 0
    images: int = 0
    samples: int = 0
    """Training samples put through the real processor; 0 = that check was not asked for."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True where nothing was found."""
        return not self.problems

    def extend(self, problems: Iterable[Problem]) -> None:
        """Add what a check found."""
        self.problems.extend(problems)

    def to_json(self) -> dict[str, Any]:
        """Plain data; at most 100 problems are listed, all are counted."""
        counts = Counter(problem.finding.value for problem in self.problems)
        return {
            "output": self.output,
            "passed": self.passed,
            "rows": self.rows,
            "images": self.images,
            "samples": self.samples,
            "findings": dict(sorted(counts.items())),
            "problems": [
                {"finding": p.finding.value, "where": p.where, "detail": p.detail}
                for p in self.problems[:100]
            ],
        }
