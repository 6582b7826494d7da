"""Questions about drawn charts: DVQA, FigureQA, PlotQA; all questions of a picture in one example."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from molmoact_data.text.annotations import Annotation
from molmoact_data.web.examples import Picture, WebExample, field, read_json


def dv_qa(root: Path, split: str) -> Iterator[WebExample]:
    """DVQA: `{split}_qa.json` and `images/`; `validation` is the easy half."""
    part = {"validation": "val_easy"}.get(split, split)
    records = read_json(root, f"{part}_qa.json")
    for image, told in _by_image(records, "image", "question", "dv_qa").items():
        yield WebExample(str(image), Picture(file=f"images/{image}"), told)


def figure_qa(root: Path, split: str) -> Iterator[WebExample]:
    """FigureQA: answers 0 and 1, as published."""
    part = {"train": "train1", "validation": "validation1"}.get(split, f"no_annot_{split}")
    records = read_json(root, f"{part}/qa_pairs.json")["qa_pairs"]
    for image, told in _by_image(records, "image_index", "question_string", "figure_qa").items():
        yield WebExample(str(image), Picture(file=f"{part}/png/{image}.png"), told)


def plot_qa(root: Path, split: str) -> Iterator[WebExample]:
    """PlotQA V2: pictures of each split in a folder of its own."""
    records = read_json(root, f"{split}/qa_pairs_V2.json")["qa_pairs"]
    for image, told in _by_image(records, "image_index", "question_string", "plot_qa").items():
        yield WebExample(str(image), Picture(file=f"{split}/png/{image}.png"), told)


def _by_image(
    records: Iterable[Mapping[str, Any]], image: str, question: str, style: str
) -> dict[Any, tuple[Annotation, ...]]:
    grouped: dict[Any, list[Annotation]] = defaultdict(list)
    for record in records:
        answer = str(field(record, "answer", f"a question of {style}"))
        asked = str(field(record, question, f"a question of {style}"))
        grouped[field(record, image, f"a question of {style}")].append(
            Annotation(style, asked, (answer,))
        )
    return {key: tuple(annotations) for key, annotations in grouped.items()}
