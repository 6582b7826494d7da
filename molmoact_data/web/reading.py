"""The picture of an example from wherever it is, with the letters of a diagram drawn where the set wants them."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from molmoact_data.errors import UserError
from molmoact_data.sources.images import as_rgb
from molmoact_data.web.examples import Picture
from molmoact_data.web.pictures import PictureFetcher, PictureRejected, check_picture

_BOX_RGB = (25, 249, 255)
"""The published colour of the boxes under the letters."""
_SIDE_MARGIN_PX = (12, 10)


def read_picture(root: Path, picture: Picture, fetcher: PictureFetcher) -> bytes:
    """Encoded picture. Raises `PictureRejected` for this picture, `UserError` for a set that is damaged."""
    if picture.url:
        return fetcher.fetch(picture.url, picture.sha256)
    if picture.parquet:
        return _cell(root / picture.parquet, picture.row, picture.column)
    content = _file(root, picture.file)
    if not picture.labels:
        return content
    check_picture(content, fetcher.config.max_pixels)
    return draw_letters(content, picture)


def _file(root: Path, name: str) -> bytes:
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise PictureRejected("link_refused", f"{name!r} lies outside the set's folder")
    try:
        return path.read_bytes()
    except OSError as error:
        raise PictureRejected("file_missing", f"{name}: {error.strerror}") from error


def _cell(path: Path, row: int, column: str) -> bytes:
    group, first = _group_of(path, row)
    value = _column_of_group(path, group, column)[row - first].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise PictureRejected("file_missing", f"row {row} of {path.name} holds no picture")
    return content


def _group_of(path: Path, row: int) -> tuple[int, int]:
    """(row group, its first row) that holds a row."""
    first = 0
    for group, count in enumerate(_group_rows(path)):
        if row < first + count:
            return group, first
        first += count
    raise UserError(f"{path} has {first} rows, row {row} was planned: the file has changed since.")


@lru_cache(maxsize=256)
def _group_rows(path: Path) -> tuple[int, ...]:
    metadata = pq.read_metadata(path)
    return tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))


@lru_cache(maxsize=2)
def _column_of_group(path: Path, group: int, column: str) -> pa.ChunkedArray:
    return pq.ParquetFile(path).read_row_group(group, columns=[column]).column(0)


def draw_letters(content: bytes, picture: Picture) -> bytes:
    """AI2D: each text of the diagram covered by (or marked beside with) its letter, as PNG.

    The published pictures use Arial, which cannot be shipped; Pillow's own font draws the letters here.
    """
    from PIL import Image, ImageDraw

    image = as_rgb(Image.open(io.BytesIO(content)))
    draw = ImageDraw.Draw(image, "RGBA" if picture.transparent else "RGB")
    for letter, (x1, y1, x2, y2) in picture.labels:
        left, right, top, bottom = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
        if top == bottom:
            continue
        fill = (*_BOX_RGB, 127) if picture.transparent else _BOX_RGB
        draw.rectangle((left, top, right, bottom), fill=fill)
        if picture.transparent:
            _beside(draw, letter, left, top, min(image.size))
        else:
            _inside(draw, letter, (left, top, right, bottom))
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


def _beside(draw: object, letter: str, left: float, top: float, short_side_px: int) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(min(max(16, short_side_px // 50), 32))
    place = (max(left - _SIDE_MARGIN_PX[0], 0), max(top - _SIDE_MARGIN_PX[1], 0))
    draw.rectangle(draw.textbbox(place, letter, font=font), fill="white")  # type: ignore[attr-defined]
    draw.text(place, letter, fill="black", font=font)  # type: ignore[attr-defined]


def _inside(draw: object, letter: str, box: tuple[float, float, float, float]) -> None:
    from PIL import ImageFont

    left, top, right, bottom = box
    size = max(min(22, int(bottom - top)), 5)
    middle = ((left + right) / 2, (top + bottom) / 2)
    font = ImageFont.load_default(size)
    draw.text(middle, letter, fill="black", font=font, anchor="mm")  # type: ignore[attr-defined]
