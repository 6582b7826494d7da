"""An episode as pictures: what the robot saw, what the model thought, what it did.

Pictures are RGB uint8 [H, W, 3]. The predicted trace is cyan, the path really taken so far amber.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molmoact_data.labels.depth import DepthTokenizer
from molmoact_data.pictures.actions import STRIP_HEIGHT, action_strip
from molmoact_data.pictures.film import (
    CODES_NAME,
    caption_of,
    codes_picture,
    side_by_side,
    write_video,
)
from molmoact_data.pictures.overlay import TAKEN_RGB, draw_dot, draw_path, draw_trace
from molmoact_robot.rollout import Decision, Episode

Rgb = NDArray[np.uint8]
DepthPicture = Callable[[NDArray[np.int64]], Rgb]
"""Depth codes [100] -> a picture."""

THICKNESS = 2
ENDED_IN_WORDS = {
    "success": "success",
    "timeout": "out of time",
    "malformed_answer": "no answer",
    "environment_error": "environment broke",
}


def depth_painter(tokenizer: DepthTokenizer) -> DepthPicture:
    """How codes become a picture."""

    def paint(codes: NDArray[np.int64]) -> Rgb:
        return codes_picture(codes.tolist(), tokenizer)

    return paint


def film_frames(
    episode: Episode, depth_picture: DepthPicture | None, names: Sequence[str] = ()
) -> Iterator[Rgb]:
    """One row per executed step and one for the end, all of one size.

    From left to right the scene now, the other cameras as the model saw them when it was asked, and the depth that it
    wrote; below them the executed actions, in the environment's terms, under the `names` of their dimensions.
    """
    decisions = iter(episode.decisions)
    following = next(decisions, None)
    current: Decision | None = None
    depth: Rgb | None = None
    for step, frame in enumerate(episode.frames):
        while following is not None and following.step <= step:
            current, following = following, next(decisions, None)
            depth = _depth(current, depth_picture, depth)
        row = _row(episode, step, frame, current, depth, with_depth=depth_picture is not None)
        yield np.concatenate([row, _actions(episode, step, names, row.shape[1])], axis=0)


def start_picture(episode: Episode) -> Rgb | None:
    """The first frame with the first predicted trace and the whole path taken; None without frames."""
    if not episode.frames:
        return None
    return _draw(episode.frames[0], _trace(episode.decisions[0] if episode.decisions else None),
                 _path(episode, len(episode.grips)))  # fmt: skip


def write_film(
    path: Path,
    episode: Episode,
    fps: float,
    depth_picture: DepthPicture | None,
    names: Sequence[str] = (),
) -> None:
    """H.264, whole or absent."""
    write_video(path, film_frames(episode, depth_picture, names), fps)


def _actions(episode: Episode, step: int, names: Sequence[str], width: int) -> Rgb:
    """What was done so far and is done next; empty paper where nothing was."""
    if not episode.actions:
        return np.zeros((STRIP_HEIGHT, width, 3), np.uint8)
    return action_strip(np.stack(episode.actions), step, names, width)


def _row(
    episode: Episode,
    step: int,
    frame: Rgb,
    decision: Decision | None,
    depth: Rgb | None,
    *,
    with_depth: bool,
) -> Rgb:
    pictures = {"scene": _draw(frame, _trace(decision), _path(episode, step + 1))}
    if decision is not None:
        pictures |= {
            f"{name}, step {decision.step}": image
            for name, image in list(decision.observation.images.items())[1:]
            if image.ndim == 3
        }
    if with_depth:
        pictures[CODES_NAME] = np.zeros_like(frame) if depth is None else depth
    moment = _moment(episode, step, decision)
    return side_by_side(pictures, caption_of([moment], episode.instruction))


def _moment(episode: Episode, step: int, decision: Decision | None) -> str:
    if step == len(episode.frames) - 1:
        return f"step {step}  {ENDED_IN_WORDS[episode.ended]}"
    held = decision is not None and decision.failure
    return f"step {step}  hold: {held}" if held else f"step {step}"


def _draw(frame: Rgb, trace: NDArray[np.float32] | None, taken: NDArray[np.float64] | None) -> Rgb:
    drawn = frame
    if taken is not None:
        drawn = draw_path(drawn, taken, TAKEN_RGB, THICKNESS)
        drawn = draw_dot(drawn, taken[-1].tolist(), TAKEN_RGB, 3)
    return drawn if trace is None else draw_trace(drawn, trace)


def _trace(decision: Decision | None) -> NDArray[np.float32] | None:
    return None if decision is None or decision.chunk is None else decision.chunk.trace_P2


def _path(episode: Episode, steps: int) -> NDArray[np.float64] | None:
    points = [point for point in episode.grips[:steps] if point is not None]
    return np.stack(points) if points else None


def _depth(decision: Decision, paint: DepthPicture | None, before: Rgb | None) -> Rgb | None:
    chunk = decision.chunk
    if paint is None or chunk is None or chunk.depth_codes is None:
        return before
    return paint(np.asarray(chunk.depth_codes))
