"""`python -m fuzz --count 1000 [--seed 0] [--only RLDS]`, with `tests` on the Python path."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from fuzz import (
    checkpoints,
    commands,
    configurations,
    datasets,
    interrupted,
    models,
    outputs,
    statistics_files,
)
from fuzz.outcomes import Tally, run_kind, table

KINDS = {
    **datasets.KINDS,
    **statistics_files.KINDS,
    **commands.KINDS,
    **outputs.KINDS,
    **interrupted.KINDS,
    **configurations.KINDS,
    **checkpoints.KINDS,
    **models.KINDS,
}
SLOW = {
    "preprocess": 20, "resume": 10, "YAML, commands": 5,
    "model molmoact": 10, "model molmoact2": 10, "model molmo": 100,
}  # fmt: skip
"""A run of the whole command takes as long as so many reads."""


def run(count: int, seed: int, only: str | None = None) -> dict[str, Tally]:
    """`count` broken inputs of every kind, fewer of the slow ones."""
    with tempfile.TemporaryDirectory() as folder:
        return {
            name: run_kind(name, kind, max(1, count // SLOW.get(name, 1)), seed, Path(folder))
            for name, kind in KINDS.items()
            if only is None or only.lower() in name.lower()
        }


def main() -> None:
    """Print the figures and every failure; exit code 1 where there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="broken inputs per kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a part of a kind's name")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    tallies = run(options.count, options.seed, options.only)
    print(table(tallies))
    failures = [story for tally in tallies.values() for story in tally.failures]
    print("\n\n".join(failures[:20]))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
