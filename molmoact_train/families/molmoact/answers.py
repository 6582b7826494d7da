"""What goes into a prediction and what comes out of it, as people see it: traces, picture files, a summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from molmoact_data.errors import UserError
from molmoact_data.files.folders import check_new_file, write_bytes
from molmoact_data.labels.depth import DepthTokenizer
from molmoact_data.pictures import overlay
from molmoact_train.families.molmoact.images import ImageLike, to_rgb
from molmoact_train.families.molmoact.predictor import Prediction, checked_trace

PREDICTION_FILE, TRACE_FILE, DEPTH_FILE = "prediction.json", "trace.png", "depth.png"


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
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read the image {path}: {error}") from error


def check_answer_folder(folder: Path | None, *, overwrite: bool) -> None:
    """Raises `UserError` where an earlier answer would be lost."""
    if folder is not None:
        for name in (PREDICTION_FILE, TRACE_FILE, DEPTH_FILE):
            check_new_file(folder / name, overwrite=overwrite)


def write_pictures(
    prediction: Prediction,
    first_image: ImageLike,
    folder: Path,
    depth_tokenizer: DepthTokenizer | None,
) -> list[Path]:
    """`prediction.json`, `trace.png` (over the first image) and, with a tokenizer, `depth.png`."""
    written = [folder / PREDICTION_FILE]
    write_bytes(written[0], (json.dumps(prediction.to_json(), indent=1) + "\n").encode())
    if prediction.traces:
        rgb = to_rgb(first_image)
        for trace, colour in zip(prediction.traces, overlay.ARM_COLOURS_RGB, strict=False):
            points = np.rint(np.array(trace)).astype(int)
            rgb = overlay.draw_path(rgb, points, colour, overlay.TRACE_THICKNESS)
        written.append(folder / TRACE_FILE)
        Image.fromarray(rgb).save(written[-1])
    codes = [span for span in prediction.depth_codes if span]
    if codes and depth_tokenizer is not None:
        depth = np.asarray(depth_tokenizer.decode(np.array(codes[:1])))[0]
        scaled = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-8)
        written.append(folder / DEPTH_FILE)
        Image.fromarray(np.rint(scaled * 255).astype(np.uint8)).save(written[-1])
    return written
