"""`report.html` of a general set: what is in it, what is not, and what a few rows look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.files.folders import write_bytes
from molmoact_data.pages.charts import bar_chart
from molmoact_data.pages.page import Card, Figure, percent, render_page
from molmoact_data.pictures.images import decode_image
from molmoact_data.report.pictures import jpeg_address, shrink
from molmoact_data.text.annotations import load
from molmoact_data.web.measures import WebMeasures
from molmoact_data.web.rows import ANNOTATIONS, CONVERSATIONS, IMAGE, KEY

EXAMPLES = 12
CAPTION_CHARACTERS = 220
MAX_TICKS = 6
"""Numbers below a chart, so that they stand apart on a phone."""
REASONS: Mapping[str, str] = {
    "link_dead": "no such host, no answer in time, a status that is not 200, redirects without end",
    "link_busy": "429 or 5xx after all tries, or a pause longer than is waited for",
    "link_refused": "not http, or a private address",
    "too_large": "above the limit of bytes or pixels",
    "not_a_picture": "a page instead of a picture, or half a picture",
    "not_eight_bit": "grey levels that do not fit into 8 bits",
    "other_content": "the sha256 is not the one that the set names",
    "file_missing": "the raw files lack the picture",
}
"""Every reject of a picture in words."""


def write_web_report(output: Path, manifest: Mapping[str, Any]) -> None:
    """Draw the page of a finished output; equal outputs give equal bytes."""
    write_bytes(output / schema.REPORT_FILE, render_web_report(output, manifest).encode())


def render_web_report(output: Path, manifest: Mapping[str, Any]) -> str:
    """The page as text, from the manifest and the shards."""
    measures = WebMeasures.from_json(manifest["measures"])
    return render_page(
        __package__,
        "web.html",
        kind="Web data",
        heading=manifest["set"],
        facts={
            "class": manifest["reference"],
            "split": manifest["config"]["split"],
            "licence": manifest["licence"],
        },
        cards=_cards(manifest, measures),
        rejects=[(reason, count, REASONS[reason]) for reason, count in manifest["rejects"].items()],
        hosts=list(manifest["dead_links_by_host"].items()),
        styles=sorted(measures.styles.items(), key=lambda item: (-item[1], item[0])),
        formats=sorted(measures.formats.items(), key=lambda item: (-item[1], item[0])),
        sides=_powers(measures.sides_px, "pictures", "by their longer side", "px"),
        answers=_powers(measures.answer_characters, "answers", "by their length", "characters"),
        examples=_examples(output, manifest["shards"]),
    )


def _cards(manifest: Mapping[str, Any], measures: WebMeasures) -> list[Card]:
    rows, rejected = manifest["rows"], sum(manifest["rejects"].values())
    return [
        Card(f"{rows:,}", "pictures with what is said about them"),
        Card(f"{measures.styles.total():,}", "annotations"),
        Card(f"{manifest['size_in_mixture']:,}", "count in the mixture"),
        Card(f"{rejected:,}", "examples left out", percent(rejected / max(1, rows + rejected))),
    ]


def _powers(counts: Mapping[str, int], what: str, order: str, unit: str) -> str:
    """A bar for every power of two from the first that occurs to the last."""
    found = {int(power).bit_length() - 1: count for power, count in counts.items()}
    if not found:
        return ""
    exponents = range(min(found), max(found) + 1)
    values = [found.get(exponent, 0) for exponent in exponents]
    names = [
        f"up to {2**exponent:,} {unit}: {n:,}"
        for exponent, n in zip(exponents, values, strict=True)
    ]
    middles = [(i + 0.5) / len(values) for i in range(len(values))]
    ticks = [(at, f"{2**exponent:,}") for at, exponent in zip(middles, exponents, strict=True)]
    ticks = ticks[:: -(-len(ticks) // MAX_TICKS)]
    title = f"{what} {order} in {unit}"
    return bar_chart(values, title=title, y=what, x=unit, names=names, ticks=ticks)


def _examples(output: Path, shards: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Rows spread evenly over the shards, with their points drawn."""
    ends = np.cumsum([shard["rows"] for shard in shards])
    total = int(ends[-1])
    places = np.unique(np.linspace(0, total - 1, min(EXAMPLES, total)).round().astype(int))
    figures = []
    for number in np.unique(np.searchsorted(ends, places, side="right")):
        first = int(ends[number]) - shards[number]["rows"]
        members = [int(p) - first for p in places if first <= p < ends[number]]
        with pq.ParquetFile(output / shards[number]["name"]) as file:
            figures += [_figure(row) for row in _rows(file, members)]
    return figures


def _rows(file: pq.ParquetFile, members: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of one shard; one row group in memory at a time."""
    columns, found, first = [IMAGE, CONVERSATIONS, ANNOTATIONS, KEY], [], 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        mine = [member - first for member in members if first <= member < first + count]
        if mine:
            found += file.read_row_group(group, columns=columns).take(mine).to_pylist()
        first += count
    return found


def _figure(row: Mapping[str, Any]) -> Figure:
    annotations = load(row[ANNOTATIONS])
    points = [point for a in annotations for point in a.points or ()]
    points += [p for a in annotations for part in a.inline_points for p in part.points]
    rgb = _dotted(shrink(decode_image(row[IMAGE]["bytes"])), points)
    question, answer, *more = row[CONVERSATIONS]["value"]
    told = f"{question} → {answer}" if question else answer
    return Figure(
        name=row[KEY],
        address=jpeg_address(rgb),
        pill=annotations[0].style if not more else f"{len(annotations)} annotations",
        verdict="good",
        caption=told
        if len(told) <= CAPTION_CHARACTERS
        else f"{told[:CAPTION_CHARACTERS].rstrip()} …",
        width=rgb.shape[1],
        height=rgb.shape[0],
    )


def _dotted(rgb_HWC: NDArray[np.uint8], points: Sequence[tuple[float, float]]) -> NDArray[np.uint8]:
    """Dots at points in percent of the picture."""
    import cv2

    height, width = rgb_HWC.shape[:2]
    drawn = rgb_HWC.copy()
    for x, y in points:
        at = (round(x / 100 * width), round(y / 100 * height))
        cv2.circle(drawn, at, 5, (0, 0, 0), -1, cv2.LINE_AA)
        cv2.circle(drawn, at, 4, (0, 255, 255), -1, cv2.LINE_AA)
    return drawn
