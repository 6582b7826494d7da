"""Small charts as inline SVG. Colours come from the page's CSS, so they follow light and dark."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 640


@dataclass(frozen=True)
class Line:
    """A vertical line at `position` 0..1 of the width."""

    position: float
    label: str


def bar_chart(
    values: Sequence[float],
    *,
    title: str,
    height: int = 150,
    names: Sequence[str] | None = None,
    lines: Sequence[Line] = (),
    ticks: Sequence[tuple[float, str]] = (),
    text: float = 8,
) -> str:
    """Vertical bars from 0 to the largest value; `names` are what a pointer over a bar shows.

    Charts are `WIDTH` units wide and stretch to their card, so narrow cards want larger `text`.
    """
    top, base = text * 1.5 if lines else 4, height - (text * 1.5 if ticks else 2)
    largest = max([*values, 0]) or 1
    step = WIDTH / max(len(values), 1)
    gap = min(1.5, step * 0.18)
    parts = []
    for i, value in enumerate(values):
        tall = (base - top) * value / largest
        if value > 0:
            tall = max(tall, 1.0)
        tip = f"<title>{escape(names[i])}</title>" if names else ""
        parts.append(
            f'<rect class="bar" x="{i * step + gap / 2:.2f}" y="{base - tall:.2f}" '
            f'width="{step - gap:.2f}" height="{tall:.2f}" rx="{min(2, step / 4):.1f}">{tip}</rect>'
        )
    parts.append(f'<line class="axis" x1="0" y1="{base}" x2="{WIDTH}" y2="{base}"/>')
    parts += [_marker(line, top, base, text) for line in lines]
    parts += [_tick(position, label, height, text) for position, label in ticks]
    return _svg(parts, height, title)


def stacked_bar(shares: Sequence[tuple[str, float, str]], *, title: str, height: int = 34) -> str:
    """One horizontal bar of (name, share 0..1, css class)."""
    parts, x = [], 0.0
    for name, share, css_class in shares:
        width = share * WIDTH
        parts.append(
            f'<rect class="{css_class}" x="{x:.2f}" y="0" width="{width:.2f}" height="{height}">'
            f"<title>{escape(name)}: {100 * share:.1f} %</title></rect>"
        )
        x += width
    return _svg(parts, height, title)


Series = Mapping[str, Sequence[tuple[float, float]]]
"""Name -> points (x, y) in the order in which they are joined."""


@dataclass(frozen=True)
class Axes:
    """Where values lie in a line chart of `WIDTH` by `height` units; the y axis of the drawing points down."""

    x: tuple[float, float]
    """Values at the left and right end; unequal."""
    y: tuple[float, float]
    """Values at the lower and upper end; unequal."""
    height: int
    log_x: bool = False
    left: float = 66
    """Units left of the axis, for its numbers."""
    text: float = 14
    """Size of the numbers in units."""

    @classmethod
    def around(
        cls, points: Sequence[tuple[float, float]], height: int, *, log_x: bool, y_top: float | None
    ) -> Axes:
        """As wide as the points; from 0 to `y_top` where it is given, else as high as they are."""
        y = _range([y for _, y in points]) if y_top is None else (0.0, y_top)
        return cls(_range([x for x, _ in points]), y, height, log_x=log_x)

    @property
    def base(self) -> float:
        """Of the x axis."""
        return self.height - 1.4 * self.text

    def across(self, x: float) -> float:
        """Units from the left."""
        low, high, at = (math.log(v) if self.log_x else v for v in (*self.x, x))
        return self.left + (at - low) / (high - low) * (WIDTH - self.left - 6)

    def down(self, y: float) -> float:
        """Units from the top."""
        top = self.text * 0.6
        return self.base - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.base - top)


def line_chart(
    series: Series,
    *,
    title: str,
    height: int = 220,
    log_x: bool = False,
    y_top: float | None = None,
) -> str:
    """Poly-lines over common axes with a legend. Empty where no line has a point.

    The axes span the points and have numbers at their ends; `y_top` = the y axis from 0 to here instead, `log_x` =
    logarithmic, with a number at every x that occurs.
    """
    series = {name: line for name, line in series.items() if line}
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    axes = Axes.around(points, height, log_x=log_x, y_top=y_top)
    xs = sorted({x for x, _ in points})
    parts = [_y_number(axes, share) for share in (0.0, 0.5, 1.0)]
    parts += [_x_number(axes, x) for x in (xs if log_x else axes.x)]
    parts += [_line(axes, i, name, line) for i, (name, line) in enumerate(series.items())]
    legend = "".join(
        f'<span><i style="background:var(--c{i % 8})"></i>{escape(name)}</span>'
        for i, name in enumerate(series)
    )
    return f'{_svg(parts, height, title)}<div class="legend">{legend}</div>'


def _y_number(axes: Axes, share: float) -> str:
    value = axes.y[0] + share * (axes.y[1] - axes.y[0])
    y = axes.down(value)
    return (
        f'<line class="axis" x1="{axes.left}" y1="{y:.1f}" x2="{WIDTH}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{axes.left - 6}" y="{y + axes.text / 3:.1f}" font-size="{axes.text}" '
        f'text-anchor="end">{_short(value)}</text>'
    )


def _x_number(axes: Axes, x: float) -> str:
    at = axes.across(x)
    anchor = "end" if at > WIDTH - 40 else "start" if at == axes.left else "middle"
    return (
        f'<text class="tick" x="{at:.1f}" y="{axes.height - axes.text * 0.2:.1f}" font-size="{axes.text}" '
        f'text-anchor="{anchor}">{x:,.10g}</text>'
    )


def _line(axes: Axes, number: int, name: str, line: Sequence[tuple[float, float]]) -> str:
    places = [(axes.across(x), axes.down(y)) for x, y in line]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in places]
    colour = f"var(--c{number % 8})"
    return (
        f'<g fill="{colour}" stroke="{colour}" stroke-width="1.8"><title>{escape(name)}</title>'
        f'<polyline points="{path}" fill="none"/>{"".join(dots) if len(dots) < 30 else ""}</g>'
    )


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


def _marker(line: Line, top: float, base: float, text: float) -> str:
    x = min(max(line.position, 0), 1) * WIDTH
    anchor = "start" if line.position < 0.5 else "end"
    shift = 4 if line.position < 0.5 else -4
    return (
        f'<line class="mark" x1="{x:.2f}" y1="{top * 0.2:.1f}" x2="{x:.2f}" y2="{base}"/>'
        f'<text class="marktext" x="{x + shift:.2f}" y="{top * 0.75:.1f}" font-size="{text}" text-anchor="{anchor}">'
        f"{escape(line.label)}</text>"
    )


def _short(value: float) -> str:
    """Three digits, or 3.0e-4 where those do not fit beside the axis."""
    text = f"{value:.3g}"
    return text if len(text) <= 6 else re.sub(r"e([+-])0", r"e\1", f"{value:.1e}")


def _tick(position: float, label: str, height: int, text: float) -> str:
    anchor = "start" if position <= 0 else "end" if position >= 1 else "middle"
    return (
        f'<text class="tick" x="{position * WIDTH:.2f}" y="{height - text * 0.25:.1f}" '
        f'font-size="{text}" text-anchor="{anchor}">'
        f"{escape(label)}</text>"
    )


def _svg(parts: Sequence[str], height: int, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )
