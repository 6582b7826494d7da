"""Where the demo's time goes: model calls and JPEG encoding against everything else.

    python benchmarks/overhead.py

Runs `molmoact demo`'s pipeline in this process, after one warm-up batch that loads the weights, and counts the
seconds inside the teachers and the JPEG encoder. The rest is decoding, Beam, traces, bins, Parquet and the report.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines import build
from pipelines.commands import DEMO_DATASET
from pipelines.estimate import estimate
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
        flags = {
            "dataset_path": str(DEMO_DATASET),
            "output_path": str(Path(folder) / "out"),
            "preset": "embedded",
        }
        config = preprocess_config(flags, None)
        estimate(config)  # loads and warms the teachers and Beam's modules
        import pipelines.transforms  # noqa: F401

        teachers = load_teachers(config.labels, config.device)
        for name, owner, method in (
            ("depth network", teachers.depth, "estimate"),
            ("depth codes", teachers.tokenizer, "encode"),
            ("pointing network", teachers.pointer, "point"),
        ):
            setattr(owner, method, timed(name, getattr(owner, method)))
        build.encode_jpeg = timed("JPEG encoding", build.encode_jpeg)
        started = time.perf_counter()
        summary = preprocess(config, resume=False, overwrite=False)
        wall = time.perf_counter() - started
    rest = wall - sum(SECONDS.values())
    print(f"{summary.frames} frames in {wall:.2f} s")
    for name, seconds in [*SECONDS.items(), ("everything else", rest)]:
        print(f"{name:<20} {seconds:8.2f} s  {seconds / wall:6.1%}")


if __name__ == "__main__":
    main()
