"""Peak memory against episode length: one episode of 500 to 15,000 frames, 256x256 H.264.

    python benchmarks/memory.py

Each run is a process of its own; the figure is the operating system's peak resident size of it. Points come from a
column and depth is off, so that what is measured is decoding, spooling, traces and writing.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
LENGTHS = (500, 1500, 5000, 15000)


def peak_mebibytes(dataset: Path, output: Path) -> float:
    """Peak resident size of one `molmoact preprocess`."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [
        *(sys.executable, str(ROOT / "cli.py"), "preprocess", "--json"),
        *("--dataset-path", str(dataset), "--output-path", str(output), "--depth", "none"),
        *("--pointer", "column", "--pointer-column", "gripper_xy", "--pointer-units", "pixels"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=True
    )
    return int(done.stdout.splitlines()[-1]) / 1024


def main() -> None:
    """Print frames and peak."""
    from made_datasets import make_dataset

    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for length in LENGTHS:
            dataset = make_dataset(Path(folder) / f"data{length}", lengths=[length], size=256)
            peaks.append(peak_mebibytes(dataset, Path(folder) / f"out{length}"))
            print(f"{length:>6} frames: peak {peaks[-1]:7.1f} MiB")
    print(f"ratio for {LENGTHS[-1] // LENGTHS[0]} times the frames: {peaks[-1] / peaks[0]:.2f}")
    print(f"(this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB)")


if __name__ == "__main__":
    main()
