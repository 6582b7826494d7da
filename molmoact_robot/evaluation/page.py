"""`eval.html`: one page about an evaluation, in the style of the label report. Computed from results.json alone."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from molmoact_robot.evaluation.film import ENDED_IN_WORDS

MAX_SHOWN = 24
"""Episodes shown of each kind, failed and successful."""
_BAR = 640
"""Units of width of the interval chart."""


@dataclass(frozen=True)
class Shown:
    """One episode in the gallery."""

    name: str
    pill: str
    good: bool
    caption: str
    picture: str
    """Data address of the start picture; empty where there is none."""
    film: str
    """Path of the film, relative to the page; empty where there is none."""


def render_page(results: Mapping[str, Any], folder: Path) -> str:
    """The page as text; equal results and films give equal text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("molmoact_robot", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    trials = results["trials"]
    style = resources.files("molmoact_data.report").joinpath("report.css")
    return environment.get_template("eval.html").render(
        results=results,
        css=style.read_text(encoding="utf-8"),
        bars=[_bar(task, rate) for task, rate in results["per_task"].items()],
        width=_BAR,
        failed=[_shown(t, folder) for t in trials if t["ended"] != "success"][:MAX_SHOWN],
        successful=[_shown(t, folder) for t in trials if t["ended"] == "success"][:MAX_SHOWN],
        model=results["policy"]["checkpoint"],
        endings=ENDED_IN_WORDS,
        facts=_facts(results),
    )


def percent(share: float) -> str:
    """0.333 -> 33 %."""
    return f"{100 * share:.0f} %"


def _bar(task: str, rate: Mapping[str, Any]) -> dict[str, Any]:
    low, high = rate["interval"]
    return {
        "task": task,
        "low": low * _BAR,
        "high": high * _BAR,
        "at": rate["successes"] / rate["n"] * _BAR,
        "words": f"{rate['successes']} of {rate['n']}  ({percent(low)} to {percent(high)})",
    }


def _shown(trial: Mapping[str, Any], folder: Path) -> Shown:
    name = f"{trial['task'].replace('/', '-')}-{trial['index']:03d}"
    film, picture = folder / "episodes" / f"{name}.mp4", folder / "episodes" / f"{name}.jpg"
    address = ""
    if picture.is_file():
        address = "data:image/jpeg;base64," + base64.b64encode(picture.read_bytes()).decode()
    return Shown(
        name=name,
        pill=ENDED_IN_WORDS[trial["ended"]],
        good=trial["ended"] == "success",
        caption=trial["message"] if trial["ended"] == "environment_error" else trial["instruction"],
        picture=address,
        film=f"episodes/{film.name}" if film.is_file() else "",
    )


def _facts(results: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Every setting and version, one line each."""
    parts = {
        "settings": results["settings"],
        "environment": results["environment"],
        "policy": results["policy"],
        "versions": results["versions"],
    }
    return [(name, str(value)) for name, value in _lines(parts, "")]


def _lines(value: Any, where: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [line for key, item in value.items() for line in _lines(item, f"{where}{key}.")]
    return [(where.rstrip("."), value)]
