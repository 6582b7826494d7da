"""`eval.html`: one page about an evaluation. Computed from results.json alone."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molmoact_data.pages.page import Card, Figure, percent, plain, render_page
from molmoact_robot.evaluation.film import ENDED_IN_WORDS

MAX_SHOWN = 24
"""Episodes shown of each kind, failed and successful."""


def render_results(results: Mapping[str, Any], folder: Path) -> str:
    """The page as text; equal results and films give equal text."""
    trials = results["trials"]
    failed = [t for t in trials if t["ended"] != "success"]
    successful = [t for t in trials if t["ended"] == "success"]
    galleries = {"Failed episodes": failed, "Successful episodes": successful}
    player = results["settings"]["player"]
    return render_page(
        __package__,
        "eval.html",
        kind="Closed-loop evaluation",
        heading=f"{_model(results)} in {player['env']}",
        facts=_facts(results),
        cards=_cards(results),
        results=results,
        bars=[_bar(task, rate) for task, rate in results["per_task"].items()],
        galleries={
            title: [_figure(t, folder) for t in shown[:MAX_SHOWN]]
            for title, shown in galleries.items()
            if shown
        },
        endings=ENDED_IN_WORDS,
        settings=_settings(results),
    )


def _model(results: Mapping[str, Any]) -> str:
    """As it was asked for; of a folder its own name."""
    asked = results["settings"]["player"]["checkpoint"] or results["policy"]["checkpoint"]
    return Path(asked).name


def _facts(results: Mapping[str, Any]) -> dict[str, object]:
    rollout = results["settings"]["player"]["rollout"]
    facts: dict[str, object] = {
        "policy": f"{results['policy']['family']} {results['policy']['sha256'][:12]}",
        "seeds from": results["settings"]["seed"],
        "executed per answer": rollout["execute"] or "all steps",
    }
    return facts if rollout["steer"] == "none" else {**facts, "steered by": rollout["steer"]}


def _cards(results: Mapping[str, Any]) -> list[Card]:
    n, (low, high), answers = results["n"], results["interval"], results["predictions"]
    cards = [
        Card(
            percent(results["successes"] / n),
            f"success, 95 % interval {percent(low)} to {percent(high)}",
        ),
        Card(f"{results['successes']}", "episodes", f"of {n}"),
        Card(f"{results['mean_steps']:.0f}", "steps per episode"),
        Card(f"{answers['failed']}", "answers that were no actions", f"of {answers['total']}"),
    ]
    error = results["path_error"]["mean"]
    if error is not None:
        label = "mean distance of predicted and taken path, on 0..255"
        cards.append(Card(f"{error:.1f}", label))
    return cards


def _bar(task: str, rate: Mapping[str, Any]) -> dict[str, Any]:
    """Places in percent of the width."""
    low, high = rate["interval"]
    return {
        "task": task,
        "low": 100 * low,
        "high": 100 * high,
        "at": 100 * rate["successes"] / rate["n"],
        "words": f"{rate['successes']} of {rate['n']}  ({percent(low)} to {percent(high)})",
    }


def _figure(trial: Mapping[str, Any], folder: Path) -> Figure:
    name = f"{trial['task'].replace('/', '-')}-{trial['index']:03d}"
    film, picture = folder / "episodes" / f"{name}.mp4", folder / "episodes" / f"{name}.jpg"
    address = ""
    if picture.is_file():
        address = "data:image/jpeg;base64," + base64.b64encode(picture.read_bytes()).decode()
    return Figure(
        name=name,
        address=address,
        pill=ENDED_IN_WORDS[trial["ended"]],
        verdict="good" if trial["ended"] == "success" else "bad",
        caption=trial["message"] if trial["ended"] == "environment_error" else trial["instruction"],
        film=f"episodes/{film.name}" if film.is_file() else "",
    )


def _settings(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every setting and version, one line each."""
    parts = {key: results[key] for key in ("settings", "environment", "policy", "versions")}
    return [(name, plain(value)) for name, value in _lines(parts, "")]


def _lines(value: Any, where: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [line for key, item in value.items() for line in _lines(item, f"{where}{key}.")]
    return [(where.rstrip("."), value)]
