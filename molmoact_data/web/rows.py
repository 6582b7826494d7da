"""An example and its picture -> one row in the published mixtures' form, with the annotations as recorded beside it.

`conversations` is what other programs read: every annotation rendered once, under the random numbers of its key. Our
own training renders `annotations` anew at each draw.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from molmoact_data import schema
from molmoact_data.text.annotations import dump, render
from molmoact_data.web.examples import WebExample

MANIFEST_FILE = "web_manifest.json"
"""Written last: a folder without it is not finished."""
IMAGE, CONVERSATIONS, ANNOTATION = "image", "conversations", "annotation"
ANNOTATIONS, WEIGHT, KEY, SET = "annotations", "weight", "key", "set"


def web_schema() -> pa.Schema:
    """The columns, with the features that `datasets` reads."""
    text = {"dtype": "string", "_type": "Value"}
    texts = {"feature": text, "_type": "List"}
    features: dict[str, Any] = {
        IMAGE: {"_type": "Image"},
        CONVERSATIONS: {"from": texts, "value": texts},
        ANNOTATION: text,
        ANNOTATIONS: text,
        WEIGHT: {"dtype": "float32", "_type": "Value"},
        KEY: text,
        SET: text,
    }
    turns = pa.struct([("from", pa.list_(pa.string())), ("value", pa.list_(pa.string()))])
    fields = [
        pa.field(IMAGE, schema.IMAGE_TYPE),
        pa.field(CONVERSATIONS, turns),
        pa.field(ANNOTATION, pa.string()),
        pa.field(ANNOTATIONS, pa.string()),
        pa.field(WEIGHT, pa.float32()),
        pa.field(KEY, pa.string()),
        pa.field(SET, pa.string()),
    ]
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return pa.schema(fields, metadata=metadata)


def web_row(
    name: str, example: WebExample, picture: bytes, size_px: tuple[int, int]
) -> dict[str, Any]:
    """One row; points become percent of the picture, whose size is (width, height)."""
    example = example.in_percent(*size_px)
    seed = int.from_bytes(hashlib.sha256(f"{name}/{example.key}".encode()).digest()[:8], "big")
    rng = np.random.Generator(np.random.Philox(seed))
    turns = [turn for annotation in example.annotations for turn in render(annotation, rng)]
    return {
        IMAGE: {"bytes": picture, "path": None},
        CONVERSATIONS: {"from": ["human", "gpt"] * (len(turns) // 2), "value": turns},
        ANNOTATION: None,
        ANNOTATIONS: dump(example.annotations),
        WEIGHT: example.weight,
        KEY: example.key,
        SET: name,
    }


def web_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows -> a table of `web_schema`."""
    return pa.Table.from_pylist(list(rows), schema=web_schema())
