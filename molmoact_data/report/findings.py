"""What a person should know first about an output, in sentences with a verdict each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from molmoact_data.labels.actions import spec_warnings
from molmoact_data.outputs.manifest import Manifest
from molmoact_data.report.data import ReportData
from molmoact_data.teachers.registry import SIMULATED_ROBOT

Verdict = Literal["good", "warn", "bad"]

EMBEDDED = "embedded"
# Below the first value a number is bad, below the second it deserves a look.
COVERAGE_LIMITS = (0.5, 0.8)
CODE_LIMITS = (0.15, 0.5)
JUMP_LIMITS = (0.1, 0.03)
FLICKER_LIMITS = (0.8, 0.5)


@dataclass(frozen=True)
class Finding:
    """A verdict, the number it rests on, and what it means."""

    verdict: Verdict
    headline: str
    meaning: str


def findings(data: ReportData) -> list[Finding]:
    """Worst first; within a verdict in the order of the pipeline."""
    rank = {"bad": 0, "warn": 1, "good": 2}
    return sorted(_findings(data), key=lambda finding: rank[finding.verdict])


def _findings(data: ReportData) -> Iterator[Finding]:
    manifest, quality = data.manifest, data.manifest.quality
    yield from _episodes(manifest)
    yield from _traces(quality)
    yield from _codes(quality)
    if data.statistics is not None:
        for warning in spec_warnings(data.statistics):
            yield Finding("warn", "Actions lose information", warning)
    small = [r for r, c in manifest.teachers.items() if EMBEDDED in c.get("name", "").lower()]
    if small and manifest.dataset.robot_type != SIMULATED_ROBOT:
        yield Finding(
            "bad",
            f"Demo teachers made these labels ({', '.join(r.replace('_', ' ') for r in small)})",
            "they were trained on rendered scenes only; on real images their labels are not worth training on",
        )
    for warning in manifest.dataset.warnings:
        yield Finding("warn", "The dataset's metadata disagrees with its rows", warning)


def _episodes(manifest: Manifest) -> Iterator[Finding]:
    counts = manifest.counts
    rejected, written = counts.rejected_episodes, counts.episodes
    if rejected == 0:
        yield Finding("good", "Every episode was written", f"{written} of {written}")
        return
    share = rejected / (rejected + written)
    reasons = ", ".join(f"{k}: {n}" for k, n in manifest.rejects_by_reason.items())
    yield Finding(
        "bad" if share > 0.1 else "warn",
        f"{rejected} of {rejected + written} episodes were rejected",
        f"{reasons}; none of their frames is in the output",
    )


def _traces(quality: Any) -> Iterator[Finding]:
    coverage = quality["trace_coverage"]
    if coverage is None:
        return
    yield Finding(
        _low_is_bad(coverage, COVERAGE_LIMITS),
        f"{percent(coverage)} of the frames have a usable trace",
        "the others are kept in the output but have no trace, each with a named reason",
    )
    if quality["jump_rate"] is not None:
        yield Finding(
            _high_is_bad(quality["jump_rate"], JUMP_LIMITS),
            f"{percent(quality['jump_rate'])} of the pointer's steps jump",
            "more than a tenth of the frame between neighbouring frames, before the filter",
        )
    if quality["forward_backward_agreement"] is not None:
        yield Finding(
            _low_is_bad(quality["forward_backward_agreement"], COVERAGE_LIMITS),
            f"{percent(quality['forward_backward_agreement'])} of the tracked points agree both ways",
            "forward and backward optical flow end within 2 % of the diagonal",
        )


def _codes(quality: Any) -> Iterator[Finding]:
    if quality["codes_used"] is None:
        return
    used, size = quality["codes_used"], quality["codebook_size"]
    yield Finding(
        _low_is_bad(quality["code_perplexity"] / size, CODE_LIMITS),
        f"{used} of {size} depth codes are used, as evenly as {quality['code_perplexity']:.0f} would be",
        "depth that falls on few codes tells the model little about the scene",
    )
    change = quality["code_change_rate"]
    if change is not None:
        yield Finding(
            _high_is_bad(change, FLICKER_LIMITS),
            f"{percent(change)} of the codes change from frame to frame",
            "depth is scaled per image, so codes flicker where the nearest or farthest thing moves",
        )


def percent(share: float) -> str:
    """A share in words; small ones keep a digit."""
    value = 100 * share
    return (
        f"{value:.0f}\N{NO-BREAK SPACE}%"
        if value >= 10 or value == 0
        else f"{value:.1f}\N{NO-BREAK SPACE}%"
    )


def _low_is_bad(value: float, limits: tuple[float, float]) -> Verdict:
    return "bad" if value < limits[0] else "warn" if value < limits[1] else "good"


def _high_is_bad(value: float, limits: tuple[float, float]) -> Verdict:
    return "bad" if value > limits[0] else "warn" if value > limits[1] else "good"
