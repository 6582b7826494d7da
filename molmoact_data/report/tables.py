"""The parts of a report that are tables and histograms: codes, actions, rejects, teachers, configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from molmoact_data import schema
from molmoact_data.labels.quality import QualitySums
from molmoact_data.outputs.manifest import Manifest
from molmoact_data.report.charts import Line, bar_chart
from molmoact_data.report.data import HISTOGRAM_BINS, ReportData
from molmoact_data.report.findings import percent

MAX_LISTED_REJECTS = 50


def section(title: str, lead: str, body: str) -> str:
    """A heading, a sentence under it, and what follows."""
    return f'<h2>{escape(title)}</h2><p class="lead">{escape(lead)}</p>{body}'


def codes(quality: Mapping[str, Any], sums: QualitySums) -> str:
    """How often each code occurs."""
    if quality["codes_used"] is None:
        return ""
    counts = np.array(sums.code_counts)
    total = max(int(counts.sum()), 1)
    chart = bar_chart(
        counts.tolist(),
        title="How often each depth code occurs",
        height=170,
        names=[f"code {i}: {percent(n / total)}" for i, n in enumerate(counts.tolist())],
        ticks=[(0, "code 0"), (1, f"code {len(counts) - 1}")],
    )
    even = f"{quality['code_perplexity']:.1f}"
    change = quality["code_change_rate"]
    words = (
        "" if change is None else f" {percent(change)} of the codes differ from the frame before."
    )
    return section(
        "Depth codes",
        f"{quality['codes_used']} of {quality['codebook_size']} codes occur; their perplexity is {even}, so the "
        f"codebook is used as if it had {even} equally likely codes.{words}",
        f'<div class="card">{chart}</div>',
    )


def actions(data: ReportData) -> str:
    """A histogram per dimension with the quantiles that scale it."""
    if data.statistics is None or data.action_histogram_DB is None or data.clipped_D is None:
        return ""
    cells = "".join(_action_cell(data, d) for d in range(data.statistics.spec.dim))
    chunk = data.manifest.labels
    return section(
        "Actions",
        f"Raw values of every dimension over the whole dataset. The dashed lines are the 1 % and 99 % quantiles "
        "that scaling uses; what lies outside is clipped. Bars grow with the square root of the "
        f"count. {chunk['action_bins']} bins, chunks of "
        f"{chunk['action_chunk_size']}.",
        f'<div class="dims">{cells}</div>',
    )


def _action_cell(data: ReportData, d: int) -> str:
    assert data.statistics is not None
    assert data.action_histogram_DB is not None
    assert data.clipped_D is not None
    action, spec = data.statistics.action, data.statistics.spec.dimensions[d]
    low, high = float(action.min[d]), float(action.max[d])
    span = (high - low) or 1.0
    counts = data.action_histogram_DB[d].tolist()
    lines = [
        Line((float(action.q01[d]) - low) / span, f"{action.q01[d]:.3g}"),
        Line((float(action.q99[d]) - low) / span, f"{action.q99[d]:.3g}"),
    ]
    chart = bar_chart(
        np.sqrt(counts).tolist(),
        title=f"Histogram of action dimension {d}",
        height=280,
        text=30,
        names=[
            f"{low + span * i / HISTOGRAM_BINS:.4g}: {n:,} values" for i, n in enumerate(counts)
        ],
        lines=lines if spec.normalize else (),
        ticks=[(0, f"{low:.3g}"), (1, f"{high:.3g}")],
    )
    name = f"dimension {d}" + (" · gripper" if spec.gripper else "")
    how = "scaled by quantiles" if spec.normalize else "not scaled"
    how += ", stored as 1 - a" if spec.invert else ""
    clipped = f"; {percent(float(data.clipped_D[d]))} clipped" if spec.normalize else ""
    return f'<div class="card"><h3>{name}</h3>{chart}<div class="label">{how}{clipped}.</div></div>'


def rejects(data: ReportData) -> str:
    """Episodes that are not in the output."""
    if not data.rejects:
        return ""
    rows = "".join(
        f"<tr><td>{row[schema.EPISODE_INDEX]}</td><td><b>{escape(row['reason'])}</b></td>"
        f"<td>{escape(row['detail'])}</td></tr>"
        for row in data.rejects[:MAX_LISTED_REJECTS]
    )
    more = len(data.rejects) - MAX_LISTED_REJECTS
    note = f"<p class='label'>and {more} more in {schema.REJECTS_FILE}</p>" if more > 0 else ""
    return section(
        "Rejected episodes",
        "None of their frames is in the output.",
        '<div class="card scroll"><table><tr><th>episode</th><th>reason</th><th>detail</th></tr>'
        f"{rows}</table>{note}</div>",
    )


def teachers(manifest: Manifest) -> str:
    """Models and licences."""
    if not manifest.teachers:
        return ""
    rows = ""
    for role, card in manifest.teachers.items():
        known = {"name", "revision", "licence"}
        rest = ", ".join(f"{k} {v}" for k, v in card.items() if k not in known)
        licence = card.get("licence", "not stated")
        css = "warn" if "nc" in licence.lower().split("-") else "good"
        rows += (
            f"<tr><td>{escape(role.replace('_', ' '))}</td><td><b>{escape(card.get('name', '?'))}</b>"
            f"<div class='label'>{escape(card.get('revision', ''))}</div></td>"
            f"<td><span class='pill {css}' style='float:none'>{escape(licence)}</span></td>"
            f"<td>{escape(rest)}</td></tr>"
        )
    return section(
        "Teachers and their licences",
        "Labels inherit the conditions of the models that made them.",
        '<div class="card scroll"><table><tr><th>role</th><th>model</th><th>licence</th><th>recipe</th></tr>'
        f"{rows}</table></div>",
    )


def configuration(manifest: Manifest) -> str:
    """The resolved configuration, folded away, and the footer."""
    text = json.dumps(manifest.fingerprint, indent=2, sort_keys=True)
    hashes = f"config {manifest.config_hash[:16]} · statistics {manifest.statistics_sha256[:16]}"
    return (
        f'<h2>Configuration</h2><div class="card"><details><summary>{escape(hashes)}</summary>'
        f"<pre>{escape(text)}</pre></details></div>"
        f"<footer>Made by <code>molmoact</code> from {escape(schema.MANIFEST_FILE)} and the shards beside it. "
        "Pictures are a fixed function of the content: the same output gives the same page.</footer>"
    )
