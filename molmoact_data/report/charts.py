"""Small charts as inline SVG. Colours come from the page's CSS, so they follow light and dark."""

from __future__ import annotations

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


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]], *, title: str, height: int = 190
) -> str:
    """Name -> points (x, y) as poly-lines over common axes, with a legend; numbers at the ends of both axes."""
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_range, y_range = _range(xs), _range(ys)
    left, base, top = 46.0, height - 14.0, 6.0

    def place(x: float, y: float) -> str:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / (y_range[1] - y_range[0])
        return f"{left + across * (WIDTH - left - 4):.1f},{base - up * (base - top):.1f}"

    parts = [f'<line class="axis" x1="{left}" y1="{base}" x2="{WIDTH}" y2="{base}"/>']
    for share in (0.0, 0.5, 1.0):
        value, y = y_range[0] + share * (y_range[1] - y_range[0]), base - share * (base - top)
        parts.append(
            f'<text class="tick" x="{left - 5}" y="{y + 3:.1f}" font-size="9" text-anchor="end">{value:.3g}</text>'
        )
    for value, x, anchor in ((x_range[0], left, "start"), (x_range[1], WIDTH, "end")):
        parts.append(
            f'<text class="tick" x="{x}" y="{height - 2}" font-size="9" text-anchor="{anchor}">{value:,.10g}</text>'
        )
    for number, (name, line) in enumerate(series.items()):
        colour = f"var(--c{number % 8})"
        tip = f"<title>{escape(name)}</title>"
        path = " ".join(place(x, y) for x, y in line)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6">{tip}</polyline>'
        )
        if len(line) < 30:
            parts += [
                f'<circle cx="{p.partition(",")[0]}" cy="{p.partition(",")[2]}" r="2.4" fill="{colour}">{tip}</circle>'
                for p in path.split(" ")
            ]
    legend = "".join(
        f'<span><i style="background:var(--c{number % 8})"></i>{escape(name)}</span>'
        for number, name in enumerate(series)
    )
    return f'{_svg(parts, height, title)}<div class="legend">{legend}</div>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis; a single value gets one with room on both sides."""
    low, high = min(values), max(values)
    room = abs(low) or 1.0
    return (low, high) if high > low else (low - room / 2, high + room / 2)


def _marker(line: Line, top: float, base: float, text: float) -> str:
    x = min(max(line.position, 0), 1) * WIDTH
    anchor = "start" if line.position < 0.5 else "end"
    shift = 4 if line.position < 0.5 else -4
    return (
        f'<line class="mark" x1="{x:.2f}" y1="{top * 0.2:.1f}" x2="{x:.2f}" y2="{base}"/>'
        f'<text class="marktext" x="{x + shift:.2f}" y="{top * 0.75:.1f}" font-size="{text}" text-anchor="{anchor}">'
        f"{escape(line.label)}</text>"
    )


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
