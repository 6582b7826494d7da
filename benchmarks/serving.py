"""What serving costs beside the model: many robots at once, and one robot beside openpi's way of serving.

    PYTHONPATH=. python benchmarks/serving.py [--robots 8] [--seconds 60] [--model-ms 0]

The model answers at once (or sleeps `--model-ms`), so all time is overhead. Robots are openpi's own client with two
256x256 pictures and a state. The other server is written as openpi's is: one asyncio WebSocket handler that unpacks,
calls the policy and packs, with openpi's own msgpack code; it is not distributed as a package.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.asyncio.server import serve

from molmoact_data.policies import ActionChunk, Observation, PolicyInfo
from molmoact_robot.serving.config import ServeConfig
from molmoact_robot.serving.server import in_background

ACTIONS = np.zeros((8, 7), np.float32)
QUESTION = {
    "observation/image": np.zeros((256, 256, 3), np.uint8),
    "observation/wrist_image": np.zeros((256, 256, 3), np.uint8),
    "observation/state": np.zeros(8, np.float32),
    "prompt": "pick up the cube",
}


class Instant:
    """A model that needs `seconds` and nothing else."""

    info = PolicyInfo("benchmark", "instant", "0" * 64, 2, 7, 8, 8, "none")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def reset(self, seed: int | None = None) -> None:
        pass

    def act(
        self, observation: Observation, *, trace: Sequence[Sequence[int]] | None = None
    ) -> ActionChunk:
        time.sleep(self.seconds)
        return ActionChunk(ACTIONS)


@contextlib.contextmanager
def openpis_way(seconds: float) -> Iterator[str]:
    """A server as openpi's is; yields its address."""
    loop, ready, port = asyncio.new_event_loop(), threading.Event(), [0]

    async def answer(socket) -> None:
        packer = msgpack_numpy.Packer()
        await socket.send(packer.pack({}))
        async for frame in socket:
            began = time.monotonic()
            msgpack_numpy.unpackb(frame)
            time.sleep(seconds)
            timing = {"infer_ms": 1000 * (time.monotonic() - began)}
            await socket.send(packer.pack({"actions": ACTIONS, "server_timing": timing}))

    async def run() -> None:
        async with serve(answer, "127.0.0.1", 0, compression=None, max_size=None) as server:
            port[0] = server.sockets[0].getsockname()[1]
            ready.set()
            await asyncio.Event().wait()

    def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            task = loop.create_task(run())
            loop.run_until_complete(task)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    ready.wait()
    yield f"ws://127.0.0.1:{port[0]}"


def robot(url: str, seconds: float) -> list[float]:
    """Seconds per answer of one robot that asks again and again."""
    client = WebsocketClientPolicy(url)
    client.infer(QUESTION)
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        assert client.infer(QUESTION)["actions"].shape == ACTIONS.shape
        times.append(time.perf_counter() - began)
    return times


def report(name: str, times: list[float], model_s: float) -> float:
    overhead = [1000 * (t - model_s) for t in times]
    p99 = statistics.quantiles(overhead, n=100)[98]
    median = statistics.median(overhead)
    print(f"{name:34} {len(times):7} answers   median {median:6.2f} ms   p99 {p99:7.2f} ms")
    return median


def many_robots(url: str, robots: int, seconds: float) -> list[float]:
    """Each in a process of its own; a robot that loses an answer fails the run."""
    command = [sys.executable, __file__, "--as-robot", url, "--seconds", str(seconds)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(robots)
    ]
    outputs = [process.communicate()[0] for process in processes]
    lost = [process.returncode for process in processes if process.returncode]
    if lost:
        raise SystemExit(f"{len(lost)} of {robots} robots lost an answer")
    return [float(word) for output in outputs for word in output.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--robots", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model-ms", type=float, default=0.0)
    parser.add_argument("--as-robot", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_robot:
        print(*robot(args.as_robot, args.seconds))
        return
    model_s = args.model_ms / 1000
    with (
        in_background(Instant(model_s), ServeConfig(port=0)) as ours,
        openpis_way(model_s) as theirs,
    ):
        medians: dict[str, list[float]] = {"ours": [], "openpi's way": []}
        for _ in range(3):  # in turns, so that the machine's moods meet both
            for name, url in (("ours", ours), ("openpi's way", theirs)):
                times = many_robots(url, 1, 3.0)
                medians[name].append(report(f"one robot, {name}", times, model_s))
        ratio = min(medians["ours"]) / min(medians["openpi's way"])
        print(f"overhead of one robot, ours / openpi's way: {ratio:.2f}")
        many = many_robots(ours, args.robots, args.seconds)
        report(f"{args.robots} robots, ours", many, model_s)


if __name__ == "__main__":
    main()
