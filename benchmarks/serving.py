"""What serving costs beside the model: many robots at once, and one robot beside openpi's way of serving.

    PYTHONPATH=. python benchmarks/serving.py [--robots 8] [--seconds 60] [--model-ms 0]

The model answers at once (or sleeps `--model-ms`), so all time is overhead. Robots are openpi's own client with two
256x256 pictures and a state; one robot asks both servers in turns. The other server is written as openpi's is: one
asyncio WebSocket handler that unpacks, calls the policy and packs, with openpi's own msgpack code; it is not
distributed as a package.
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
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.asyncio.server import serve

from molmoact_data.policies import ActionChunk, Observation, PolicyInfo
from molmoact_robot.serving.config import ServeConfig
from molmoact_robot.serving.server import in_background

BLOCK = 25
"""Questions to one server before it is the other's turn."""
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
    """Seconds per answer of one robot that asks again and again; the first answer is not counted."""
    times, end = [], time.perf_counter() + seconds
    with asking(url) as ask:
        ask()
        while time.perf_counter() < end:
            times.append(ask())
    return times


def in_turns(ours: str, theirs: str, seconds: float) -> list[float]:
    """Seconds per answer: `BLOCK` of ours, `BLOCK` of theirs, ...; the machine's moods meet both alike."""
    times, end = [], time.perf_counter() + seconds
    with asking(ours) as ask_ours, asking(theirs) as ask_theirs:
        while time.perf_counter() < end:
            for ask in (ask_ours, ask_theirs):
                ask()  # the first after a pause finds a cold server
                times += [ask() for _ in range(BLOCK)]
    return times


@contextlib.contextmanager
def asking(url: str) -> Iterator[Callable[[], float]]:
    """openpi's client as a function: one question, and the seconds until its checked answer."""
    client = WebsocketClientPolicy(url)

    def ask() -> float:
        began = time.perf_counter()
        actions = client.infer(QUESTION)["actions"]
        seconds = time.perf_counter() - began
        assert actions.shape == ACTIONS.shape, f"an answer is lost: {actions.shape}"
        return seconds

    try:
        yield ask
    finally:
        client._ws.close()  # noqa: SLF001 - openpi's client has no way to say goodbye


def report(name: str, times: Sequence[float], model_s: float) -> float:
    overhead = [1000 * (t - model_s) for t in times]
    p99 = statistics.quantiles(overhead, n=100)[98]
    median = statistics.median(overhead)
    print(f"{name:28} {len(times):7} answers   median {median:6.2f} ms   p99 {p99:7.2f} ms")
    return median


def robots(urls: Sequence[str], count: int, seconds: float) -> list[list[float]]:
    """The times of each of `count` processes; a robot that loses an answer fails the run."""
    command = [sys.executable, __file__, "--seconds", str(seconds), "--as-robot", *urls]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    outputs = [process.communicate()[0] for process in processes]
    lost = [process.returncode for process in processes if process.returncode]
    if lost:
        raise SystemExit(f"{len(lost)} of {count} robots lost an answer")
    return [[float(word) for word in output.split()] for output in outputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--robots", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model-ms", type=float, default=0.0)
    parser.add_argument("--as-robot", nargs="+", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_robot:
        one = in_turns if len(args.as_robot) == 2 else robot
        print(*one(*args.as_robot, args.seconds))
        return
    model_s = args.model_ms / 1000
    with (
        in_background(Instant(model_s), ServeConfig(port=0)) as ours,
        openpis_way(model_s) as theirs,
    ):
        (times,) = robots([ours, theirs], 1, args.seconds / 4)
        turns = np.reshape(times, (-1, 2, BLOCK))
        own = report("one robot, ours", turns[:, 0].ravel(), model_s)
        other = report("one robot, openpi's way", turns[:, 1].ravel(), model_s)
        print(f"overhead of one robot, ours / openpi's way: {own / other:.2f}")
        many = [t for times in robots([ours], args.robots, args.seconds) for t in times]
        report(f"{args.robots} robots, ours", many, model_s)
    print("no answer was lost")


if __name__ == "__main__":
    main()
