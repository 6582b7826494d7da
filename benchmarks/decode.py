"""How fast frames come out: our sequential reader against `LeRobotDataset[i]`, in one run.

    python benchmarks/decode.py                       # real H.264 from ../shared/data, AV1 encoded here
    python benchmarks/decode.py --breakdown           # where our time goes, and what threads buy

LeRobot is asked one index after the other, as the MolmoAct reference's preprocessing does, with its
`pyav` backend (`torchcodec` needs a system FFmpeg). Its result is the best of the repeats, as ours.
AV1 is encoded by LeRobot's own writer at its defaults (libsvtav1, crf 30, a keyframe every 2 frames),
from a moving disc over a 1/f texture with sensor noise: about 15 kB per frame, where 640x480 frames made
from the real Franka footage in ../shared/data take 11 kB. CPU time is printed beside wall time,
because it still means something on a machine that others use too.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from molmoact_data.sources.opening import open_source

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("MOLMOACT_SHARED_DATA", ROOT.parent / "shared" / "data"))
REPEATS = 5
SECONDS = 2.0
"""Repeats of each measurement: at least so many, and for at least so long."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--breakdown", action="store_true", help="also time demux, decode, colour")
    parser.add_argument("--frames", type=int, default=300, help="frames of the AV1 clip")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, PyAV {av.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        clip = write_av1(Path(folder) / "av1", arguments.frames)
        cases = [("H.264 256x256 (libero_rollouts_v30)", DATA / "libero_rollouts_v30")]
        cases = [case for case in cases if case[1].is_dir()]
        cases.append(("AV1 640x480 (LeRobot's defaults)", clip))
        print(
            f"{'data, frames/s':<36}{'LeRobotDataset[i]':>19}{'ours':>8}{'ratio':>8}{'CPU ratio':>11}"
        )
        for name, root in cases:
            theirs, ours = best(lerobot(root)), best(sequential(root))
            wall, cpu = ours.wall / theirs.wall, ours.cpu / theirs.cpu
            print(f"{name:<36}{theirs.wall:>19.0f}{ours.wall:>8.0f}{wall:>7.1f}x{cpu:>10.1f}x")
        if arguments.breakdown:
            for name, root in cases:
                breakdown(name, root)


@dataclass(frozen=True)
class Rate:
    """Frames per second of wall time and of CPU time."""

    wall: float
    cpu: float


def best(work: Callable[[], int]) -> Rate:
    """The fastest of the repeats: the one least disturbed by others, with both cores awake."""
    walls, cpus = [], []
    started = time.perf_counter()
    while len(walls) < REPEATS or time.perf_counter() - started < SECONDS:
        rate = once(work)
        walls.append(rate.wall)
        cpus.append(rate.cpu)
    return Rate(max(walls), max(cpus))


def once(work: Callable[[], int]) -> Rate:
    wall, cpu = time.perf_counter(), time.process_time()
    done = work()
    return Rate(done / (time.perf_counter() - wall), done / (time.process_time() - cpu))


def sequential(
    root: Path, *, threads: int | None = None, isolate: bool = False
) -> Callable[[], int]:
    """`iter_frames` over the whole dataset, rows included."""
    source = open_source(root, threads=threads, isolate=isolate)
    key = source.info.cameras[0].key

    def work() -> int:
        batches = (b[key] for ref in source.episodes for b in source.iter_frames(ref, [key], 32))
        return sum(len(batch.rgb_NHWC) for batch in batches)

    return work


def lerobot(root: Path) -> Callable[[], int]:
    """`LeRobotDataset[i]` for every index in order."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("benchmark/local", root=root, video_backend="pyav")

    def work() -> int:
        for index in range(len(dataset)):
            dataset[index]
        return len(dataset)

    return work


def breakdown(name: str, root: Path) -> None:
    """Microseconds per frame of each stage on the first video file, and of all with more threads."""
    path = next((root / "videos").rglob("*.mp4"))

    def stage(last: str) -> int:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type, stream.codec_context.thread_count = "NONE", 1
            if last == "demux":
                return sum(1 for _ in container.demux(stream))
            frames = container.decode(stream)
            if last == "decode":
                return sum(1 for _ in frames)
            return sum(1 for frame in frames if frame.to_ndarray(format="rgb24").any())

    print(f"\n{name}: us per frame, wall (CPU)")
    previous = 0.0
    for last in ("demux", "decode", "colour"):
        total = 1e6 / best(lambda last=last: stage(last)).cpu
        print(f"  {last:<22}{'':>8}({total - previous:.0f})")
        previous = total
    for threads in (1, 2):
        rate = best(sequential(root, threads=threads))
        print(f"  all, threads={threads:<9}{1e6 / rate.wall:>8.0f}({1e6 / rate.cpu:.0f})")
    rate = best(sequential(root, isolate=True))
    print(
        f"  {'in a child process':<20}{1e6 / rate.wall:>8.0f}({1e6 / rate.cpu:.0f} in the parent)"
    )


def write_av1(root: Path, num_frames: int) -> Path:
    """A LeRobot v3.0 dataset of one camera: smooth shapes that move over a textured background."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    height, width = 480, 640
    features = {
        "observation.images.front": {
            "dtype": "video", "shape": (height, width, 3), "names": ["height", "width", "channels"]
        },
        "action": {"dtype": "float32", "shape": (7,), "names": None},
    }  # fmt: skip
    dataset = LeRobotDataset.create("benchmark/av1", 30, features, root=root, video_backend="pyav")
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    rng = np.random.default_rng(0)
    ground = np.full((height, width, 3), 128, np.float32)
    for size in (2, 4, 8, 16, 32, 64):  # amplitude grows with size: the spectrum of natural images
        grain = rng.normal(0, 3 * size**0.5, (height // size + 1, width // size + 1, 3))
        ground += cv2.resize(
            grain.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
    for t in range(num_frames):
        centre_x, centre_y = 320 + 200 * np.sin(t / 20), 240 + 120 * np.cos(t / 15)
        disc = np.exp(-((((x - centre_x) ** 2 + (y - centre_y) ** 2) / 60**2) ** 4))[..., None]
        image = ground * (1 - disc) + disc * np.array([210, 60, 50], np.float32)
        image += rng.normal(0, 1.5, image.shape)
        frame = {"observation.images.front": image.clip(0, 255).astype(np.uint8)}
        dataset.add_frame({**frame, "action": np.zeros(7, np.float32), "task": "move the disc"})
    dataset.save_episode()
    dataset.finalize()
    return root


if __name__ == "__main__":
    main()
