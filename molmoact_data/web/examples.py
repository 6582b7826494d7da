"""One picture and what its set says about it, before the picture has been read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from molmoact_data.errors import UserError
from molmoact_data.text.annotations import Annotation


@dataclass(frozen=True)
class Picture:
    """Where a picture is: exactly one of a URL, a file below the set's folder, or a cell of a Parquet file."""

    url: str = ""
    sha256: str = ""
    """Of the bytes behind `url`, where the set names it; anything else is another picture."""
    file: str = ""
    """POSIX path relative to the set's folder."""
    parquet: str = ""
    """POSIX path of a Parquet file, relative to the set's folder, whose row `row` holds the picture in `column`."""
    row: int = -1
    column: str = "image"
    labels: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()
    """AI2D: letters drawn over the text boxes (x1, y1, x2, y2 in pixels)."""
    transparent: bool = False
    """AI2D: letters beside half transparent boxes instead of in opaque ones."""


@dataclass(frozen=True)
class WebExample:
    """One row to be."""

    key: str
    """Unique in its set and split."""
    picture: Picture
    annotations: tuple[Annotation, ...]
    weight: float = 1.0
    """Factor of the loss."""
    pixel_points: bool = False
    """The points are pixels of the picture, to be made percent when its size is known."""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "key": self.key,
            "picture": {k: v for k, v in vars(self.picture).items() if v != getattr(Picture, k)},
            "annotations": [a.to_json() for a in self.annotations],
            "weight": self.weight,
            "pixel_points": self.pixel_points,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> WebExample:
        """The inverse of `to_json`."""
        picture = dict(plain["picture"])
        picture["labels"] = tuple((str(a), tuple(box)) for a, box in picture.get("labels", ()))
        return cls(
            key=plain["key"],
            picture=Picture(**picture),
            annotations=tuple(Annotation.from_json(a) for a in plain["annotations"]),
            weight=plain["weight"],
            pixel_points=plain["pixel_points"],
        )

    def in_percent(self, width_px: int, height_px: int) -> WebExample:
        """Points in percent of a picture of this size."""
        if not self.pixel_points:
            return self
        scaled = tuple(
            a
            if a.points is None
            else replace(
                a, points=tuple((100 * x / width_px, 100 * y / height_px) for x, y in a.points)
            )
            for a in self.annotations
        )
        return replace(self, annotations=scaled, pixel_points=False)


def read_json(root: Path, name: str) -> Any:
    """A JSON file of a set; what is missing or damaged is one line."""
    path = root / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run `molmoact download` for this set.") from error
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error


def field(record: Any, name: str, where: str) -> Any:
    """`record[name]`; a record of another form is one line."""
    try:
        return record[name]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{where} has no {name!r}: its layout is not the published one.") from error
