"""AI2D: questions about diagrams; where the choices are letters, the letters are drawn over the diagram's texts.

Questions with letters come twice, once with opaque boxes and once with half transparent ones, as published.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from molmoact_data.errors import UserError
from molmoact_data.text.annotations import Annotation
from molmoact_data.web.examples import Picture, WebExample, field, read_json

_HELD_OUT_IMAGES = 384
_HELD_OUT_SEED = 5961
_NO_OPTION = "{}"


def ai2d(root: Path, split: str) -> Iterator[WebExample]:
    """AI2D's own test pictures are in neither split; 384 of the others are `validation`."""
    test_ids = _test_ids(root)
    by_image: dict[int, list[WebExample]] = defaultdict(list)
    for path in sorted((root / "ai2d" / "questions").glob("*.json")):
        asked = read_json(root, path.relative_to(root).as_posix())
        image_id = int(str(field(asked, "imageName", path.name)).partition(".")[0])
        if image_id not in test_ids:
            by_image[image_id] += _of_image(root, asked)
    keys = sorted(by_image)
    np.random.RandomState(_HELD_OUT_SEED).shuffle(keys)
    chosen = keys[_HELD_OUT_IMAGES:] if split == "train" else keys[:_HELD_OUT_IMAGES]
    for key in chosen:
        yield from by_image[key]


def _test_ids(root: Path) -> set[int]:
    path = root / "ai2d_test_ids.csv"
    try:
        return {int(line) for line in path.read_text().split()}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a list of picture numbers: {error}") from error


def _of_image(root: Path, asked: Mapping[str, Any]) -> Iterator[WebExample]:
    name = asked["imageName"]
    questions = asked["questions"]
    lettered = any(q["abcLabel"] for q in questions.values())
    boxes = _boxes(read_json(root, f"ai2d/annotations/{name}.json")) if lettered else ()
    for text, question in questions.items():
        picture = Picture(file=f"ai2d/images/{name}")
        annotation = _annotation(text, question, {letter for letter, _ in boxes})
        key = question["questionId"]
        if not question["abcLabel"]:
            yield WebExample(key, picture, (annotation,))
            continue
        drawn = replace(picture, labels=boxes)
        yield WebExample(key, drawn, (annotation,))
        yield WebExample(f"{key}_transparent", replace(drawn, transparent=True), (annotation,))


def _boxes(told: Mapping[str, Any]) -> tuple[tuple[str, tuple[float, float, float, float]], ...]:
    found = []
    for box in told["text"].values():
        (x1, y1), (x2, y2) = box["rectangle"]
        found.append((str(box["replacementText"]), (float(x1), float(y1), float(x2), float(y2))))
    return tuple(found)


def _annotation(text: str, question: Mapping[str, Any], letters: set[str]) -> Annotation:
    answer = question["answerTexts"][question["correctAnswer"]]
    options = [o for o in dict.fromkeys(question["answerTexts"]) if o != _NO_OPTION]
    are_letters = [option.upper() in letters for option in options]
    index = options.index(answer)
    if question["abcLabel"] and sum(are_letters) >= len(options) - 1:
        named = tuple(o.upper() if abc else o for o, abc in zip(options, are_letters, strict=True))
        return Annotation(
            "ai2_diagram_no_letter", text, options=named, answer_index=index, lettered=False
        )
    return Annotation("ai2_diagram", text, options=tuple(options), answer_index=index)
