"""Questions about COCO and Visual Genome pictures: VQA v2, A-OKVQA, TallyQA."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from molmoact_data.text.annotations import Annotation
from molmoact_data.web.examples import Picture, WebExample, field, read_json

_COCO_SPLIT = {"train": "train", "validation": "val", "test": "test"}


def vqa2(root: Path, split: str) -> Iterator[WebExample]:
    """VQA v2 on COCO 2014: all questions of a picture in one example, ten references each."""
    part = _COCO_SPLIT[split]
    images = "test2015" if part == "test" else f"{part}2014"
    asked = read_json(root, f"v2_OpenEnded_mscoco_{images}_questions.json")["questions"]
    given = read_json(root, f"v2_mscoco_{images}_annotations.json")["annotations"]
    references = {t["question_id"]: tuple(str(a["answer"]) for a in t["answers"]) for t in given}
    by_image: dict[int, list[Annotation]] = defaultdict(list)
    for question in asked:
        answers = field(references, question["question_id"], "the annotations")
        by_image[question["image_id"]].append(Annotation("vqa2", question["question"], answers))
    for image_id, told in by_image.items():
        picture = Picture(file=f"{images}/COCO_{images}_{image_id:0>12}.jpg")
        yield WebExample(str(image_id), picture, tuple(told))


def a_okvqa_choices(root: Path, split: str) -> Iterator[WebExample]:
    """A-OKVQA with four choices, answered by a letter."""
    for record, picture in _a_okvqa(root, split):
        annotation = Annotation(
            "a_okvqa_mc",
            record["question"],
            options=tuple(record["choices"]),
            answer_index=int(field(record, "correct_choice_idx", record["question_id"])),
        )
        yield WebExample(record["question_id"], picture, (annotation,))


def a_okvqa_direct(root: Path, split: str) -> Iterator[WebExample]:
    """A-OKVQA answered in words; what its authors call too difficult for that is in `train` alone."""
    for record, picture in _a_okvqa(root, split):
        if split == "train" or not record["difficult_direct_answer"]:
            answers = tuple(field(record, "direct_answers", record["question_id"]))
            annotation = Annotation("a_okvqa_da", record["question"], answers)
            yield WebExample(record["question_id"], picture, (annotation,))


def _a_okvqa(root: Path, split: str) -> Iterator[tuple[dict[str, Any], Picture]]:
    part = _COCO_SPLIT[split]
    for record in read_json(root, f"aokvqa_v1p0_{part}.json"):
        yield record, Picture(file=f"{part}2017/{record['image_id']:0>12}.jpg")


def tally_qa(root: Path, split: str) -> Iterator[WebExample]:
    """TallyQA: all counting questions of a picture in one example."""
    by_image: dict[str, list[Annotation]] = defaultdict(list)
    for record in read_json(root, f"tallyqa/{split}.json"):
        image = field(record, "image", "a question of TallyQA")
        by_image[image].append(Annotation("tally_qa", record["question"], (str(record["answer"]),)))
    for image, told in by_image.items():
        yield WebExample(image, Picture(file=image), tuple(told))
