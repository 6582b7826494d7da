"""The two sets behind a person's registration: InfographicVQA and Scene-Text VQA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from molmoact_data.text.annotations import Annotation
from molmoact_data.web.examples import Picture, WebExample, field, read_json

_HELD_OUT = 1024
_HELD_OUT_SEED = 63069


def info_qa(root: Path, split: str) -> Iterator[WebExample]:
    """InfographicVQA."""
    suffix = "train_v1.0" if split == "train" else "val_v1.0_withQT"
    for record in read_json(root, f"infographicsVQA_{suffix}.json")["data"]:
        key = str(field(record, "questionId", "a question of InfographicVQA"))
        annotation = Annotation("info_qa", record["question"], tuple(record["answers"]))
        picture = Picture(file=f"images/{record['image_local_name']}")
        yield WebExample(key, picture, (annotation,))


def st_qa(root: Path, split: str) -> Iterator[WebExample]:
    """Scene-Text VQA, task 3; 1,024 questions of its training part are the validation split, as published."""
    records = read_json(root, "train_task_3.json")["data"]
    records = sorted(records, key=lambda r: field(r, "question_id", "a question of Scene-Text VQA"))
    np.random.RandomState(_HELD_OUT_SEED).shuffle(records)
    chosen = records[_HELD_OUT:] if split == "train" else records[:_HELD_OUT]
    for record in chosen:
        annotation = Annotation("st_qa", record["question"], tuple(record["answers"]))
        picture = Picture(file=record["file_path"])
        yield WebExample(str(record["question_id"]), picture, (annotation,))
