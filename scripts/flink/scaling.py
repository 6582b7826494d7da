"""How much faster two Flink workers are than one, with a teacher whose cost is time and not this machine's cores.

Two workers cannot be twice as fast on two cores that a cluster and its workers share. So the
teacher here is a pointing server that answers after a fixed pause, as a GPU somewhere else would: what
is measured is whether the engine keeps two workers busy. Two times are printed: the whole command with its start-up,
and Flink's own duration of the job that builds the shards.

Every episode is a shard here, and Flink hands shards to workers before it knows how long each will take. The demo's six
episodes are 52 to 29 frames long, so two workers can be 1.89 times as fast at most; many equal episodes say more.

    python -m scripts.flink.scaling --dataset-path .../bridge_dataset/1.0.0
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from scripts.flink.cluster import FlinkCluster
from scripts.flink.configuration import ClusterConfig
from scripts.flink.distribution import default_cache, fetch

ROOT = Path(__file__).resolve().parents[2]
ANSWER = '<point x="50.0" y="50.0" alt="the robot gripper">the robot gripper</point>'


class SlowPointer(BaseHTTPRequestHandler):
    """The two endpoints of an OpenAI-compatible server that `--pointer server` uses."""

    pause_s = 1.0
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """`/v1/models`."""
        self._reply({"data": [{"id": "slow"}]})

    def do_POST(self) -> None:
        """`/v1/chat/completions`."""
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.pause_s)
        self._reply({"choices": [{"message": {"content": ANSWER}, "finish_reason": "stop"}]})

    def _reply(self, value: dict[str, object]) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def seconds(
    cluster: FlinkCluster, dataset: str, url: str, out: Path, workers: int
) -> tuple[float, float]:
    """Whole command, and its last job; every episode is a shard, eight frames a round of requests."""
    runner, *options = cluster.pipeline_flags(parallelism=workers)
    arguments = [
        *(sys.executable, str(ROOT / "cli.py"), "preprocess", "--dataset-path", dataset),
        *("--output-path", str(out), "--depth", "none", "--pointer", "server"),
        *("--pointer-url", url, "--frames-per-shard", "1", "--batch-size", "8"),
        *("--runner", runner.removeprefix("--runner=")),
        *(f"--beam-option={option}" for option in options),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    subprocess.run(arguments, env=environment, check=True)
    whole_s = time.monotonic() - started
    jobs = cluster.rest("/jobs/overview")["jobs"]
    return whole_s, max(jobs, key=lambda job: job["start-time"])["duration"] / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pause-s", type=float, default=5.0)
    parser.add_argument("--dataset-path", default=str(ROOT / "examples" / "demo_dataset"))
    arguments = parser.parse_args()
    SlowPointer.pause_s = arguments.pause_s
    server = ThreadingHTTPServer(("127.0.0.1", 0), SlowPointer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    with tempfile.TemporaryDirectory(prefix="molmoact-scaling-") as folder:
        config = ClusterConfig.from_distribution(
            fetch(default_cache()), Path(folder) / "cluster", slots_per_task_manager=1
        )
        with FlinkCluster(config) as cluster:
            taken = {
                n: seconds(cluster, arguments.dataset_path, url, Path(folder) / f"out-{n}", n)
                for n in (1, 2)
            }
    for index, name in enumerate(("whole command", "job of the shards")):
        one, two = taken[1][index], taken[2][index]
        print(f"{name}: 1 worker {one:.0f} s, 2 workers {two:.0f} s, ratio {one / two:.2f}")


if __name__ == "__main__":
    main()
