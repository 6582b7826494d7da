"""`labels.html`, the page of `evaluate-labels`: tables and curves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from molmoact_data.config import as_dict
from molmoact_data.files.folders import check_new_file, write_together
from molmoact_data.label_quality.depth import CodeScores
from molmoact_data.label_quality.evaluate import LabelEvaluation, TrackingScores
from molmoact_data.label_quality.metrics import PCK_PX, PointScores, TraceScores
from molmoact_data.label_quality.traces import FilterScores
from molmoact_data.pages.charts import Series, line_chart, round_up
from molmoact_data.pages.page import render_page

RESULT_FILE = "labels.json"
REPORT_FILE = "labels.html"
POINT_HEADER = ["n", "found", "median px", "p95 px", *(f"PCK@{px}" for px in PCK_PX)]

Rows = list[Sequence[object]]
"""Of a table."""
Charts = list[tuple[str, str]]
"""(title, SVG); empty SVG where there is nothing to draw."""


def check_results(folder: Path, *, overwrite: bool) -> None:
    """Raises `UserError` where earlier results would be lost."""
    for name in (RESULT_FILE, REPORT_FILE):
        check_new_file(folder / name, overwrite=overwrite)


def write_results(folder: Path, result: LabelEvaluation) -> None:
    """The numbers as JSON and the page."""
    numbers = json.dumps(as_dict(result), indent=2) + "\n"
    page = render_report(result)
    write_together({folder / RESULT_FILE: numbers.encode(), folder / REPORT_FILE: page.encode()})


def render_report(result: LabelEvaluation) -> str:
    """The page of one evaluation."""
    return render_page(
        __package__,
        "labels.html",
        kind="Label quality",
        heading=result.dataset,
        facts={
            "episodes": result.episodes,
            "frames": result.frames,
            "revision": result.revision,
        },
        teachers=[
            (role, card["name"], card["revision"], card.get("licence", ""))
            for role, card in result.teachers.items()
        ],
        depth=[(name.replace("_", " "), number(v)) for name, v in (result.depth or {}).items()],
        codes=_codes(result.codes) if result.codes else [],
        point_header=POINT_HEADER,
        pointing=point_rows(result.pointing or {}),
        pointing_charts=_pointing_charts(result.pointing or {}),
        tracking=_tracking(result.tracking or ()),
        tracking_charts=_tracking_charts(result.tracking or ()),
        traces=_traces(result.traces) if result.traces else [],
        trace_charts=_trace_charts(result.traces) if result.traces else [],
    )


def _codes(codes: CodeScores) -> Rows:
    return [
        ("frames", codes.frames),
        ("range of the 8 bits", codes.scaling),
        ("mean absolute error (0..1)", number(codes.mean_absolute_error)),
        ("PSNR, dB", number(codes.psnr_db)),
        ("rank correlation with truth", number(codes.rank_correlation_with_truth)),
        ("codes used", f"{codes.codes_used} of {codes.codebook_size}"),
        ("perplexity", number(codes.perplexity)),
    ]


def point_rows(groups: Mapping[str, PointScores]) -> Rows:
    """One row per group of frames, under its name and `POINT_HEADER`."""
    return [
        (
            name,
            s.frames,
            share(s.found),
            number(s.median_px),
            number(s.p95_px),
            *(share(s.pck[str(px)]) for px in PCK_PX),
        )
        for name, s in groups.items()
    ]


def _pointing_charts(groups: Mapping[str, PointScores]) -> Charts:
    curves = {
        name: [(float(px), scores.pck[str(px)]) for px in PCK_PX]
        for name, scores in groups.items()
        if name != "out_of_frame"
    }
    title = "share of frames within so many px"
    return [
        (title, line_chart(curves, title=title, y="share of frames", x="px", log_x=True, y_top=1))
    ]


def _tracking(tracking: Sequence[TrackingScores]) -> Rows:
    return point_rows({f"{_rule(t)}, asked {share(t.calls)}": t.points["all"] for t in tracking})


def _rule(scores: TrackingScores) -> str:
    if scores.keyframes == "motion":
        return f"by motion, gap at most {scores.point_every}"
    return f"K = {scores.point_every}"


def _tracking_charts(tracking: Sequence[TrackingScores]) -> Charts:
    def curve(value: Callable[[TrackingScores], float | None]) -> list[tuple[float, float]]:
        points = [(float(t.point_every), value(t)) for t in tracking]
        return [(x, y) for x, y in points if y is not None]

    def median(group: str) -> Callable[[TrackingScores], float | None]:
        return lambda t: t.points[group].median_px if group in t.points else None

    shown: dict[str, tuple[str, Series]] = {
        "median error, by K": ("px", {g: curve(median(g)) for g in ("all", "visible", "hidden")}),
        "share of frames asked, by K": ("share of frames", {"asked": curve(lambda t: t.calls)}),
        "95th percentile, by K": ("px", {"all": curve(lambda t: t.points["all"].p95_px)}),
    }
    return [(title, _from_zero(title, unit, series)) for title, (unit, series) in shown.items()]


def _from_zero(title: str, unit: str, series: Series) -> str:
    top = round_up(max((y for line in series.values() for _, y in line), default=0))
    return line_chart(series, title=title, y=unit, x="K", log_x=True, y_top=top)


def _injected(scores: FilterScores) -> str:
    return f"{scores.outlier_share:.0%} outliers put in"


def _traces(scores: FilterScores) -> Rows:
    rows: dict[str, TraceScores] = {
        "as pointed, no filter": scores.as_pointed_before,
        "as pointed, filtered": scores.as_pointed_after,
        f"{_injected(scores)}, no filter": scores.with_outliers_before,
        f"{_injected(scores)}, filtered": scores.with_outliers_after,
    }
    return [
        (name, s.frames, share(s.kept), share(s.precision), share(s.mean_distance))
        for name, s in rows.items()
    ]


def _trace_charts(scores: FilterScores) -> Charts:
    curve = [(t.kept, t.precision) for t in scores.trade_off if t.precision is not None]
    title = "share of correct traces, by the share kept"
    chart = line_chart(
        {_injected(scores): curve},
        title=title, y="share that is correct", x="share kept", y_top=1,
    )  # fmt: skip
    return [(title, chart)]


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def share(value: float | None) -> str:
    """Percent, or a dash."""
    return "–" if value is None else f"{100 * value:.1f} %"
