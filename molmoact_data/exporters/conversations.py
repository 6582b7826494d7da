"""`--format conversations`: Parquet rows like the published mixtures, text rendered in the released wording.

Columns: images, `conversations` {from, value} and `annotation`. Half of the frames of an episode become
reasoning rows, the other half trajectory rows whose trace is to be drawn on the first image.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.exporters.labels_as_text import (
    NO_TRACE,
    has_usable_trace,
    require_text_labels,
    two_views,
)
from molmoact_data.outputs.output import Output
from molmoact_data.text.prompts import SampleKind, answer, format_trace, question

CONVERSATIONS, ANNOTATION = "conversations", "annotation"
KINDS: tuple[SampleKind, SampleKind] = ("reasoning", "trajectory")
ROWS_PER_FILE = 20_000


def export_conversations(
    output: Output, folder: Path, *, single_action: bool
) -> tuple[int, Mapping[str, int]]:
    """Write `data/*.parquet`; returns rows written, and rows left out by reason."""
    require_text_labels(output)
    if output.layout.num_arms != 1:
        raise UserError("the published rows hold one trace; this output has several arms.")
    views = two_views(output.layout.cameras, "image", "wrist")
    files = _Files(folder / schema.DATA_DIR, conversation_schema(list(views.values())))
    left_out: Counter[str] = Counter()
    for batch in output.batches():
        rows = batch.to_pylist()
        good = [
            conversation_row(row, views, single_action=single_action)
            for row in rows
            if has_usable_trace(row)
        ]
        left_out[NO_TRACE] += len(rows) - len(good)
        files.write(good)
    files.close()
    return files.rows, {reason: n for reason, n in left_out.items() if n}


def conversation_schema(cameras: list[str]) -> pa.Schema:
    """Columns and their `datasets` features."""
    text = {"dtype": "string", "_type": "Value"}
    texts = {"feature": text, "_type": "Sequence"}  # also for readers before datasets 4.0
    features: dict[str, Any] = {name: {"_type": "Image"} for name in cameras}
    features |= {CONVERSATIONS: {"from": texts, "value": texts}, ANNOTATION: text}
    turns = pa.struct([("from", pa.list_(pa.string())), ("value", pa.list_(pa.string()))])
    fields = [pa.field(name, schema.IMAGE_TYPE) for name in cameras]
    fields += [pa.field(CONVERSATIONS, turns), pa.field(ANNOTATION, pa.string())]
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return pa.schema(fields, metadata=metadata)


def conversation_row(
    row: Mapping[str, Any], views: Mapping[str, str], *, single_action: bool
) -> dict[str, Any]:
    """One published-style row; even frames reason, odd ones follow the drawn trace."""
    kind = KINDS[row[schema.FRAME_INDEX] % 2]
    bins_HD = row[schema.ACTION_BINS]
    asked = question(row[schema.INSTRUCTION], kind, len(views))
    told = answer(
        kind,
        depth_codes=row[schema.DEPTH_CODES],
        trace=row[schema.TRACE],
        action_bins=bins_HD[0] if single_action else bins_HD,
        num_images=len(views),
    )
    return {
        **{column: row[schema.image_column(role)] for role, column in views.items()},
        CONVERSATIONS: {"from": ["human", "gpt"], "value": [asked, told]},
        ANNOTATION: format_trace(row[schema.TRACE][0]) if kind == "trajectory" else None,
    }


class _Files:
    """Numbered Parquet files of at most `ROWS_PER_FILE` rows."""

    def __init__(self, folder: Path, arrow_schema: pa.Schema) -> None:
        folder.mkdir(parents=True)
        self.rows = 0
        self._folder = folder
        self._schema = arrow_schema
        self._number = 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, rows: list[dict[str, Any]]) -> None:
        if self._writer is None or self.rows >= self._number * ROWS_PER_FILE:
            self.close()
            path = self._folder / f"train-{self._number:05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
            self._number += 1
        self._writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))
        self.rows += len(rows)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
