"""Memory and time of `molmoact preprocess` against frames; numeric teachers, so only the pipeline counts.

Makes LeRobot v3.0 datasets of small stored images with recorded gripper points, runs the command on each in
its own process, samples its memory, and draws docs/scale.png: seconds of wall clock and of processors.

    python benchmarks/scale.py --frames 12500 25000 50000 100000 --plot docs/scale.png
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from molmoact_data.exporters.lerobot.metadata import DatasetDescription, feature
from molmoact_data.exporters.lerobot.writer import LeRobotWriter
from molmoact_data.pictures.images import encode_jpeg
from molmoact_data.schema import IMAGE_TYPE

ROOT = Path(__file__).resolve().parents[1]
SIDE, EPISODE_FRAMES, FPS = 32, 250, 10
IMAGE, POINTS = "observation.images.front", "observation.gripper_pixel"


@dataclass(frozen=True)
class Measured:
    """One run of the command."""

    frames: int
    wall_s: float
    cpu_s: float
    peak_MiB: float
    """Resident memory of the process and its children, sampled every 0.2 s."""


def make_dataset(folder: Path, frames: int) -> Path:
    """Episodes of 250 frames with a moving dot; 1000 different pictures are reused."""
    rng = np.random.default_rng(0)
    features = {
        "action": feature("float32", [7]),
        "observation.state": feature("float32", [7]),
        POINTS: feature("float32", [2]),
        IMAGE: feature("image", [SIDE, SIDE, 3], ["height", "width", "channels"]),
    }
    pictures = [
        encode_jpeg(rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8), 90) for _ in range(1000)
    ]
    writer = LeRobotWriter(folder, DatasetDescription(FPS, "synthetic", features))
    time_s = np.arange(EPISODE_FRAMES, dtype=np.float32) / FPS
    for episode in range(frames // EPISODE_FRAMES):
        angle = 2 * np.pi * np.arange(EPISODE_FRAMES) / EPISODE_FRAMES + rng.uniform(0, 6)
        points = (0.5 + 0.3 * np.stack([np.cos(angle), np.sin(angle)], axis=1)) * (SIDE - 1)
        start = episode * EPISODE_FRAMES
        images = [
            {"bytes": pictures[(start + i) % 1000], "path": None} for i in range(EPISODE_FRAMES)
        ]
        columns = {
            "action": _lists(rng.normal(size=(EPISODE_FRAMES, 7))),
            "observation.state": _lists(rng.normal(size=(EPISODE_FRAMES, 7))),
            POINTS: _lists(points),
            IMAGE: pa.array(images, IMAGE_TYPE),
        }
        writer.write(columns, [f"task {episode % 10}"] * EPISODE_FRAMES, pa.array(time_s))
        writer.end_episode()
    writer.close()
    return folder


def _lists(values: np.ndarray) -> pa.Array:
    flat = pa.array(values.astype(np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def measure(dataset: Path, out: Path, frames: int) -> Measured:
    """Run the command once and watch it."""
    arguments = [
        *(sys.executable, str(ROOT / "cli.py"), "preprocess", "--dataset-path", str(dataset)),
        *("--output-path", str(out), "--depth", "none", "--pointer", "column"),
        *("--pointer-column", POINTS, "--pointer-units", "pixels"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before, started = _children_cpu_s(), time.monotonic()
    process = subprocess.Popen(arguments, env=environment)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident_bytes(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"the run over {frames} frames failed with code {process.returncode}")
    wall_s = time.monotonic() - started
    return Measured(frames, round(wall_s, 1), round(_children_cpu_s() - before, 1), peak / 2**20)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _resident_bytes(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
        return sum(p.memory_info().rss for p in tree)
    except psutil.NoSuchProcess:
        return 0


def plot(results: Sequence[Measured], path: Path) -> None:
    """Time and memory against frames, each on its own axes from zero."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (time_axes, memory_axes) = plt.subplots(1, 2, figsize=(9, 3.2))
    frames = [r.frames for r in results]
    time_axes.plot(frames, [r.wall_s for r in results], "o-", label="wall")
    time_axes.plot(frames, [r.cpu_s for r in results], "s--", label="CPU")
    time_axes.set(xlabel="frames", ylabel="seconds", title="time")
    time_axes.legend()
    memory_axes.plot(frames, [r.peak_MiB for r in results], "o-")
    memory_axes.set(xlabel="frames", ylabel="peak resident MiB", title="memory")
    for axes in (time_axes, memory_axes):
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.15 * axes.dataLim.ymax)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[12500, 25000, 50000, 100000])
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    results = []
    for frames in arguments.frames:
        with tempfile.TemporaryDirectory(prefix="molmoact-scale-") as folder:
            dataset = make_dataset(Path(folder) / "dataset", frames)
            results.append(measure(dataset, Path(folder) / "out", frames))
        print(json.dumps(asdict(results[-1])), flush=True)
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
