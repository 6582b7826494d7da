"""What a report tells about the rows of a general set: counts that add up over shards."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from molmoact_data.text.annotations import load
from molmoact_data.web.rows import ANNOTATIONS, CONVERSATIONS, IMAGE


@dataclass(frozen=True)
class WebMeasures:
    """Counts over rows. The keys are text, because they travel as JSON."""

    styles: Counter[str] = field(default_factory=Counter)
    """Annotations by style."""
    formats: Counter[str] = field(default_factory=Counter)
    """Pictures by file format."""
    sides_px: Counter[str] = field(default_factory=Counter)
    """Pictures by the longer side, as the power of two at or above it."""
    answer_characters: Counter[str] = field(default_factory=Counter)
    """Answers by their length, as the power of two at or above it."""

    def to_json(self) -> dict[str, dict[str, int]]:
        """Plain data, in the order of the names."""
        return {name: dict(sorted(counts.items())) for name, counts in vars(self).items()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Mapping[str, int]]) -> WebMeasures:
        """The inverse of `to_json`."""
        return cls(**{name: Counter(counts) for name, counts in plain.items()})


def measure(rows: Iterable[Mapping[str, Any]]) -> WebMeasures:
    """Count rows of `web_row`; pictures are opened, not decoded."""
    from PIL import Image

    found = WebMeasures()
    for row in rows:
        with Image.open(io.BytesIO(row[IMAGE]["bytes"])) as picture:
            found.formats[str(picture.format)] += 1
            found.sides_px[str(power_of_two(max(picture.size)))] += 1
        found.styles.update(annotation.style for annotation in load(row[ANNOTATIONS]))
        answers: Sequence[str] = row[CONVERSATIONS]["value"][1::2]
        found.answer_characters.update(str(power_of_two(len(text))) for text in answers)
    return found


def merged(parts: Iterable[WebMeasures]) -> WebMeasures:
    """The counts of several shards together."""
    total = WebMeasures()
    for part in parts:
        for name, counts in vars(part).items():
            getattr(total, name).update(counts)
    return total


def power_of_two(value: int) -> int:
    """The smallest power of two that is not below `value`; 1 for 0."""
    return 1 << max(0, value - 1).bit_length()
