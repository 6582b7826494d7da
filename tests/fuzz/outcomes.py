"""What came of one broken input, and the sum of many."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz.bounds import TooMuch, bounded
from molmoact_data.errors import EpisodeRejected, UserError, refused_by_system
from molmoact_data.sources.cameras import resolve_cameras
from molmoact_data.sources.opening import open_source

EQUAL, EXPLAINED, REJECTED, REFUSED = "equal", "explained", "rejected", "refused"
TRACEBACK, UNEXPLAINED = "traceback", "unexplained"
COLUMNS = (EQUAL, EXPLAINED, REJECTED, REFUSED, TRACEBACK, UNEXPLAINED)

Rows = dict[tuple[int, int], dict[str, Any]]
"""(episode, frame) -> column -> value, of what was read."""


@dataclass
class Tally:
    """Outcomes by name, and the story of every failure."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, outcome: str, story: str) -> None:
        self.counts[outcome] += 1
        if outcome in (TRACEBACK, UNEXPLAINED):
            self.failures.append(story)

    def line(self, kind: str) -> str:
        numbers = "".join(f"{self.counts[name]:>12}" for name in COLUMNS)
        return f"{kind:<16}{self.counts.total():>8}{numbers}"


HEADING = f"{'kind':<16}{'tried':>8}" + "".join(f"{name:>12}" for name in COLUMNS)

Mutation = tuple[str, set[str]]
"""In words, and the columns of the rows that it may change."""


def read_rows(root: Path, number_of: Callable[[Any], Any]) -> tuple[Rows, int]:
    """Everything a pipeline would label, and how many episodes were rejected. Raises `UserError`."""
    source = open_source(root, threads=1)
    rows: Rows = {}
    rejected = 0
    key = next(iter(resolve_cameras(source.info, {})[0].values()))
    for ref in source.episodes:
        try:
            columns = source.read_columns(ref)
            pictures = [
                number_of(rgb) for b in source.iter_frames(ref, [key], 4) for rgb in b[key].rgb_NHWC
            ]
        except EpisodeRejected:
            rejected += 1
            continue
        assert len(pictures) == len(columns.action), "rows without pictures"
        for frame, picture in enumerate(pictures):
            rows[ref.episode_index, frame] = {
                "picture": picture,
                "action": columns.action[frame].tobytes(),
                "state": None if columns.state is None else columns.state[frame].tobytes(),
                "instruction": columns.instructions[frame],
                "timestamp": float(columns.timestamp_s[frame]),
            }
    return rows, rejected


def judge(before: Rows, after: Rows, rejected: int, may_change: Iterable[str]) -> tuple[str, str]:
    """The outcome, and what is wrong where it is UNEXPLAINED.

    Besides columns, a mutation may change "length" (of an episode), "episode" (which there are) and "numbers"
    (what they are called: then every row must be one of the untouched ones, whatever its number).
    """
    allowed = set(may_change)
    changed = (
        _changed_columns(before, after) if "numbers" not in allowed else _new_rows(before, after)
    )
    lost = {key[0] for key in before.keys() - after.keys()}
    if "numbers" not in allowed and any(key[0] in lost for key in after):
        changed.add("length")
    if changed - allowed:
        return UNEXPLAINED, f"changed: {', '.join(sorted(changed - allowed))}"
    if lost and not rejected and not allowed & {"episode", "numbers"}:
        return UNEXPLAINED, "episodes are lost without a word"
    if rejected or lost:
        return REJECTED, ""
    return (EXPLAINED if changed else EQUAL), ""


def _changed_columns(before: Rows, after: Rows) -> set[str]:
    changed: set[str] = set()
    for key, row in after.items():
        known = before.get(key)
        changed |= {"episode"} if known is None else {n for n in row if row[n] != known[n]}
    return changed


def _new_rows(before: Rows, after: Rows) -> set[str]:
    known = {tuple(row.values()) for row in before.values()}
    return {"row"} if any(tuple(row.values()) not in known for row in after.values()) else set()


def attempt(
    work: Callable[[], tuple[str, str]], passing: tuple[type[Exception], ...] = ()
) -> tuple[str, str]:
    """The outcome of one run; a `UserError` of one line is a refusal, anything else that is raised a bug.

    Exceptions of the types in `passing` go through.
    """
    try:
        return work()
    except passing:
        raise
    except UserError as error:
        text = str(error)
        if "\n" in text.strip():
            return UNEXPLAINED, f"a refusal of several lines: {text!r}"
        return REFUSED, text
    except Exception as error:  # noqa: BLE001 - any exception is what this looks for
        if (refused := refused_by_system(error)) is not None:
            return REFUSED, refused  # as the command line says it
        return TRACEBACK, traceback.format_exc()


Kind = Callable[[Random, Path], tuple[str, str, str]]
"""One broken input in a fresh folder -> (what was done, outcome, why)."""


def run_kind(name: str, kind: Kind, count: int, seed: int, folder: Path) -> Tally:
    """`count` broken inputs, each from a generator of its own, so that any of them can be made again."""
    tally = Tally()
    for number in range(count):
        place = folder / f"{name}-{number}".replace(" ", "-")
        try:
            with bounded():
                done, outcome, why = kind(Random(f"{name}/{seed}/{number}"), place)
        except TooMuch:
            done, outcome, why = "an input", TRACEBACK, traceback.format_exc()
        tally.add(outcome, f"{name} {number} (seed {seed}): {done}: {outcome}: {why}")
        _remove(place)
    return tally


def table(tallies: Mapping[str, Tally]) -> str:
    """The figures, one line per kind and their sum."""
    total = Tally()
    for tally in tallies.values():
        total.counts.update(tally.counts)
    return "\n".join([HEADING, *(t.line(kind) for kind, t in tallies.items()), total.line("all")])


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
