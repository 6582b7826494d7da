"""What the sections of a report show: numbers in words, charts, galleries. `report.html` lays them out.

A function gives something empty where the output has nothing of its kind, and the section is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from molmoact_data.labels.gripper import gripper_values
from molmoact_data.labels.quality import QualitySums
from molmoact_data.outputs.manifest import Manifest
from molmoact_data.pages.charts import Line, bar_chart, stacked_bar
from molmoact_data.pages.page import Figure, percent
from molmoact_data.report.curves import dimension_name
from molmoact_data.report.data import HISTOGRAM_BINS, FrameRef, ReportData
from molmoact_data.report.pictures import Picture, strips_picture
from molmoact_data.statistics import DatasetStatistics

REASON_WORDS = {
    "no_point_now": "the pointer did not find the gripper in this frame",
    "out_of_frame": "the point lies outside the frame",
    "jump": "the point is far from its neighbours in time",
    "other_track": "a whole stretch lies on another track, a second robot for example",
    "no_consistent_path": "the episode's points form no path",
    "too_few_points_left": "too few later frames have a believable point",
    "no_point_left": "no later frame has a point",
}
SURE = 0.7
"""Trace quality from which a frame's number is green."""


@dataclass(frozen=True)
class Part:
    """Frames with a trace, or without one for one reason."""

    name: str
    words: str
    share: float
    """Of all frames, 0..1."""
    colour: int
    """Number of the style's colours c0..c7."""


@dataclass(frozen=True)
class Coverage:
    """Which frames have a trace."""

    chart: str
    parts: Sequence[Part]
    pointer: Sequence[tuple[str, float]]
    """(what, share 0..1)."""
    cost: Sequence[tuple[str, str]]
    """What the pointer's answers cost: (what, number)."""
    trace_lengths: str
    """Chart of the traces by their number of points."""


def coverage(quality: Mapping[str, Any], sums: QualitySums) -> Coverage | None:
    """The frames with a trace, and why the others have none."""
    if quality["trace_coverage"] is None:
        return None
    parts = [Part("usable trace", "", quality["trace_coverage"], 0)]
    rejected = sorted(quality["rejected_frames"].items(), key=lambda item: -item[1])
    for i, (reason, share) in enumerate(rejected):
        parts.append(Part(in_words(reason), REASON_WORDS.get(reason, ""), share, i % 7 + 1))
    chart = stacked_bar(
        [(part.name, part.share, f"s{part.colour}") for part in parts],
        title="Share of frames with a trace, and why not",
    )
    pointer = [
        ("pointer found the gripper", quality["point_coverage"]),
        ("found points that the filter removed", quality["filtered_share"]),
        ("steps that jump, before the filter", quality["jump_rate"]),
        ("moving steps that reverse, before the filter", quality["reversal_rate"]),
        ("tracked points that agree both ways", quality["forward_backward_agreement"]),
        ("frames that the pointer was asked about", quality.get("asked")),
        ("of those, without a point of every arm", quality.get("unanswered")),
    ]
    known = [(name, share) for name, share in pointer if share is not None]
    return Coverage(chart, parts, known, pointer_cost(quality), _trace_lengths(sums.trace_lengths))


def pointer_cost(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Questions and tokens per frame of the dataset; nothing for recorded points and outputs that do not tell."""
    told = [
        ("questions per frame", quality.get("calls_per_frame")),
        ("pictures looked at per frame", quality.get("pictures_per_frame")),
        ("tokens read per frame", quality.get("read_tokens_per_frame")),
        ("tokens written per frame", quality.get("written_tokens_per_frame")),
    ]
    return [(name, f"{number:.3g}") for name, number in told if number is not None]


def in_words(name: str) -> str:
    """`no_point_now` -> "no point now"."""
    return name.replace("_", " ")


def _trace_lengths(counts: Sequence[int]) -> str:
    """`counts[n]` = traces of n points."""
    return bar_chart(
        counts,
        title="Traces by their number of points",
        y="traces",
        x="points",
        names=[f"{n} points: {count:,}" for n, count in enumerate(counts)],
        ticks=[((n + 0.5) / len(counts), str(n)) for n in range(len(counts))],
    )


def strips(data: ReportData) -> dict[str, Any]:
    """Trace quality over time, one row per episode."""
    if not data.strips:
        return {}
    return {
        "names": [episode for _, episode in data.strips],
        "height": max(60, 14 * len(data.strips)) + 28,
        "address": strips_picture(data.strips),
    }


def trace_quality(quality: Mapping[str, Any]) -> str:
    """Chart of the frames by their trace's quality."""
    histogram = quality["quality_histogram"]
    if not histogram:
        return ""
    size, total = len(histogram), sum(histogram)
    return bar_chart(
        histogram,
        title="Frames by trace quality",
        y="frames",
        x="trace quality",
        names=[
            f"{i / size:.2f} to {(i + 1) / size:.2f}: {n:,} frames, {percent(n / total)}"
            for i, n in enumerate(histogram)
        ],
        ticks=[(0, "0"), (0.5, "0.5"), (1, "1")],
    )


@dataclass(frozen=True)
class Gallery:
    """Frames of one kind."""

    title: str
    lead: str
    figures: Sequence[Figure]


def galleries(data: ReportData, pictures: Mapping[FrameRef, Picture]) -> list[Gallery]:
    """A sample where there are no traces, else the surest and the least sure."""
    kinds = [
        ("Frames", "A sample.", data.plain),
        (
            "The surest frames",
            "The cyan line is what the model is asked to predict and what is drawn in trajectory-conditioned "
            "samples. The red dot is where the pointer sees the gripper now. Under a picture: where it stands, and "
            "the trace's quality: how sure it is, not whether it is right.",
            data.surest,
        ),
        (
            f"The {len(data.worst)} least sure frames",
            "Traces of the lowest quality that are still in the output, lowest first.",
            data.worst,
        ),
    ]
    return [
        Gallery(t, lead, [_figure(pictures[r]) for r in refs]) for t, lead, refs in kinds if refs
    ]


def without_trace(data: ReportData, pictures: Mapping[FrameRef, Picture]) -> list[Gallery]:
    """Examples of every reason for which a frame has no trace."""
    return [
        Gallery(
            in_words(reason), REASON_WORDS.get(reason, ""), [_figure(pictures[r]) for r in refs]
        )
        for reason, refs in data.rejected.items()
    ]


def _figure(picture: Picture) -> Figure:
    ref = picture.ref
    return Figure(
        name=f"Episode {ref.episode}, frame {ref.frame}",
        address=picture.address,
        pill=in_words(ref.reason) if ref.reason else f"{ref.quality:.2f}",
        verdict="bad" if ref.reason else "good" if ref.quality >= SURE else "warn",
        caption=picture.instruction,
        width=picture.width,
        height=picture.height,
    )


def codes(quality: Mapping[str, Any], sums: QualitySums) -> dict[str, str]:
    """How often each code occurs: `lead` and `chart`."""
    if quality["codes_used"] is None:
        return {}
    counts = np.array(sums.code_counts)
    total = max(int(counts.sum()), 1)
    even, change = f"{quality['code_perplexity']:.1f}", quality["code_change_rate"]
    lead = (
        f"{quality['codes_used']} of {quality['codebook_size']} codes occur; their perplexity is {even}, so the "
        f"codebook is used as if it had {even} equally likely codes."
    )
    if change is not None:
        lead += f" {percent(change)} of the codes differ from the frame before."
    chart = bar_chart(
        counts.tolist(),
        title="How often each depth code occurs",
        y="times used",
        x="code",
        names=[f"code {i}: {percent(n / total)}" for i, n in enumerate(counts.tolist())],
        ticks=[(0, "0"), (1, str(len(counts) - 1))],
    )
    return {"lead": lead, "chart": chart}


def actions(data: ReportData) -> list[dict[str, str]]:
    """Per dimension `name`, `chart` (a histogram with the quantiles that scale it) and `words`."""
    if data.statistics is None or data.action_histogram_DB is None or data.clipped_D is None:
        return []
    return [
        {
            "name": _titled(dimension_name(data.manifest.dataset, d), gripper=spec.gripper),
            "chart": _action_chart(data.statistics, d, data.action_histogram_DB[d].tolist()),
            "words": ("scaled by quantiles" if spec.normalize else "not scaled")
            + (", stored as 1 - a" if spec.invert else "")
            + (f"; {percent(float(data.clipped_D[d]))} clipped" if spec.normalize else "")
            + "."
            + (_gripper_words(data.statistics, d) if spec.gripper else ""),
        }
        for d, spec in enumerate(data.statistics.spec.dimensions)
    ]


def _titled(name: str, *, gripper: bool) -> str:
    """The dimension's name, which says that it is a gripper."""
    return f"{name} · gripper" if gripper and "gripper" not in name.lower() else name


def _gripper_words(statistics: DatasetStatistics, d: int) -> str:
    """Which recorded value the released models take for open."""
    said = (
        f"{v.recorded:.3g} becomes {v.stored:.3g}: {v.meaning}"
        for v in gripper_values(statistics, d)
    )
    return f" To the released models {'; '.join(said)}."


def _action_chart(statistics: DatasetStatistics, d: int, counts: Sequence[int]) -> str:
    """`counts` of `HISTOGRAM_BINS` equal bins between the smallest and the largest value."""
    action = statistics.action
    low, high = float(action.min[d]), float(action.max[d])
    span = (high - low) or 1.0
    quantiles = (float(action.q01[d]), float(action.q99[d]))
    lines = [Line((q - low) / span, f"{q:.3g}") for q in quantiles]
    return bar_chart(
        counts,
        title=f"Histogram of action dimension {d}",
        y="values",
        x="as recorded",
        height=110,
        by_root=True,
        names=[
            f"{low + span * i / HISTOGRAM_BINS:.4g}: {n:,} values" for i, n in enumerate(counts)
        ],
        lines=lines if statistics.spec.dimensions[d].normalize else (),
        ticks=[(0, f"{low:.3g}"), (1, f"{high:.3g}")],
    )


@dataclass(frozen=True)
class TeacherLine:
    """One model that made labels."""

    role: str
    name: str
    revision: str
    licence: str
    verdict: Literal["good", "warn"]
    """Yellow where the licence is non-commercial."""
    recipe: str


def teachers(manifest: Manifest) -> list[TeacherLine]:
    """Models and licences."""
    return [
        TeacherLine(
            role=in_words(role),
            name=card.get("name", "?"),
            revision=card.get("revision", ""),
            licence=card.get("licence", "not stated"),
            verdict="warn" if "nc" in card.get("licence", "").lower().split("-") else "good",
            recipe=", ".join(
                f"{k} {v}" for k, v in card.items() if k not in {"name", "revision", "licence"}
            ),
        )
        for role, card in manifest.teachers.items()
    ]
