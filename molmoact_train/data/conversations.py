"""Rows like the published mixtures: text already rendered, images per camera, an optional trace to draw.

Parquet files or a folder written by `datasets.save_to_disk`. Sources are cheap to pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from molmoact_data.errors import UserError
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.rows import ParquetRows
from molmoact_data.text.annotations import Annotation, load
from molmoact_data.web import rows
from molmoact_train.data.base import ConversationRow
from molmoact_train.data.split import SourceOptions, chosen_rows

_KNOWN_CAMERAS = ("image", "primary", "secondary", "wrist", "wrist_image")
CONVERSATIONS, ANNOTATION, IMAGES = "conversations", "annotation", "images"


class ConversationSource:
    """Rows with `conversations` and `annotation`: a folder of Parquet files, or one saved by `datasets`."""

    action_dim = None
    statistics = None

    def __init__(self, folder: Path, options: SourceOptions) -> None:
        self.folder = folder
        self.name = folder.name
        self.left_out: Mapping[str, int] = {}
        self._saved = (folder / "state.json").exists()
        self._groups = ParquetRows()
        if self._saved:
            table_schema, size = self._open_saved()
        else:
            paths = sorted(folder.rglob("*.parquet"))
            for path in paths:
                self._groups.add_file(Storage(str(folder)), path.relative_to(folder).as_posix())
            table_schema, size = pq.read_schema(paths[0]), self._groups.rows
        self.rows = chosen_rows(size, options)[: options.max_samples]
        self.cameras = _conversation_cameras(folder, table_schema)[: options.max_images]
        self._nested = IMAGES in table_schema.names
        optional = (ANNOTATION, rows.ANNOTATIONS, rows.WEIGHT)
        self._extra = [name for name in optional if name in table_schema.names]

    def _open_saved(self) -> tuple[pa.Schema, int]:
        dataset = self._load_saved()
        return dataset.data.table.schema, len(dataset)

    def _load_saved(self) -> Any:
        from datasets import load_from_disk

        return load_from_disk(str(self.folder))

    @property
    def size(self) -> int:
        """Rows of the part that is read."""
        return len(self.rows)

    def row(self, index: int) -> ConversationRow:
        """Row number `index` of that part."""
        number = int(self.rows[index])
        values = self._values(number)
        images = values[IMAGES] if self._nested else values
        where = f"{self.folder}: row {number}"
        return ConversationRow(
            where=where,
            images=tuple(_encoded(images[camera], where, camera) for camera in self.cameras),
            turns=_turns(values[CONVERSATIONS], where),
            trace=_annotation(values.get(ANNOTATION), where),
            annotations=_annotations(values.get(rows.ANNOTATIONS), where),
            weight=float(values.get(rows.WEIGHT, 1.0)),
        )

    def _values(self, number: int) -> dict[str, Any]:
        if self._saved:
            if not hasattr(self, "_table"):
                self._table = self._load_saved().with_format("arrow")
            return self._table[number].to_pylist()[0]
        columns = [IMAGES] if self._nested else list(self.cameras)
        return self._groups.read(number, [*columns, CONVERSATIONS, *self._extra])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_table"}


def _conversation_cameras(folder: Path, table_schema: pa.Schema) -> tuple[str, ...]:
    """Image columns in the published order: the external view first, then the wrist."""
    nested = IMAGES in table_schema.names
    names = (
        [f.name for f in table_schema.field(IMAGES).type] if nested else list(table_schema.names)
    )
    found = tuple(name for name in _KNOWN_CAMERAS if name in names)
    if not found or CONVERSATIONS not in table_schema.names:
        raise UserError(
            f"{folder} is neither an output of `molmoact preprocess` nor rows of a published mixture "
            f"(`{CONVERSATIONS}` and one of {', '.join(_KNOWN_CAMERAS)}); it has: "
            f"{', '.join(table_schema.names)}."
        )
    return found


def _encoded(value: Any, where: str, camera: str) -> bytes:
    encoded = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(encoded, bytes):
        raise UserError(f"{where}: camera {camera!r} holds no encoded image.")
    return encoded


def _turns(conversations: Any, where: str) -> tuple[tuple[str, str], ...]:
    """Question and answer pairs from the two lists `from` and `value` (or a list of such structs)."""
    if isinstance(conversations, list):
        texts = [str(turn["value"]) for turn in conversations]
    else:
        texts = [str(text) for text in conversations["value"]]
    if not texts or len(texts) % 2:
        raise UserError(f"{where}: {len(texts)} turns are not question and answer pairs.")
    return tuple(zip(texts[::2], texts[1::2], strict=True))


def _annotations(value: Any, where: str) -> tuple[Annotation, ...]:
    """What a general set recorded, from its JSON text."""
    if value is None:
        return ()
    try:
        return load(value)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{where}: its annotations cannot be read ({error}).") from error


def _annotation(value: Any, where: str) -> list[list[int]] | None:
    if value is None:
        return None
    try:
        points = json.loads(value) if isinstance(value, str) else value
        return [[int(x), int(y)] for x, y in points]
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: annotation {value!r} is not a list of [x, y] points.") from error
