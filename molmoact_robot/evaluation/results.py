"""Trials -> numbers: success rates with intervals, failures by kind, in one JSON that a rerun reproduces."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from molmoact_robot.rollout import ENDINGS, Ending, Episode, Trial

CONFIDENCE_Z = 1.959963984540054
"""Two-sided 95 % of the normal distribution."""


@dataclass(frozen=True)
class TrialResult:
    """One played trial, as its file spells it."""

    task: str
    index: int
    seed: int
    instruction: str
    ended: Ending
    steps: int
    predictions: int
    failed_predictions: Mapping[str, int] = field(default_factory=dict)
    path_error: float | None = None
    """Mean over the episode's predicted traces, on the 0..255 grid; None = no trace or no gripper position."""
    num_traces: int = 0
    message: str = ""

    @property
    def success(self) -> bool:
        return self.ended == "success"

    @property
    def trial(self) -> Trial:
        return Trial(self.task, self.index, self.seed)

    @classmethod
    def of(cls, episode: Episode) -> TrialResult:
        errors = episode.path_errors()
        return cls(
            task=episode.trial.task,
            index=episode.trial.index,
            seed=episode.trial.seed,
            instruction=episode.instruction,
            ended=episode.ended,
            steps=len(episode.actions),
            predictions=len(episode.decisions),
            failed_predictions=episode.failures,
            path_error=sum(errors) / len(errors) if errors else None,
            num_traces=len(errors),
            message=episode.message,
        )


def wilson_interval(successes: int, n: int, z: float = CONFIDENCE_Z) -> tuple[float, float]:
    """The Wilson score interval of a share; of none at all: 0 to 1."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def summarize(results: Sequence[TrialResult]) -> dict[str, Any]:
    """The part of results.json that is computed; equal trials give equal numbers, in any order."""
    ordered = sorted(results, key=lambda r: (r.task, r.index))
    reasons: Counter[str] = Counter()
    for result in ordered:
        reasons.update(result.failed_predictions)
    tasks = list(dict.fromkeys(r.task for r in ordered))
    return {
        **_rate(ordered),
        "per_task": {task: _rate([r for r in ordered if r.task == task]) for task in tasks},
        "failures": {
            kind: sum(r.ended == kind for r in ordered) for kind in ENDINGS if kind != "success"
        },
        "predictions": {
            "total": sum(r.predictions for r in ordered),
            "failed": sum(reasons.values()),
            "by_reason": dict(sorted(reasons.items())),
        },
    }


def _rate(results: Sequence[TrialResult]) -> dict[str, Any]:
    successes, n = sum(r.success for r in results), len(results)
    traces = sum(r.num_traces for r in results)
    errors = sum(r.num_traces * r.path_error for r in results if r.path_error is not None)
    return {
        "n": n,
        "successes": successes,
        "interval": list(wilson_interval(successes, n)),
        "mean_steps": sum(r.steps for r in results) / n if n else None,
        "path_error": {"mean": errors / traces if traces else None, "traces": traces},
    }
