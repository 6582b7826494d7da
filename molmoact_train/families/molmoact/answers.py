"""What goes into a prediction and what comes out of it, as people see it: traces, picture files, a summary."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from molmoact_data.errors import UserError
from molmoact_data.files.folders import check_new_file, together
from molmoact_data.labels.depth import DepthTokenizer
from molmoact_data.labels.traces import GRID_MAX
from molmoact_data.pictures.film import codes_picture
from molmoact_data.sources.images import NotEightBitError
from molmoact_train.evaluation.picture import ANSWER_FILE, PICTURE_FILE, Shown, draw, marked
from molmoact_train.families.molmoact.pictures import ImageLike, to_rgb

Trace = Sequence[Sequence[int]]
TRACE_FILE, DEPTH_FILE = "trace.png", "depth.png"


@dataclass(frozen=True)
class Prediction:
    """One answer in numbers."""

    text: str
    unnorm_key: str
    depth_codes: list[list[int]]
    """Per depth span; empty when steered by a trace."""
    traces: list[list[list[float]]]
    """Per arm, [x, y] on 0..255."""
    action_bins: list[list[int]]
    """[H][D], 1..256."""
    actions: list[list[float]]
    """[H][D] in the robot's units."""
    problems: list[str]
    """What was wrong with the text; always empty when constrained."""
    seconds: dict[str, float]
    """Wall time by stage: prepare, prefill, depth, trace, action, ..."""
    forward_passes: int
    num_tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def checked_trace(trace: Trace) -> list[list[int]]:
    """A trace fit for drawing: at least two [x, y] points on 0..255."""
    points = [list(point) for point in trace]
    if len(points) < 2 or any(
        len(p) != 2 or not all(isinstance(value, int) and 0 <= value <= GRID_MAX for value in p)
        for p in points
    ):
        raise UserError(
            f"a trace is at least two [x, y] points, x right and y down, 0..{GRID_MAX} over the first image; "
            f"got {points}"
        )
    return points


def parse_trace_flag(text: str) -> list[list[int]]:
    """`"[[x,y],...]"` -> points, checked."""
    try:
        points = json.loads(text)
    except ValueError as error:
        raise UserError(f"--trace wants [[x,y],...], got {text!r}: {error}.") from error
    if not isinstance(points, list) or not all(isinstance(p, list) for p in points):
        raise UserError(f"--trace wants [[x,y],...], got {text!r}.")
    return checked_trace(points)


def summary(found: Prediction) -> str:
    """A prediction for a person."""
    stages = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in found.seconds.items())
    lines = [f"depth codes: {' '.join(map(str, codes))}" for codes in found.depth_codes]
    lines += [f"trace: {trace}" for trace in found.traces]
    lines += [
        f"action {step}: {' '.join(f'{value:.4f}' for value in row)}"
        for step, row in enumerate(found.actions)
    ]
    lines += [f"problem: {problem}" for problem in found.problems]
    lines.append(f"{found.num_tokens} tokens in {found.forward_passes} passes; {stages}")
    return "\n".join(lines)


def read_images(paths: Sequence[Path]) -> list[Image.Image]:
    """The pictures, upright, RGB."""
    return [_read_image(path) for path in paths]


def _read_image(path: Path) -> Image.Image:
    try:
        return Image.fromarray(to_rgb(Image.open(path)))
    except (NotEightBitError, OSError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read the image {path}: {error}") from error


def check_answer_folder(folder: Path | None, *, overwrite: bool) -> None:
    """Raises `UserError` where an earlier answer would be lost."""
    if folder is not None:
        for name in (ANSWER_FILE, TRACE_FILE, DEPTH_FILE, PICTURE_FILE):
            check_new_file(folder / name, overwrite=overwrite)


def _png(picture: NDArray[np.uint8]) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "PNG")
    return encoded.getvalue()


def write_pictures(
    prediction: Prediction,
    first_image: ImageLike,
    instruction: str,
    folder: Path,
    depth_tokenizer: DepthTokenizer | None,
) -> list[Path]:
    """`prediction.json`, `trace.png` (on the first image), with a tokenizer `depth.png`; `prediction.png` has all.

    They appear together or, where the disk refuses one, not at all.
    """
    codes = next((span for span in prediction.depth_codes if span), [])
    answer = json.dumps(prediction.to_json(), indent=1) + "\n"
    files = {folder / ANSWER_FILE: answer.encode()}
    shown = Shown(
        rgb_HWC=to_rgb(first_image),
        instruction=instruction,
        actions_HD=np.array(prediction.actions, dtype=np.float32),
        traces=prediction.traces,
        depth_codes=codes,
    )
    if prediction.traces:
        files[folder / TRACE_FILE] = _png(marked(shown))
    if codes and depth_tokenizer is not None:
        files[folder / DEPTH_FILE] = _png(codes_picture(codes, depth_tokenizer))
    with together(files):
        if prediction.actions:
            draw(shown, folder / PICTURE_FILE, depth_tokenizer)
    return [*files, *([folder / PICTURE_FILE] if prediction.actions else [])]
