"""Where the demo's time goes: model calls and JPEG encoding against everything else.

    python benchmarks/overhead.py

Runs `molmoact demo`'s pipeline twice in this process and takes the second run, in which modules and weights are
loaded; what the first one costs more is printed apart. Counts the seconds inside the teachers and the JPEG
encoder. The rest is decoding, Beam, statistics, traces, bins, Parquet and the report.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from pipelines import build
from pipelines.commands import DEMO_DATASET
from pipelines.options import preprocess_config
from pipelines.preprocess import preprocess
from pipelines.teachers import load_teachers

SECONDS: dict[str, float] = defaultdict(float)


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its seconds added up under `name`."""

    @functools.wraps(function)
    def measured(*arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            SECONDS[name] += time.perf_counter() - started

    return measured


def main() -> None:
    """Print a table: seconds and share of the wall time."""
    with tempfile.TemporaryDirectory() as folder:
        first_wall, first_rest, _ = measured_run(Path(folder) / "first")
        wall, rest, frames = measured_run(Path(folder) / "second")
        parts = [*SECONDS.items(), ("everything else", rest)]
    print(f"{frames} frames in {wall:.2f} s")
    for name, seconds in parts:
        print(f"{name:<20} {seconds:8.2f} s  {seconds / wall:6.1%}")
    print(
        f"the first run of a process: {first_wall:.2f} s, {first_rest:.2f} s of it everything else"
    )


def measured_run(output: Path) -> tuple[float, float, int]:
    """Seconds of the whole run, seconds outside what is timed, frames."""
    flags = {
        "dataset_path": str(DEMO_DATASET), "output_path": str(output), "preset": "embedded"
    }  # fmt: skip
    config = preprocess_config(flags, None)
    teachers = load_teachers(config.labels, config.device)
    SECONDS.clear()
    with ExitStack() as stack:
        for name, owner, method in (
            ("depth network", teachers.depth, "estimate"),
            ("depth codes", teachers.tokenizer, "encode"),
            ("pointing network", teachers.pointer, "point"),
            ("JPEG encoding", build, "encode_jpeg"),
        ):
            replacement = timed(name, getattr(owner, method))
            stack.enter_context(mock.patch.object(owner, method, replacement))
        started = time.perf_counter()
        summary = preprocess(config, resume=False, overwrite=False)
        wall = time.perf_counter() - started
    return wall, wall - sum(SECONDS.values()), summary.frames


if __name__ == "__main__":
    main()
