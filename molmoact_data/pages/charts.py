"""Small charts as inline SVG with their numbers and names beside it. Colours come from the page's CSS.

The drawing stretches to its card and has a fixed height; numbers are text of the page, so they are as large on a
phone as on a desk. Inside a drawing x and y are percent of its width and height, and y points down.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

SHARES = (0.0, 0.5, 1.0)
"""Of its height: where the y axis has numbers."""
Tick = tuple[float, str]
"""A place 0..1 of the width, and what stands there."""
Series = Mapping[str, Sequence[tuple[float, float]]]
"""Name -> points (x, y) in the order in which they are joined."""


@dataclass(frozen=True)
class Line:
    """A vertical line at `position` 0..1 of the width."""

    position: float
    label: str


def bar_chart(
    values: Sequence[float],
    *,
    title: str,
    y: str,
    x: str = "",
    height: int = 150,
    names: Sequence[str] | None = None,
    lines: Sequence[Line] = (),
    ticks: Sequence[Tick] = (),
    by_root: bool = False,
) -> str:
    """Vertical bars from 0 to the largest value.

    `y` and `x` name the axes with their unit, `names` are what a pointer over a bar shows, `height` is in pixels.
    `by_root` = bars grow with the square root of their value, so that rare ones are seen.
    """
    largest = max([*values, 0]) or 1
    step = 100 / max(len(values), 1)
    gap = step * (0.08 if len(values) < 60 else 0.18)
    parts = []
    for i, value in enumerate(values):
        share = value / largest
        tall = 100 * (math.sqrt(share) if by_root else share)
        tall = max(tall, 1.0) if value > 0 else 0.0
        tip = f"<title>{escape(names[i])}</title>" if names else ""
        parts.append(
            f'<rect class="bar" x="{i * step + gap / 2:.2f}" y="{100 - tall:.2f}" width="{step - gap:.2f}" '
            f'height="{tall:.2f}">{tip}</rect>'
        )
    parts += [_across(100.0)]
    parts += [_upright(min(max(line.position, 0), 1)) for line in lines]
    numbers = [largest * (share**2 if by_root else share) for share in SHARES]
    numbers = [round(number) for number in numbers] if largest >= 10 else numbers
    marks = [(line.position, line.label) for line in lines]
    return _chart(parts, title, height, y=y, x=x, numbers=numbers, ticks=ticks, marks=marks)


def stacked_bar(shares: Sequence[tuple[str, float, str]], *, title: str, height: int = 34) -> str:
    """One horizontal bar of (name, share 0..1, css class)."""
    parts, at = [], 0.0
    for name, share, css_class in shares:
        parts.append(
            f'<rect class="{css_class}" x="{100 * at:.2f}" y="0" width="{100 * share:.2f}" height="100">'
            f"<title>{escape(name)}: {100 * share:.1f} %</title></rect>"
        )
        at += share
    return _drawing(parts, title, height)


@dataclass(frozen=True)
class Axes:
    """Where values lie in a line chart."""

    x: tuple[float, float]
    """Values at the left and right end; unequal."""
    y: tuple[float, float]
    """Values at the lower and upper end; unequal."""
    log_x: bool = False

    @classmethod
    def around(
        cls, points: Sequence[tuple[float, float]], *, log_x: bool, y_top: float | None
    ) -> Axes:
        """As wide as the points; from 0 to `y_top` where it is given, else as high as they are."""
        y = _range([y for _, y in points]) if y_top is None else (0.0, y_top)
        return cls(_range([x for x, _ in points]), y, log_x)

    def across(self, x: float) -> float:
        """Percent from the left."""
        low, high, at = (math.log(v) if self.log_x else v for v in (*self.x, x))
        return 100 * (at - low) / (high - low)

    def down(self, y: float) -> float:
        """Percent from the top."""
        return 100 - 100 * (y - self.y[0]) / (self.y[1] - self.y[0])


def line_chart(
    series: Series,
    *,
    title: str,
    y: str,
    x: str,
    height: int = 200,
    log_x: bool = False,
    y_top: float | None = None,
) -> str:
    """Poly-lines over common axes with a legend. Empty where no line has a point.

    `y` and `x` name the axes with their unit. The axes span the points and have numbers at their ends; `y_top` = the
    y axis from 0 to here instead, `log_x` = logarithmic, with a number at every x that occurs.
    """
    series = {name: line for name, line in series.items() if line}
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    axes = Axes.around(points, log_x=log_x, y_top=y_top)
    shown = sorted({x for x, _ in points}) if log_x else axes.x
    drawing = _chart(
        [*(_across(100 * share) for share in SHARES),
         *(_line(axes, i, name, line) for i, (name, line) in enumerate(series.items()))],
        title, height, y=y, x=x,
        numbers=[axes.y[0] + share * (axes.y[1] - axes.y[0]) for share in SHARES],
        ticks=[(axes.across(at) / 100, short(at)) for at in shown],
    )  # fmt: skip
    legend = "".join(
        f'<span><i style="background:var(--c{i % 8})"></i>{escape(name)}</span>'
        for i, name in enumerate(series)
    )
    return f'{drawing}<div class="legend">{legend}</div>'


def _line(axes: Axes, number: int, name: str, line: Sequence[tuple[float, float]]) -> str:
    places = [(axes.across(x), axes.down(y)) for x, y in line]
    path = " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
    dots = "".join(f"M{x:.2f},{y:.2f}h0" for x, y in places) if len(places) < 30 else ""
    return (
        f'<g stroke="var(--c{number % 8})" fill="none"><title>{escape(name)}</title>'
        f'<polyline points="{path}"/>' + (f'<path class="dots" d="{dots}"/>' if dots else "") + "</g>"
    )  # fmt: skip


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis; a single value gets one with room on both sides."""
    low, high = min(values), max(values)
    room = abs(low) or 1.0
    return (low, high) if high > low else (low - room / 2, high + room / 2)


def round_up(value: float) -> float:
    """The end of an axis in four equal steps that are short to write."""
    if value <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value)


def short(value: float) -> str:
    """At most seven characters: whole numbers as they are, others in three digits, or as 3.0e-4."""
    if value == round(value) and abs(value) < 100_000:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    if len(text) <= 6 and "e" not in text:
        return text
    return re.sub(r"e([+-])0", r"e\1", f"{value:.1e}")


# The frame of a chart


def _across(y: float) -> str:
    return f'<line class="axis" x1="0" y1="{y:g}" x2="100" y2="{y:g}"/>'


def _upright(position: float) -> str:
    x = f"{100 * position:.2f}"
    return f'<line class="mark" x1="{x}" y1="0" x2="{x}" y2="100"/>'


def _chart(
    parts: Sequence[str],
    title: str,
    height: int,
    *,
    y: str,
    x: str,
    numbers: Sequence[float],
    ticks: Sequence[Tick],
    marks: Sequence[Tick] = (),
) -> str:
    """The drawing between its axes; `numbers` stand beside it from below to above, `marks` over it."""
    beside = "".join(f"<span>{short(number)}</span>" for number in reversed(numbers))
    over = f'<div class="xs">{_row(marks, beside=True)}</div>' if marks else ""
    below = f'<div class="xs">{_row(ticks)}</div>' if ticks else ""
    named = f'<div class="xname">{escape(x)}</div>' if x else ""
    return (
        f'<div class="chart"><div class="yname">{escape(y)}</div>{over}<div class="ys">{beside}</div>'
        f"{_drawing(parts, title, height)}{below}{named}</div>"
    )


def _row(ticks: Sequence[Tick], *, beside: bool = False) -> str:
    """`beside` = on that side of its place where there is more room, else around it."""
    edge = 0.5 if beside else 0.04
    spans = []
    for at, text in ticks:
        side = "start" if at < edge else "end" if at >= 1 - edge else "middle"
        left = 100 * min(max(at, 0), 1)
        spans.append(f'<span class="{side}" style="left:{left:.2f}%">{escape(text)}</span>')
    return "".join(spans)


def _drawing(parts: Sequence[str], title: str, height: int) -> str:
    return (
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" style="height:{height}px" role="img" '
        f'aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg>'
    )
