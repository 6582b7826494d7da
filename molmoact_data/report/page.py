"""`report.html`: one self-contained page about an output. No clock, no randomness, nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from molmoact_data import schema
from molmoact_data.files.storage import Storage
from molmoact_data.labels.quality import QualitySums, merge
from molmoact_data.outputs.manifest import Manifest
from molmoact_data.outputs.output import open_parquet
from molmoact_data.pictures.images import decode_image
from molmoact_data.report.charts import bar_chart, stacked_bar
from molmoact_data.report.data import FrameRef, ReportData, read_report_data
from molmoact_data.report.findings import findings, overall, percent
from molmoact_data.report.pictures import Picture, heat_picture, read_pictures, strips_picture
from molmoact_data.report.tables import actions, codes, configuration, rejects, section, teachers

REASON_WORDS = {
    "no_point_now": "the pointer did not find the gripper in this frame",
    "out_of_frame": "the point lies outside the frame",
    "jump": "the point is far from its neighbours in time",
    "other_track": "a whole stretch lies on another track, a second robot for example",
    "no_consistent_path": "the episode's points form no path",
    "too_few_points_left": "too few later frames have a believable point",
    "no_point_left": "no later frame has a point",
}


def write_report(output_dir: str | Path, manifest: Manifest | None = None) -> None:
    """Write `report.html` beside the shards of an output (local folder or URL).

    `manifest` is given while the output is being finished, because its file is written last.
    """
    storage = Storage(str(output_dir))
    storage.write_bytes(schema.REPORT_FILE, render(storage, manifest).encode())


def render(storage: Storage, manifest: Manifest | None = None) -> str:
    """The page as text; equal outputs give equal text."""
    data = read_report_data(storage, manifest)
    camera = data.manifest.labelled_camera
    refs = {*data.surest, *data.worst, *data.plain, *(r for g in data.rejected.values() for r in g)}
    pictures = read_pictures(storage, sorted(refs), camera)
    sums = merge(QualitySums.from_json(s.quality) for s in data.manifest.shards)
    sections = [
        _findings(data),
        _coverage(data, sums, _heat(data, storage, camera)),
        _strips(data),
        _trace_quality(data),
        _frames(data, pictures),
        codes(data.manifest.quality, sums),
        actions(data),
        rejects(data),
        teachers(data.manifest),
        configuration(data.manifest),
    ]
    package = resources.files("molmoact_data.report")
    template = Template(package.joinpath("report_template.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=f"{escape(data.manifest.dataset.name)} – label report",
        css=package.joinpath("report.css").read_text(encoding="utf-8"),
        header=_header(data.manifest),
        body="\n".join(section for section in sections if section),
    )


def _header(manifest: Manifest) -> str:
    dataset = manifest.dataset
    numbers = "".join(
        f'<div class="card"><div class="number">{n}</div><div class="label">{escape(text)}</div></div>'
        for n, text in _cards(manifest)
    )
    facts = {
        "revision": dataset.revision[:19],
        "format": dataset.format,
        "robot": dataset.robot_type or "not named",
        "labelled camera": manifest.cameras[manifest.labelled_camera],
        "schema": manifest.schema_version,
    }
    meta = "".join(f"<span>{escape(k)} <b>{escape(str(v))}</b></span>" for k, v in facts.items())
    return (
        '<header><div class="eyebrow">Label report</div>'
        f'<h1>{escape(dataset.name)}</h1><div class="meta">{meta}</div>'
        f'<div class="cards">{numbers}</div></header>'
    )


def _cards(manifest: Manifest) -> list[tuple[str, str]]:
    """The first numbers of the page, as HTML, each with its words."""
    dataset, counts, quality = manifest.dataset, manifest.counts, manifest.quality
    frames = counts.frames
    cards = [
        (f"{counts.episodes:,}", "episodes"),
        (f"{frames:,}", "frames"),
        (
            _size(counts.bytes),
            f"in {counts.shards:,} shard" + ("s" if counts.shards != 1 else ""),
        ),
    ]
    if dataset.fps:
        minutes = f"{frames / dataset.fps / 60:,.1f} <small>min</small>"
        cards.insert(2, (minutes, f"at {dataset.fps:g} fps"))
    if quality["trace_coverage"] is not None:
        cards.append((percent(quality["trace_coverage"]), "frames with a trace"))
        cards.append((f"{quality['mean_trace_quality']:.2f}", "mean trace quality, 0 to 1"))
    if quality["codes_used"] is not None:
        used = f"{quality['codes_used']} <small>of {quality['codebook_size']}</small>"
        cards.append((used, "depth codes used"))
    cards.append((f"{counts.rejected_episodes:,}", "rejected episodes"))
    return cards


def _findings(data: ReportData) -> str:
    found = findings(data)
    items = "".join(
        f'<li class="{f.verdict}"><b>{escape(f.headline)}:</b> {escape(f.meaning)}</li>'
        for f in found
    )
    verdict = overall(found)
    steps = "".join(f"<li>{escape(step)}</li>" for step in verdict.next_steps)
    then = f"<p>What to do next</p><ol>{steps}</ol>" if steps else ""
    return (
        f'<div class="verdict {verdict.verdict}"><b>{escape(verdict.headline)}</b> '
        f'<span class="label">{escape(verdict.meaning)}</span>{then}</div>'
        f'<ul class="findings">{items}</ul>'
    )


def _coverage(data: ReportData, sums: QualitySums, heat: str) -> str:
    quality = data.manifest.quality
    if quality["trace_coverage"] is None:
        return ""
    rejected = sorted(quality["rejected_frames"].items(), key=lambda item: -item[1])
    shares = [("usable trace", quality["trace_coverage"], "s0")]
    shares += [(name, share, f"s{i % 7 + 1}") for i, (name, share) in enumerate(rejected)]
    legend = "".join(
        f'<span title="{escape(REASON_WORDS.get(name, name), quote=True)}">'
        f'<i style="background:var(--c{css[1:]})"></i>{escape(name.replace("_", " "))} {percent(share)}</span>'
        for name, share, css in shares
    )
    chart = stacked_bar(shares, title="Share of frames with a trace, and why not")
    return section(
        "Coverage",
        "Every frame is in the output. A frame whose own point is missing or not believable has no trace, "
        "and says why.",
        f'<div class="card stack">{chart}<div class="legend">{legend}</div></div>'
        '<div class="two" style="margin-top:14px">'
        f'<div class="card scroll"><h3>The pointer</h3><table>{_pointer_rows(quality)}</table>'
        f'<h3 style="margin-top:22px">Points per trace</h3>{_trace_lengths(sums.trace_lengths)}</div>{heat}</div>',
    )


def _pointer_rows(quality: Mapping[str, Any]) -> str:
    rows = [
        ("pointer found the gripper", quality["point_coverage"]),
        ("found points that the filter removed", quality["filtered_share"]),
        ("steps that jump, before the filter", quality["jump_rate"]),
        ("moving steps that reverse, before the filter", quality["reversal_rate"]),
        ("tracked points that agree both ways", quality["forward_backward_agreement"]),
    ]
    return "".join(
        f"<tr><td>{escape(name)}</td><td>{percent(value)}</td></tr>"
        for name, value in rows
        if value is not None
    )


def _trace_lengths(counts: Sequence[int]) -> str:
    """`counts[n]` = traces of n points."""
    return bar_chart(
        counts,
        title="Traces by their number of points",
        height=190,
        text=16,
        names=[f"{n} points: {count:,}" for n, count in enumerate(counts)],
        ticks=[((n + 0.5) / len(counts), str(n)) for n in range(len(counts))],
    )


def _strips(data: ReportData) -> str:
    if not data.strips:
        return ""
    names = "".join(f"<span>{episode}</span>" for _, episode in data.strips)
    tall = max(60, 14 * len(data.strips))
    return section(
        "Episodes over time",
        "One row per episode (a sample, by index), from its first frame to its last. Cyan: a sure trace. "
        "Yellow: a doubtful one. Red: none.",
        f'<div class="card strips" style="height:{tall + 28}px"><div class="names">{names}</div>'
        f'<img alt="Trace quality over time" src="{strips_picture(data.strips)}"></div>',
    )


def _trace_quality(data: ReportData) -> str:
    histogram = data.manifest.quality["quality_histogram"]
    if not histogram:
        return ""
    size = len(histogram)
    total = sum(histogram)
    chart = bar_chart(
        histogram,
        title="Frames by trace quality",
        height=170,
        names=[
            f"{i / size:.2f} to {(i + 1) / size:.2f}: {n:,} frames, {percent(n / total)}"
            for i, n in enumerate(histogram)
        ],
        ticks=[(0, "0"), (0.5, "0.5"), (1, "1")],
    )
    return section(
        "Trace quality",
        "Pointer confidence now, times the share of the nearest points in time that agree with it, times the "
        "share of the frames from now on that hold a believed point. 0 where there is no trace.",
        f'<div class="card">{chart}</div>',
    )


def _heat(data: ReportData, storage: Storage, camera: str) -> str:
    refs = data.surest or data.worst or [r for group in data.rejected.values() for r in group]
    if data.heat_YX is None or not data.heat_YX.any() or not refs:
        return ""
    picture = heat_picture(data.heat_YX, _first_frame(storage, refs[0], camera))
    return (
        '<div class="card"><h3>Where the pointer sees the gripper</h3>'
        f'<img class="heat" alt="Density of points over the frame" src="{picture}"></div>'
    )


def _first_frame(storage: Storage, ref: FrameRef, camera: str) -> np.ndarray:
    name = schema.image_column(camera)
    with open_parquet(storage, ref.shard) as file:
        table = file.read_row_group(ref.row_group, columns=[name])
    return decode_image(table[name][ref.row].as_py()["bytes"])


def _frames(data: ReportData, pictures: Mapping[FrameRef, Picture]) -> str:
    parts = []
    if data.plain:
        parts.append(section("Frames", "A sample.", _gallery(data.plain, pictures)))
    if data.surest:
        note = (
            "The cyan line is what the model is asked to predict and what is drawn in trajectory-conditioned "
            "samples. The red dot is where the pointer sees the gripper now. Under a picture: episode · frame, and "
            "the trace's quality: how sure it is, not whether it is right."
        )
        parts.append(section("The surest frames", note, _gallery(data.surest, pictures)))
    if data.worst:
        note = "Traces of the lowest quality that are still in the output, lowest first."
        title = f"The {len(data.worst)} least sure frames"
        parts.append(section(title, note, _gallery(data.worst, pictures)))
    if data.rejected:
        groups = "".join(
            f"<h3 style='margin-top:16px'>{escape(reason.replace('_', ' '))} "
            f"<span class='label'>{escape(REASON_WORDS.get(reason, ''))}</span></h3>"
            + _gallery(refs, pictures)
            for reason, refs in data.rejected.items()
        )
        note = "Examples of every reason for which a frame has no trace."
        parts.append(section("Frames without a trace", note, groups))
    return "\n".join(parts)


def _gallery(refs: Sequence[FrameRef], pictures: Mapping[FrameRef, Picture]) -> str:
    return f'<div class="frames">{"".join(_figure(pictures[ref]) for ref in refs)}</div>'


def _figure(picture: Picture) -> str:
    ref = picture.ref
    css = "bad" if ref.reason else "good" if ref.quality >= 0.7 else "warn"
    pill = ref.reason.replace("_", " ") if ref.reason else f"{ref.quality:.2f}"
    return (
        f'<figure><img loading="lazy" width="{picture.width}" height="{picture.height}" '
        f'alt="Episode {ref.episode}, frame {ref.frame}" src="{picture.address}"><figcaption>'
        f'<span class="pill {css}">{escape(pill)}</span>'
        f'<span class="where">{ref.episode} · {ref.frame}</span>'
        f'<span class="task">{escape(picture.instruction)}</span></figcaption></figure>'
    )


def _size(num_bytes: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} <small>{unit}</small>"
        num_bytes = round(num_bytes / 1000, 3)  # type: ignore[assignment]
    return f"{num_bytes:.3g} <small>TB</small>"
