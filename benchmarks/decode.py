"""How fast frames come out: our sequential reader beside three others, in one run, on the same files.

    python benchmarks/decode.py                          # three codecs at three sizes, one thread each
    python benchmarks/decode.py --threads 2 --codecs h264 --sizes 640x480
    python benchmarks/decode.py --breakdown              # where our time goes, and what threads buy

The others are LeRobot's `LeRobotDataset[i]`, one index after the other as a preprocessing job asks for it, with
its default reader (torchcodec) and with its `pyav` reader, and torchcodec's own sequential reading (ranges of 32
frames). torchcodec needs FFmpeg's shared libraries (`apt-get install ffmpeg`); without them its columns say so.
Readers take turns within each round, and the best round of each counts. CPU time is compared beside wall time,
because it still means something on a machine that others use too.

Videos are encoded by LeRobot's own writer (a keyframe every 2 frames, its default) from a moving disc over a
1/f texture with sensor noise: at 640x480 about 15 kB per frame of AV1, where frames made from the real Franka
footage in ../shared/data take 11 kB. `--keyframe-every` changes the distance.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from molmoact_data.sources.opening import open_source

CODECS = {"h264": "h264", "hevc": "hevc", "av1": "libsvtav1"}
"""Name -> LeRobot's name of the encoder."""
SIZES = {"256x256": 240, "640x480": 120, "1920x1080": 48}
"""Width x height -> frames of the clip."""
ROUNDS = 5
SECONDS = 2.0
"""Repeats of a single measurement: at least `ROUNDS`, and for at least so long."""
BATCH = 32
OURS, CODEC, LEROBOT, LEROBOT_PYAV = "ours", "torchcodec", "LeRobot", "LeRobot pyav"

Work = Callable[[], int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="of our reader and of torchcodec's")
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--keyframe-every", type=int, default=2, help="frames from key to key")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="the best of so many counts")
    parser.add_argument("--breakdown", action="store_true", help="also time demux, decode, colour")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, PyAV {av.__version__}, "
        f"{codec_version()}, {arguments.threads} thread(s); frames/s, then ours divided by the other's: "
        "wall (CPU)"
    )
    others = (CODEC, LEROBOT, LEROBOT_PYAV)
    print(f"{'':<18}{OURS:>8}" + "".join(f"{name:>26}" for name in others))
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            for codec in arguments.codecs:
                root = write_clip(Path(folder), codec, size, arguments.keyframe_every)
                rates = best_of_each(readers(root, arguments.threads), arguments.rounds)
                ours = rates[OURS]
                row = f"{codec + ' ' + size:<18}{ours.wall:>8.0f}"
                print(
                    row + "".join(f"{versus(ours, rates.get(name)):>26}" for name in others),
                    flush=True,
                )
                if arguments.breakdown:
                    breakdown(f"{codec} {size}", root)


def codec_version() -> str:
    """torchcodec's version, or why there is none."""
    try:
        import torchcodec
    except (ImportError, RuntimeError) as error:
        reason = next(line for line in str(error).splitlines() if line.strip())
        return f"no torchcodec ({reason.strip()[:60]}; apt-get install ffmpeg)"
    return f"torchcodec {torchcodec.__version__}"


@dataclass(frozen=True)
class Rate:
    """Frames per second of wall time and of CPU time."""

    wall: float
    cpu: float


def versus(ours: Rate, other: Rate | None) -> str:
    """The other's frames per second and what we are times as fast, or that it was not there."""
    if other is None:
        return "cannot be had here"
    return f"{other.wall:.0f}  {ours.wall / other.wall:.1f}x ({ours.cpu / other.cpu:.1f}x)"


def best_of_each(works: Mapping[str, Work], num_rounds: int) -> dict[str, Rate]:
    """The fastest round of each, in turns: what disturbs the machine disturbs all of them."""
    rounds = [{name: once(work) for name, work in works.items()} for _ in range(num_rounds)]
    return {
        name: Rate(max(r[name].wall for r in rounds), max(r[name].cpu for r in rounds))
        for name in works
    }


def best_of(work: Work) -> Rate:
    """The fastest of the repeats of one measurement."""
    rates, started = [], time.perf_counter()
    while len(rates) < ROUNDS or time.perf_counter() - started < SECONDS:
        rates.append(once(work))
    return Rate(max(r.wall for r in rates), max(r.cpu for r in rates))


def once(work: Work) -> Rate:
    wall, cpu = time.perf_counter(), time.process_time()
    done = work()
    return Rate(done / (time.perf_counter() - wall), done / (time.process_time() - cpu))


def readers(root: Path, threads: int) -> dict[str, Work]:
    """Everybody who can be had."""
    found = {OURS: sequential(root, threads=threads), LEROBOT_PYAV: lerobot(root, "pyav")}
    if codec_version().startswith("torchcodec"):
        found |= {CODEC: torchcodec_ranges(root, threads), LEROBOT: lerobot(root, "torchcodec")}
    return found


def sequential(root: Path, *, threads: int | None = None, isolate: bool = False) -> Work:
    """`iter_frames` over the whole dataset, rows included."""
    source = open_source(root, threads=threads, isolate=isolate)
    key = source.info.cameras[0].key

    def work() -> int:
        batches = (b[key] for ref in source.episodes for b in source.iter_frames(ref, [key], BATCH))
        return sum(len(batch.rgb_NHWC) for batch in batches)

    return work


def torchcodec_ranges(root: Path, threads: int) -> Work:
    """A new decoder per file, then one range after the other, as uint8 [N,H,W,3]."""
    from torchcodec.decoders import VideoDecoder

    path = next((root / "videos").rglob("*.mp4"))

    def work() -> int:
        decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=threads)
        total = len(decoder)
        ranges = (
            decoder.get_frames_in_range(first, min(first + BATCH, total))
            for first in range(0, total, BATCH)
        )
        return sum(len(frames.data.numpy()) for frames in ranges)

    return work


def lerobot(root: Path, backend: str) -> Work:
    """`LeRobotDataset[i]` for every index in order."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("benchmark/local", root=root, video_backend=backend)

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
        total = 1e6 / best_of(lambda last=last: stage(last)).cpu
        print(f"  {last:<22}{'':>8}({total - previous:.0f})")
        previous = total
    for threads in (1, 2):
        rate = best_of(sequential(root, threads=threads))
        print(f"  all, threads={threads:<9}{1e6 / rate.wall:>8.0f}({1e6 / rate.cpu:.0f})")
    rate = best_of(sequential(root, isolate=True))
    print(
        f"  {'in a child process':<20}{1e6 / rate.wall:>8.0f}({1e6 / rate.cpu:.0f} in the parent)"
    )


def write_clip(folder: Path, codec: str, size: str, keyframe_every: int) -> Path:
    """A LeRobot v3.0 dataset of one episode and one camera, encoded by LeRobot's writer."""
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    width, height = map(int, size.split("x"))
    features = {
        "observation.images.front": {
            "dtype": "video", "shape": (height, width, 3), "names": ["height", "width", "channels"]
        },
        "action": {"dtype": "float32", "shape": (7,), "names": None},
    }  # fmt: skip
    root = folder / f"{codec}-{size}"
    encoder = RGBEncoderConfig(vcodec=CODECS[codec], g=keyframe_every)
    dataset = LeRobotDataset.create("benchmark/clip", 30, features, root=root, rgb_encoder=encoder)
    for picture in moving_disc(height, width, SIZES[size]):
        frame = {"observation.images.front": picture, "action": np.zeros(7, np.float32)}
        dataset.add_frame({**frame, "task": "move the disc"})
    dataset.save_episode()
    dataset.finalize()
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        # SVT-AV1 leaves the thread that encodes with real-time priority where it may: what follows is to be measured.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return root


def moving_disc(height: int, width: int, num_frames: int) -> Iterator[NDArray[np.uint8]]:
    """RGB frames [H,W,3]: a disc that moves over a still texture, with sensor noise."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / (height / 480)
    rng = np.random.default_rng(0)
    ground = np.full((height, width, 3), 128, np.float32)
    for grain_px in (
        2,
        4,
        8,
        16,
        32,
        64,
    ):  # amplitude grows with size: the spectrum of natural images
        shape = (height // grain_px + 1, width // grain_px + 1, 3)
        grain = rng.normal(0, 3 * grain_px**0.5, shape).astype(np.float32)
        ground += cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC)
    for t in range(num_frames):
        centre_x, centre_y = 320 + 200 * np.sin(t / 20), 240 + 120 * np.cos(t / 15)
        disc = np.exp(-((((x - centre_x) ** 2 + (y - centre_y) ** 2) / 60**2) ** 4))[..., None]
        image = ground * (1 - disc) + disc * np.array([210, 60, 50], np.float32)
        image += rng.normal(0, 1.5, image.shape)
        yield image.clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
