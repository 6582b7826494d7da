"""Example answers of a run: what the model said about a few held-out frames at the last evaluation, for `run.html`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from molmoact_data.files.folders import write_bytes
from molmoact_data.files.typed import read_typed
from molmoact_data.pages.page import Figure
from molmoact_data.report.pictures import jpeg_address, shrink
from molmoact_train.families.measures import AnswerErrors

ANSWERS_FILE = "answers.json"
NEAR = 25.0
"""Grid units of 0..255, a tenth of the frame: a path that is nearer to the recorded one is green."""


@dataclass(frozen=True)
class Answers:
    """The file."""

    figures: tuple[Figure, ...]


def write_answers(run: Path, answers: Sequence[AnswerErrors]) -> None:
    """The pictures of the answers that have one, in the place of those of the evaluation before."""
    found = Answers(tuple(_figure(answer) for answer in answers if answer.seen is not None))
    write_bytes(run / ANSWERS_FILE, (json.dumps(asdict(found), indent=1) + "\n").encode())


def read_answers(run: Path) -> Sequence[Figure]:
    """What `write_answers` left; nothing where no answer was asked for."""
    path = run / ANSWERS_FILE
    return read_typed(Answers, path).figures if path.is_file() else ()


def _figure(answer: AnswerErrors) -> Figure:
    assert answer.seen is not None
    rgb = shrink(answer.seen.rgb_HWC)
    verdict, pill = _verdict(answer)
    return Figure(
        name=answer.seen.where,
        address=jpeg_address(rgb),
        pill=pill,
        verdict=verdict,
        caption=f"{answer.seen.instruction}{_off(answer)}",
        width=rgb.shape[1],
        height=rgb.shape[0],
    )


def _verdict(answer: AnswerErrors) -> tuple[Literal["good", "warn", "bad"], str]:
    if answer.failed is not None:
        return "bad", answer.failed.replace("_", " ")
    if answer.trace_distance is None:
        return "good", "an action"
    far = answer.trace_distance >= NEAR
    return "warn" if far else "good", f"path {answer.trace_distance:.0f} of 255 off"


def _off(answer: AnswerErrors) -> str:
    """The other errors in words."""
    words = []
    if answer.code_accuracy is not None:
        words.append(f"{answer.code_accuracy:.0%} of the depth codes right")
    if answer.action_error_D is not None:
        words.append(f"actions off by {answer.action_error_D.mean():.2g} in the robot's units")
    return f": {', '.join(words)}" if words else ""
