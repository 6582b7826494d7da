"""How far an answer is off: depth codes, traces and actions against what was recorded. For every family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Seen:
    """The frame that was asked about, for people."""

    rgb_HWC: NDArray[np.uint8]
    """Its first picture, with the predicted path in cyan and the recorded one in amber where there are any."""
    instruction: str
    where: str


@dataclass(frozen=True)
class AnswerErrors:
    """How far one generated answer is off; None where the sample has no such part."""

    code_accuracy: float | None
    """Share of the depth codes that are right."""
    trace_distance: float | None
    """Mean distance of trace points, grid units 0..255."""
    action_error_D: NDArray[np.float64] | None
    """Mean absolute error per dimension, robot units."""
    failed: str | None = None
    """Why the answer is no action at all; such an answer has no errors and is counted on its own."""
    seen: Seen | None = None
    """What is shown of it; None = nothing."""


def compare_codes(found: Sequence[int] | None, expected: Sequence[int] | None) -> float | None:
    """Share of equal codes; None where there is nothing to compare."""
    if found is None or expected is None:
        return None
    return float(np.mean(np.asarray(found) == np.asarray(expected)))


def trace_distance(
    found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]], samples: int = 20
) -> float:
    """Mean distance between two poly-lines walked at equal pace, in the units of their points.

    Both are resampled at `samples` equal shares of their length, because the number of points may differ.
    An empty found trace is as far as the grid allows.
    """
    if len(found) == 0:
        return float(np.hypot(255, 255))
    walks = [_resample(np.asarray(line, dtype=np.float64), samples) for line in (found, expected)]
    return float(np.linalg.norm(walks[0] - walks[1], axis=1).mean())


def _resample(line_P2: NDArray[np.float64], samples: int) -> NDArray[np.float64]:
    if len(line_P2) == 1:
        return np.repeat(line_P2, samples, axis=0)
    steps = np.linalg.norm(np.diff(line_P2, axis=0), axis=1)
    walked = np.concatenate([[0.0], np.cumsum(steps)])
    if walked[-1] == 0:
        return np.repeat(line_P2[:1], samples, axis=0)
    at = np.linspace(0, walked[-1], samples)
    return np.stack([np.interp(at, walked, line_P2[:, axis]) for axis in (0, 1)], axis=1)


def action_error(
    found_HD: NDArray[np.floating], recorded_hD: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Mean absolute error per dimension over the steps that were recorded, h <= H."""
    steps = len(recorded_hD)
    return np.abs(np.asarray(found_HD, dtype=np.float64)[:steps] - recorded_hD).mean(axis=0)


def mean_trace_distance(
    found: Sequence[Sequence[Sequence[float]]], expected: Sequence[Sequence[Sequence[int]]]
) -> float:
    """Over the recorded arms; an arm that the answer leaves empty counts as far off as can be.

    The reference's wording says a single arm twice; what is said beyond the recorded arms is not compared.
    """
    padded = [*found, *[[]] * (len(expected) - len(found))]
    return float(np.mean([trace_distance(f, e) for f, e in zip(padded, expected, strict=False)]))


def summarise_answers(answers: Sequence[AnswerErrors]) -> dict[str, float]:
    """Means over the answers that have the part, one number per action dimension too; answers that failed are
    counted as `eval/failed_answers`, which is there where any did."""
    failed = sum(a.failed is not None for a in answers)
    found: dict[str, float] = {"eval/failed_answers": float(failed)} if failed else {}
    codes = [a.code_accuracy for a in answers if a.code_accuracy is not None]
    traces = [a.trace_distance for a in answers if a.trace_distance is not None]
    actions = [a.action_error_D for a in answers if a.action_error_D is not None]
    if codes:
        found["eval/code_accuracy"] = float(np.mean(codes))
    if traces:
        found["eval/trace_distance_error"] = float(np.mean(traces))
    if actions:
        mean_D = np.mean(actions, axis=0)
        found["eval/action_error"] = float(mean_D.mean())
        found |= {f"eval/action_error_dim{d}": float(value) for d, value in enumerate(mean_D)}
    return found
