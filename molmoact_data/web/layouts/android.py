"""AndroidControl: gzipped TFRecords of whole episodes; every screen but the last of an episode is an example.

A gzipped file cannot be read from its middle, so the screens are written beside it once, with the bytes they have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from molmoact_data.errors import UserError
from molmoact_data.files.folders import write_bytes
from molmoact_data.sources.rlds.tfrecord import (
    DamagedRecordError,
    open_records,
    parse_example,
    read_record,
)
from molmoact_data.text.annotations import Annotation
from molmoact_data.web.examples import Picture, WebExample, field, read_json

SCREENS = "screens"
_FEATURES = (
    "episode_id", "goal", "screenshots", "screenshot_widths", "screenshot_heights", "actions",
    "step_instructions",
)  # fmt: skip
_POINTED = {"click": "Click", "long_press": "Long Press"}
_NAMED = {
    "open_app": ("Open App", "app_name"),
    "scroll": ("Scroll", "direction"),
    "input_text": ("Type", "text"),
}
_PLAIN = {"navigate_home": "Navigate Home", "navigate_back": "Navigate Back", "wait": "Wait"}


def android_control(root: Path, split: str) -> Iterator[WebExample]:
    """Four annotations a screen: from the step, from goal and step, from the goal, and from the goal with a plan."""
    episodes = set(read_json(root, "splits.json")[split])
    for path in sorted(root.glob("android_control-*-of-*")):
        for episode in _episodes(path):
            if int(episode["episode_id"][0]) in episodes:
                yield from _screens(root, episode)


def _episodes(path: Path) -> Iterator[Mapping[str, Any]]:
    number = 0
    try:
        with open_records(path) as file:
            while (payload := read_record(file, f"{path.name}, record {number}")) is not None:
                yield parse_example(payload, _FEATURES)
                number += 1
    except (DamagedRecordError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}. Download it again.") from error


def _screens(root: Path, episode: Mapping[str, Any]) -> Iterator[WebExample]:
    name = int(episode["episode_id"][0])
    goal = field(episode, "goal", f"episode {name}")[0].decode()
    # The last screen is what the last action led to; nothing is done there.
    for step, screen in enumerate(episode["screenshots"][:-1]):
        file = f"{SCREENS}/{name}_{step}.png"
        if not (root / file).is_file():
            write_bytes(root / file, screen)
        size = int(episode["screenshot_widths"][step]), int(episode["screenshot_heights"][step])
        action = action_text(json.loads(episode["actions"][step]), *size)
        told = four_annotations(goal, episode["step_instructions"][step].decode(), action)
        yield WebExample(f"{name}_{step}", Picture(file=file), told)


def four_annotations(goal: str, step: str, action: str) -> tuple[Annotation, ...]:
    """The published four questions about one screen."""
    asked = {
        f"low_level: {step}": action,
        f"high_level: {goal} low_level: {step}": action,
        f"high_level: {goal}": action,
        f"high_level_cot: {goal}": f"Plan: {step} Action: {action}",
    }
    return tuple(Annotation("android_control", q, (a,)) for q, a in asked.items())


def action_text(action: Mapping[str, Any], width_px: int, height_px: int) -> str:
    """An action of the set -> its words; places in percent of the screen, one decimal."""
    kind = str(field(action, "action_type", "an action"))
    if kind in _POINTED:
        x = round(int(action["x"]) / width_px * 100, 1)
        y = round(int(action["y"]) / height_px * 100, 1)
        return f"{_POINTED[kind]}({x}, {y})"
    if kind in _NAMED:
        word, name = _NAMED[kind]
        return f"{word} {field(action, name, kind)}"
    if kind in _PLAIN:
        return _PLAIN[kind]
    raise UserError(
        f"AndroidControl has an action {kind!r} that the published wording does not know."
    )
