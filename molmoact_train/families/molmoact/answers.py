"""What goes into a prediction and what comes out of it, as people see it: traces, picture files, a summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from molmoact_data.errors import UserError
from molmoact_data.labels.depth import DepthTokenizer
from molmoact_data.pictures import overlay
from molmoact_train.families.molmoact.images import ImageLike, to_rgb
from molmoact_train.families.molmoact.predictor import Prediction, checked_trace


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


def write_pictures(
    prediction: Prediction,
    first_image: ImageLike,
    folder: Path,
    depth_tokenizer: DepthTokenizer | None,
) -> list[Path]:
    """`prediction.json`, `trace.png` (over the first image) and, with a tokenizer, `depth.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "prediction.json"]
    written[0].write_text(json.dumps(prediction.to_json(), indent=1) + "\n", encoding="utf-8")
    if prediction.traces:
        rgb = to_rgb(first_image)
        for trace, colour in zip(prediction.traces, overlay.ARM_COLOURS_RGB, strict=False):
            points = np.rint(np.array(trace)).astype(int)
            rgb = overlay.draw_path(rgb, points, colour, overlay.TRACE_THICKNESS)
        Image.fromarray(rgb).save(folder / "trace.png")
        written.append(folder / "trace.png")
    codes = [span for span in prediction.depth_codes if span]
    if codes and depth_tokenizer is not None:
        depth = np.asarray(depth_tokenizer.decode(np.array(codes[:1])))[0]
        scaled = (depth - depth.min()) / max(float(np.ptp(depth)), 1e-8)
        Image.fromarray(np.rint(scaled * 255).astype(np.uint8)).save(folder / "depth.png")
        written.append(folder / "depth.png")
    return written
