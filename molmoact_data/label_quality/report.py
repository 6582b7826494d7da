"""The HTML page of `evaluate-labels`: tables and curves in one file, nothing loaded from elsewhere."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from molmoact_data.config import as_dict
from molmoact_data.errors import UserError
from molmoact_data.label_quality.evaluate import LabelEvaluation, TrackingScores
from molmoact_data.label_quality.metrics import PCK_PX, PointScores, TraceScores
from molmoact_data.label_quality.traces import FilterScores

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
h1{font-size:1.6rem} h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #d8dee4}
table{border-collapse:collapse;margin:.6rem 0} td,th{padding:.2rem .8rem;text-align:right;
border-bottom:1px solid #eaeef2} td:first-child,th:first-child{text-align:left}
figure{display:inline-block;margin:.5rem 1rem .5rem 0} figcaption{font-size:.85rem;color:#57606a}
.note{color:#57606a;font-size:.9rem} svg text{font:11px system-ui,sans-serif;fill:#57606a}
"""
RIGHT = 20
"""Pixels right of a chart, for half of its last number."""
_COLOURS = ("#0969da", "#bf3989", "#1a7f37", "#9a6700")
RESULT_FILE = "labels.json"
REPORT_FILE = "labels.html"


def prepare_folder(folder: Path, *, overwrite: bool) -> None:
    """Make the folder before anything is measured; results that are there need `overwrite`."""
    there = [name for name in (RESULT_FILE, REPORT_FILE) if (folder / name).exists()]
    if there and not overwrite:
        raise UserError(f"{folder} already holds {there[0]}. Choose another folder or --overwrite.")
    folder.mkdir(parents=True, exist_ok=True)


def write_results(folder: Path, result: LabelEvaluation) -> None:
    """The numbers as JSON and the page."""
    (folder / RESULT_FILE).write_text(json.dumps(as_dict(result), indent=2) + "\n")
    (folder / REPORT_FILE).write_text(render_report(result))


def render_report(result: LabelEvaluation) -> str:
    """The page of one evaluation."""
    sections = [
        _teachers(result),
        _depth(result),
        _pointing(result.pointing) if result.pointing else "",
        _tracking(result.tracking) if result.tracking else "",
        _traces(result.traces) if result.traces else "",
    ]
    title = f"Label quality: {html.escape(result.dataset)}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1>"
        f'<p class="note">{result.episodes} episodes, {result.frames} frames, revision '
        f"{html.escape(result.revision)}. Pixels are those of a picture whose longer side is 256. "
        "Rendered scenes: this says how good labels are in simulation, not on real video.</p>"
        + "".join(sections)
        + "</html>\n"
    )


def _teachers(result: LabelEvaluation) -> str:
    rows = [
        [role, d["name"], d["revision"], d.get("licence", "")]
        for role, d in result.teachers.items()
    ]
    return "<h2>Teachers</h2>" + table(["role", "name", "revision", "licence"], rows)


def _depth(result: LabelEvaluation) -> str:
    parts = []
    if result.depth:
        rows = [[name.replace("_", " "), number(value)] for name, value in result.depth.items()]
        parts.append("<h2>Depth</h2>" + table(["number", "value"], rows))
    if result.codes:
        codes = result.codes
        parts.append(
            "<h2>Depth codes</h2>"
            + table(
                ["number", "value"],
                [
                    ["frames", str(codes.frames)],
                    ["mean absolute error (0..1)", number(codes.mean_absolute_error)],
                    ["PSNR, dB", number(codes.psnr_db)],
                    ["rank correlation with truth", number(codes.rank_correlation_with_truth)],
                    ["codes used", f"{codes.codes_used} of {codes.codebook_size}"],
                    ["perplexity", number(codes.perplexity)],
                ],
            )
        )
    return "".join(parts)


def _pointing(groups: Mapping[str, PointScores]) -> str:
    note = (
        '<p class="note">A point that is not found counts as wrong. In frames of <i>out_of_frame</i> every found '
        "point is invented.</p>"
    )
    curves = {
        name: [(float(px), scores.pck[str(px)]) for px in PCK_PX]
        for name, scores in groups.items()
        if name != "out_of_frame"
    }
    return (
        "<h2>Pointing</h2>"
        + point_table(groups)
        + note
        + chart("share of frames within px", curves, x="px", log_x=True, top=1)
    )


def point_table(groups: Mapping[str, PointScores], label: str = "frames") -> str:
    """One row per group of frames."""
    header = [label, "n", "found", "median px", "p95 px", *(f"PCK@{px}" for px in PCK_PX)]
    rows = [
        [
            name,
            str(s.frames),
            share(s.found),
            number(s.median_px),
            number(s.p95_px),
            *(share(s.pck[str(px)]) for px in PCK_PX),
        ]
        for name, s in groups.items()
    ]
    return table(header, rows)


def _tracking(tracking: Sequence[TrackingScores]) -> str:
    def curve(value: Callable[[TrackingScores], float | None]) -> list[tuple[float, float]]:
        points = [(float(t.point_every), value(t)) for t in tracking]
        return [(x, y) for x, y in points if y is not None]

    groups = {f"K = {t.point_every}, asked {share(t.calls)}": t.points["all"] for t in tracking}
    medians = {
        group: curve(lambda t, g=group: t.points[g].median_px if g in t.points else None)  # type: ignore[misc]
        for group in ("all", "visible", "hidden")
    }
    return (
        "<h2>Tracking between keyframes</h2>"
        + point_table(groups, "pointer on every K-th frame")
        + chart("median error, px", medians, x="K", log_x=True)
        + chart("share of frames asked", {"asked": curve(lambda t: t.calls)}, x="K", log_x=True)
        + chart(
            "95th percentile, px",
            {"all": curve(lambda t: t.points["all"].p95_px)},
            x="K",
            log_x=True,
        )
    )


def _traces(scores: FilterScores) -> str:
    injected = f"{scores.outlier_share:.0%} outliers put in"
    rows: dict[str, TraceScores] = {
        "as pointed, no filter": scores.as_pointed_before,
        "as pointed, filtered": scores.as_pointed_after,
        f"{injected}, no filter": scores.with_outliers_before,
        f"{injected}, filtered": scores.with_outliers_after,
    }
    body = [
        [name, str(s.frames), share(s.kept), share(s.precision), share(s.mean_distance)]
        for name, s in rows.items()
    ]
    curve = [(t.kept, t.precision) for t in scores.trade_off if t.precision is not None]
    return (
        "<h2>Traces and their filter</h2>"
        + table(["points", "frames", "kept", "correct", "mean distance"], body)
        + '<p class="note">Correct: on average within 5 % of the diagonal of where the gripper was at the '
        "same moments. Outliers: jumps, a second robot, a background object, missing points, a quarter each."
        "</p>"
        + chart(
            "share of correct traces, by the least quality kept", {injected: curve}, x="kept", top=1
        )
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text cells; everything is escaped."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def share(value: float | None) -> str:
    """Percent, or a dash."""
    return "–" if value is None else f"{100 * value:.1f} %"


def chart(
    title: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    log_x: bool = False,
    top: float | None = None,
) -> str:
    """Curves as SVG, the y axis from 0 to `top` (or the largest value). Empty where no curve has a point."""
    shown = {name: points for name, points in curves.items() if points}
    if not shown:
        return ""
    width, height, left, bottom = 380, 210, 42, 28
    xs = sorted({px for points in shown.values() for px, _ in points})
    y_top = top if top is not None else round_up(max(y for p in shown.values() for _, y in p))

    def place(px: float, py: float) -> tuple[float, float]:
        low, high, at = (math.log(v) if log_x else v for v in (xs[0], xs[-1], px))
        across = (at - low) / (high - low) if high > low else 0.5
        return left + across * (width - left - RIGHT), 8 + (1 - py / y_top) * (height - bottom - 8)

    parts = [_grid(width, height, left, bottom, y_top)]
    ticks = xs if log_x else [xs[0], xs[-1]]
    parts += [
        f'<text x="{place(v, 0)[0]:.1f}" y="{height - 12}" text-anchor="middle">{v:.3g}</text>'
        for v in ticks
    ]
    for i, (name, points) in enumerate(shown.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        placed = [place(*p) for p in points]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
        dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in placed)
        parts.append(
            f'<g fill="{colour}" stroke="{colour}"><polyline points="{line}" fill="none"/>{dots}</g>'
            f'<text x="{width - RIGHT}" y="{height - bottom - 8 - 14 * i}" text-anchor="end" '
            f'style="fill:{colour}">{html.escape(name)}</text>'
        )
    parts.append(f'<text x="{width / 2}" y="{height}" text-anchor="middle">{html.escape(x)}</text>')
    svg = f'<svg width="{width}" height="{height + 4}" role="img">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>"


def round_up(value: float) -> float:
    """The end of an axis in four equal steps that are short to write."""
    if value <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value)


def _grid(width: int, height: int, left: int, bottom: int, y_top: float) -> str:
    lines = []
    for i in range(5):
        y = 8 + (1 - i / 4) * (height - bottom - 8)
        lines.append(
            f'<line x1="{left}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eaeef2"/>'
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{y_top * i / 4:.3g}</text>'
        )
    return "".join(lines)
