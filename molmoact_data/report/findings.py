"""What a person should know first about an output, in sentences with a verdict each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from molmoact_data.labels.actions import spec_warnings
from molmoact_data.labels.depth_scaling import DepthScaling
from molmoact_data.outputs.manifest import Manifest
from molmoact_data.pages.page import percent
from molmoact_data.report.data import ReportData
from molmoact_data.schema import REJECTS_FILE
from molmoact_data.teachers.knowledge import INSTEAD, WHY, strange_teachers

Verdict = Literal["good", "warn", "bad"]

RANK: dict[Verdict, int] = {"bad": 0, "warn": 1, "good": 2}
# Below the first value a number is bad, below the second it deserves a look.
COVERAGE_LIMITS = (0.5, 0.8)
CODE_LIMITS = (0.15, 0.5)
JUMP_LIMITS = (0.1, 0.03)
FLICKER_LIMITS = (0.8, 0.5)

ASK_THE_POINTER_BETTER = (
    "look at the least sure frames below; try another --pointer or --pointer-prompt with `molmoact preview`, then "
    "run `molmoact preprocess` again"
)
LOOK_AT_DEPTH = (
    "compare image and depth with `molmoact viz --vqvae`; a wrong --depth-recipe looks like this"
)
FLICKER_WORDS: dict[DepthScaling, tuple[str, str]] = {
    "image": (
        "depth is scaled per image, so codes flicker where the nearest or farthest thing moves",
        f"{LOOK_AT_DEPTH}; `--depth-scaling steady` keeps one range over the frames",
    ),
    "steady": (
        "depth is scaled over a range kept from frame to frame; what still changes, moves or wavers in the estimate",
        LOOK_AT_DEPTH,
    ),
}
"""What flicker means, and what to do about it."""


@dataclass(frozen=True)
class Finding:
    """A verdict, the number it rests on, what it means and, unless it is good, what to do."""

    verdict: Verdict
    headline: str
    meaning: str
    next_step: str = ""


@dataclass(frozen=True)
class Overall:
    """The one verdict of a page."""

    verdict: Verdict
    headline: str
    meaning: str
    next_steps: tuple[str, ...]
    """Worst finding first, each step once."""


def findings(data: ReportData) -> list[Finding]:
    """Worst first; within a verdict in the order of the pipeline."""
    return sorted(_findings(data), key=lambda finding: RANK[finding.verdict])


def overall(found: Sequence[Finding]) -> Overall:
    """As bad as the worst finding: good numbers do not outweigh a bad one. `found` is sorted worst first."""
    worst: Verdict = min((f.verdict for f in found), key=RANK.__getitem__, default="good")
    if worst == "good":
        return Overall(
            worst, "Nothing here speaks against training on it", "every check is green", ()
        )
    headline = {"bad": "Do not train on this yet", "warn": "Look before you train on this"}[worst]
    open_findings = [f for f in found if f.verdict != "good"]
    counted = ((verdict, sum(f.verdict == verdict for f in found)) for verdict in ("bad", "warn"))
    colours = {"bad": "red", "warn": "yellow"}
    meaning = ", ".join(f"{n} {colours[verdict]}" for verdict, n in counted if n)
    steps = dict.fromkeys(f.next_step for f in open_findings if f.next_step)
    return Overall(
        worst, headline, f"{meaning} of {len(found)} findings, worst first", tuple(steps)
    )


def _findings(data: ReportData) -> Iterator[Finding]:
    manifest, quality = data.manifest, data.manifest.quality
    strange = strange_teachers(manifest.teachers, manifest.dataset.robot_type)
    yield from _strange(strange)
    yield from _episodes(manifest)
    yield from _traces(quality, pointer_is_strange="gripper_pointer" in strange)
    yield from _codes(quality, data.manifest.depth_scaling)
    if data.statistics is not None:
        for warning in spec_warnings(data.statistics):
            then = "see the dimension under Actions; decide with --gripper, then `molmoact preprocess` again"
            yield Finding("warn", "Actions lose information", warning, then)
    for warning in manifest.dataset.warnings:
        headline = "The dataset's metadata disagrees with its rows"
        yield Finding(
            "warn", headline, warning, "mend the dataset, or make sure that the rows are right"
        )


def _strange(roles: Sequence[str]) -> Iterator[Finding]:
    if roles:
        yield Finding(
            "bad",
            f"Demo teachers made these labels ({', '.join(r.replace('_', ' ') for r in roles)})",
            f"they were {WHY}; here their labels are not worth training on, however sure they look",
            f"label again with teachers of real pictures: {INSTEAD}",
        )


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
        f"read {REJECTS_FILE}: it names every episode and what is wrong with it",
    )


def _traces(quality: Any, *, pointer_is_strange: bool) -> Iterator[Finding]:
    """Coverage counts points that were believed, so it is no better than the evidence for them."""
    coverage = quality["trace_coverage"]
    if coverage is None:
        return
    evidence = list(_evidence(quality))
    doubts = [f.headline for f in evidence if f.verdict == "bad"]
    if pointer_is_strange:
        doubts.append("the pointer does not know such pictures")
    verdict = _low_is_bad(coverage, COVERAGE_LIMITS)
    meaning = "the others are kept in the output but have no trace, each with a named reason"
    if doubts and verdict == "good":
        verdict = "warn"
        meaning = f"but that says little: {'; '.join(doubts)}"
    yield Finding(
        verdict,
        f"{percent(coverage)} of the frames have a usable trace",
        meaning,
        "" if verdict == "good" else ASK_THE_POINTER_BETTER,
    )
    yield from evidence


def _evidence(quality: Any) -> Iterator[Finding]:
    """What speaks for or against believing the points."""
    if quality["jump_rate"] is not None:
        yield _judged(
            _high_is_bad(quality["jump_rate"], JUMP_LIMITS),
            f"{percent(quality['jump_rate'])} of the pointer's steps jump",
            "more than a tenth of the frame between neighbouring frames, before the filter",
            ASK_THE_POINTER_BETTER,
        )
    if quality["forward_backward_agreement"] is not None:
        yield _judged(
            _low_is_bad(quality["forward_backward_agreement"], COVERAGE_LIMITS),
            f"{percent(quality['forward_backward_agreement'])} of the tracked points agree both ways",
            "forward and backward optical flow end within 2 % of the diagonal",
            "ask the pointer more often: a smaller --point-every",
        )


def _codes(quality: Any, depth_scaling: DepthScaling) -> Iterator[Finding]:
    if quality["codes_used"] is None:
        return
    used, size = quality["codes_used"], quality["codebook_size"]
    yield _judged(
        _low_is_bad(quality["code_perplexity"] / size, CODE_LIMITS),
        f"{used} of {size} depth codes are used, as evenly as {quality['code_perplexity']:.0f} would be",
        "depth that falls on few codes tells the model little about the scene",
        LOOK_AT_DEPTH,
    )
    change = quality["code_change_rate"]
    if change is not None:
        yield _judged(
            _high_is_bad(change, FLICKER_LIMITS),
            f"{percent(change)} of the codes change from frame to frame",
            *FLICKER_WORDS[depth_scaling],
        )


def _judged(verdict: Verdict, headline: str, meaning: str, otherwise: str) -> Finding:
    """A finding with something to do unless it is good."""
    return Finding(verdict, headline, meaning, "" if verdict == "good" else otherwise)


def _low_is_bad(value: float, limits: tuple[float, float]) -> Verdict:
    return "bad" if value < limits[0] else "warn" if value < limits[1] else "good"


def _high_is_bad(value: float, limits: tuple[float, float]) -> Verdict:
    return "bad" if value > limits[0] else "warn" if value > limits[1] else "good"
