"""`--format reference`: what allenai/molmoact's fine-tuning loads with `datasets.load_from_disk`.

Columns `image`, `wrist_image`, `language_instruction`, `depth`, `trace`, `processed_action`, and
`dataset_statistics.json` beside them. Traces are on the 0..255 grid that the reference's trainer draws
on (its own preprocessing stores pixels, which agrees for 256x256 frames only). Rows without a usable
trace are left out: the reference would train on an empty list.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from molmoact_data import schema
from molmoact_data.config import content_hash
from molmoact_data.errors import UserError
from molmoact_data.exporters.labels_as_text import (
    NO_TRACE,
    has_usable_trace,
    require_text_labels,
    two_views,
)
from molmoact_data.labels.actions import normalize
from molmoact_data.outputs.output import Output
from molmoact_data.text import tokens
from molmoact_data.text.prompts import format_actions

INSTRUCTION, DEPTH, TRACE, ACTION = "language_instruction", "depth", "trace", "processed_action"
IMAGE, WRIST_IMAGE = "image", "wrist_image"
ROWS_PER_FILE = 20_000


def export_reference(output: Output, folder: Path) -> tuple[int, Mapping[str, int]]:
    """Write the folder; returns rows written, and rows left out by reason."""
    require_text_labels(output)
    if output.layout.num_arms != 1:
        raise UserError(
            f"{output.storage.root} has {output.layout.num_arms} arms; the reference's rows hold one trace."
        )
    views = two_views(output.layout.cameras, IMAGE, WRIST_IMAGE)
    writer = SavedDataset(folder, reference_schema(list(views.values())))
    left_out: Counter[str] = Counter()
    for batch in output.batches():
        rows = batch.to_pylist()
        good = [reference_row(output, row, views) for row in rows if has_usable_trace(row)]
        left_out[NO_TRACE] += len(rows) - len(good)
        writer.write(good)
    writer.close()
    assert output.statistics is not None
    content = json.dumps(output.statistics.to_json(), indent=2)
    (folder / schema.STATISTICS_FILE).write_text(content)
    return writer.rows, {reason: n for reason, n in left_out.items() if n}


def reference_schema(cameras: list[str]) -> pa.Schema:
    """Columns and their `datasets` features."""
    texts = (INSTRUCTION, DEPTH, TRACE, ACTION)
    features: dict[str, Any] = {name: {"_type": "Image"} for name in cameras}
    features |= {name: {"dtype": "string", "_type": "Value"} for name in texts}
    fields = [pa.field(name, schema.IMAGE_TYPE) for name in cameras]
    fields += [pa.field(name, pa.string()) for name in texts]
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return pa.schema(fields, metadata=metadata)


def reference_row(
    output: Output, row: Mapping[str, Any], views: Mapping[str, str]
) -> dict[str, Any]:
    """One row in the reference's spelling: strings of lists, and JSON with strings in it."""
    assert output.statistics is not None
    action_TD = np.asarray([row[schema.ACTION]], dtype=np.float32)
    bins_HD = row[schema.ACTION_BINS]
    processed = {
        "normalized_action": normalize(action_TD, output.statistics)[0].astype(float).tolist(),
        "tokenized_action": format_actions(bins_HD[0]),
        "chunked_action": format_actions(bins_HD),
    }
    return {
        **{column: row[schema.image_column(role)] for role, column in views.items()},
        INSTRUCTION: row[schema.INSTRUCTION],
        DEPTH: tokens.encode_depth(row[schema.DEPTH_CODES]),
        TRACE: str([list(point) for point in row[schema.TRACE][0]]),
        ACTION: json.dumps(processed),
    }


class SavedDataset:
    """A folder as `datasets.Dataset.save_to_disk` writes it, row by row in bounded memory."""

    def __init__(self, folder: Path, arrow_schema: pa.Schema) -> None:
        self.rows = 0
        self._folder = folder
        self._schema = arrow_schema
        self._files: list[Path] = []
        self._writer: pa.ipc.RecordBatchStreamWriter | None = None

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows; a new file begins every `ROWS_PER_FILE`."""
        if self._writer is None or self.rows >= len(self._files) * ROWS_PER_FILE:
            self._next_file()
        assert self._writer is not None
        self._writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))
        self.rows += len(rows)

    def close(self) -> None:
        """Name the files for their number, then write what says that the folder is complete."""
        if self._writer is None:
            self._next_file()
        assert self._writer is not None
        self._writer.close()
        names = [f"data-{i:05d}-of-{len(self._files):05d}.arrow" for i in range(len(self._files))]
        for path, name in zip(self._files, names, strict=True):
            path.rename(self._folder / name)
        self._write_metadata(names)

    def _next_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
        path = self._folder / f"part-{len(self._files):05d}.arrow"
        self._files.append(path)
        self._writer = pa.ipc.new_stream(str(path), self._schema)

    def _write_metadata(self, names: list[str]) -> None:
        info = json.loads(self._schema.metadata[b"huggingface"])["info"]
        described = {"citation": "", "description": "", "homepage": "", "license": "", **info}
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": content_hash([names, self.rows])[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self._folder / "dataset_info.json").write_text(json.dumps(described, indent=2))
        (self._folder / "state.json").write_text(json.dumps(state, indent=2))
