"""`run.html`: one page about a training run. Computed from the run's own files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from molmoact_data import runs
from molmoact_data.files.folders import write_bytes
from molmoact_data.pages.charts import line_chart
from molmoact_data.pages.page import Card, Figure, plain, render_page
from molmoact_train.monitoring.answers import read_answers

PAGE_FILE = "run.html"
PANELS: Mapping[str, tuple[str, str]] = {
    "Loss": (r"(train|eval)/(\w+_)?(loss|cross_entropy)$|eval/loss", "nats per token"),
    "Held-out loss by group": (r"eval/group/", "nats per token"),
    "Accuracy": (r"(train|eval)/.*accuracy", "share of tokens or codes, 0 to 1"),
    "Held-out traces": (r"eval/trace_.*error", "grid units, 0 to 255"),
    "Held-out actions": (r"eval/.*action_error", "the robot's units"),
    "Gradient norms": (r"grad_norm/", "L2 norm before clipping"),
    "Learning rates": (r"lr/", "learning rate"),
    "Speed": (r"speed/samples_per_second", "samples per second"),
    "Memory": (r"memory/", "GiB"),
}
"""Title -> the beginning of the names drawn under it, and their unit."""
_SETTINGS = (
    "family", "stage", "checkpoint", "data", "duration", "global_batch_size", "device_batch_size", "seq_len",
    "lora", "seed",
)  # fmt: skip


def write_run_page(run: Path, config: Mapping[str, Any]) -> None:
    """Draw the page of a run from its `metrics.jsonl`; equal files give equal bytes."""
    lines = runs.read_metrics(run / runs.METRICS_FILE)
    text = render_run_page(run.name, config, lines, read_answers(run))
    write_bytes(run / PAGE_FILE, text.encode())


def render_run_page(
    name: str,
    config: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    answers: Sequence[Figure] = (),
) -> str:
    """The page as text."""
    series = series_of(lines)
    return render_page(
        __package__,
        "run.html",
        kind="Training run",
        heading=name,
        cards=_cards(config, series),
        panels=[
            (title, line_chart(found, title=title, y=unit, x="step"))
            for title, (pattern, unit) in PANELS.items()
            if (found := {n: s for n, s in series.items() if re.match(pattern, n)})
        ],
        answers=answers,
        settings={key: plain(config[key]) for key in _SETTINGS if key in config},
    )


def series_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Name -> [(step, value), ...] in the order of the steps."""
    series: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step":
                series.setdefault(name, []).append((float(line["step"]), float(value)))
    return dict(sorted(series.items()))


def _cards(
    config: Mapping[str, Any], series: Mapping[str, Sequence[tuple[float, float]]]
) -> list[Card]:
    """What a person looks for first."""
    steps = max((points[-1][0] for points in series.values()), default=0)
    cards = [Card(f"{steps:,.0f}", "steps", f"of {config['duration']:,}")]
    for name, label in {
        "train/loss": "training loss",
        "eval/loss": "held-out loss",
        "eval/code_accuracy": "depth codes right, held out",
        "eval/trace_distance_error": "trace distance, held out",
        "eval/action_error": "action error, held out",
        "speed/samples_per_second": "samples per second",
        "memory/peak_gib": "GiB at most",
    }.items():
        if name in series:
            cards.append(Card(f"{series[name][-1][1]:.3g}", label))
    return cards
