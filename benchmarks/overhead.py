"""Where the demo's time goes: model calls against everything else.

    python benchmarks/overhead.py

Runs `molmoact demo`'s pipeline four times in this process and takes the fastest of the last three; in the first
one modules and weights are loaded, which is printed apart. Counts the seconds inside the teachers, and those of
JPEG encoding in which no teacher worked (a thread of its own encodes while they do). The rest is waiting for
the decoder, statistics, traces, bins, Parquet and the report.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from molmoact_data.teachers import pieces
from pipelines.commands import DEMO_DATASET
from pipelines.config import preprocess_config
from pipelines.preprocess import preprocess
from pipelines.shards import reading

JPEG_ALONE = "JPEG encoding, alone"
SECONDS: dict[str, float] = defaultdict(float)
at_work: list[str] = []


def timed_teacher(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its seconds added up under `name`."""

    @functools.wraps(function)
    def measured(*arguments: Any) -> Any:
        at_work.append(name)
        started = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            SECONDS[name] += time.perf_counter() - started
            at_work.remove(name)

    return measured


def timed_encoder(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its seconds added up while no teacher works."""

    @functools.wraps(function)
    def measured(*arguments: Any) -> Any:
        alone, started = not at_work, time.perf_counter()
        try:
            return function(*arguments)
        finally:
            SECONDS[JPEG_ALONE] += alone * (time.perf_counter() - started)

    return measured


def main() -> None:
    """Print a table: seconds and share of the wall time."""
    with tempfile.TemporaryDirectory() as folder:
        first, *later = [measured_run(Path(folder) / str(number)) for number in range(4)]
    run = min(later, key=lambda each: each.wall)
    print(f"{run.frames} frames in {run.wall:.2f} s")
    for name, seconds in [*run.parts.items(), ("everything else", run.rest)]:
        print(f"{name:<20} {seconds:8.2f} s  {seconds / run.wall:6.1%}")
    print(
        f"the first run of a process: {first.wall:.2f} s, {first.rest:.2f} s of it everything else"
    )


@dataclass(frozen=True)
class Run:
    """Seconds of a run, and of its parts."""

    wall: float
    parts: dict[str, float]
    frames: int

    @property
    def rest(self) -> float:
        """Seconds outside all of them."""
        return self.wall - sum(self.parts.values())


def measured_run(output: Path) -> Run:
    """The whole job, into an empty folder."""
    flags = {
        "dataset_path": str(DEMO_DATASET), "output_path": str(output), "preset": "embedded"
    }  # fmt: skip
    config = preprocess_config(flags, None)
    SECONDS.clear()
    with ExitStack() as stack:
        for name, owner, method in (
            ("depth network", pieces.DepthInPieces, "estimate"),
            ("depth codes", pieces.TokenizerInPieces, "encode"),
            ("pointing network", pieces.PointerInPieces, "point"),
        ):
            replacement = timed_teacher(name, getattr(owner, method))
            stack.enter_context(mock.patch.object(owner, method, replacement))
        encoder = timed_encoder(reading.encode_jpeg)
        stack.enter_context(mock.patch.object(reading, "encode_jpeg", encoder))
        started = time.perf_counter()
        summary = preprocess(config, resume=False, overwrite=False)
        wall = time.perf_counter() - started
    return Run(wall, dict(SECONDS), summary.frames)


if __name__ == "__main__":
    main()
