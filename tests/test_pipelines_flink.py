"""The same command on a real Flink cluster of processes, with things killed under it.

One JobManager, two TaskManagers and a job server on loopback. What counts is the output: byte for byte that of
the local run, whatever died on the way. `make cluster-test` runs this file; its log is in docs/cluster.md.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from golden import SHARED_DATA

from molmoact_data import schema
from molmoact_data.validate import validate
from pipelines import state
from scripts.flink.cluster import FlinkCluster
from scripts.flink.configuration import ClusterConfig
from scripts.flink.distribution import JarsUnavailable, default_cache, fetch

pytestmark = [pytest.mark.flink, pytest.mark.timeout(1500)]
logger = logging.getLogger("cluster-test")
ROOT = Path(__file__).resolve().parents[1]
SIMULATED = ROOT / "examples" / "demo_dataset"
TIMEOUT_S = 600


def command(dataset: Path, out: Path, *more: str) -> list[str]:
    """`molmoact preprocess` with the embedded preset and small shards."""
    paths = ["--dataset-path", str(dataset), "--output-path", str(out)]
    return [
        *(sys.executable, str(ROOT / "cli.py"), "preprocess", *paths),
        *("--preset", "embedded", "--frames-per-shard", "40", *more),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(arguments: list[str]) -> None:
    done = subprocess.run(
        arguments, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr[-3000:]


def digests(out: Path) -> dict[str, str]:
    """sha256 of every file of an output."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {
        p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    if "MOLMOACT_CLUSTER_TEST" not in os.environ:
        pytest.skip("a cluster takes minutes and 150 MB of jars: run `make cluster-test`")
    try:
        distribution = fetch(default_cache())
    except JarsUnavailable as reason:
        pytest.skip(f"no Flink here: {reason}")
    logger.info("release %s", distribution.release)
    config = ClusterConfig.from_distribution(distribution, tmp_path_factory.mktemp("flink"))
    with FlinkCluster(config) as running:
        logger.info(
            "cluster up: %(taskmanagers)d TaskManagers, %(slots-total)d slots, Flink %(flink-version)s",
            running.overview(),
        )
        yield running


@pytest.fixture(scope="module")
def local(cluster: FlinkCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the local run over the simulated episodes."""
    out = tmp_path_factory.mktemp("local") / "out"
    run(command(SIMULATED, out))
    return digests(out)


def on_flink(cluster: FlinkCluster) -> list[str]:
    runner, *options = cluster.pipeline_flags(parallelism=2)
    return [
        *("--runner", runner.removeprefix("--runner=")),
        *(f"--beam-option={option}" for option in options),
    ]


def finished_shards(out: Path) -> int:
    return len(list((out / state.RECORDS_DIR).glob("*.json")))


def run_and_strike(arguments: list[str], out: Path, strike: Callable[[], None]) -> int:
    """Start the command; when its first shard is complete, strike. Returns the exit code."""
    process = subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while finished_shards(out) == 0 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert finished_shards(out) > 0, f"no shard, exit code {process.poll()}"
        assert process.poll() is None, "the run was over before anything could be killed"
        logger.info("%d shards complete: strike", finished_shards(out))
        strike()
        return process.wait(timeout=TIMEOUT_S)
    finally:
        process.kill()
        process.wait()


def failure_of_last_job(cluster: FlinkCluster) -> str:
    """What Flink itself says went wrong in the job that was started last."""
    last = max(cluster.rest("/jobs/overview")["jobs"], key=lambda job: job["start-time"])
    entries = cluster.rest(f"/jobs/{last['jid']}/exceptions")["exceptionHistory"]["entries"]
    assert entries, "nothing was lost: the strike came too late"
    return f"{last['state']} after: {entries[-1]['stacktrace'].splitlines()[0]}"


def assert_same(out: Path, expected: dict[str, str]) -> None:
    """Nothing lost, nothing twice, not a byte different."""
    assert digests(out) == expected
    report = validate(str(out))
    assert report.passed, report.to_json()


def busy_worker(out: Path) -> psutil.Process:
    """The Python worker that is in the middle of a shard: the first to count frames from now on."""
    now = time.time()
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        for counted in (out / state.PROGRESS_DIR).glob("*"):
            if counted.stat().st_mtime > now:
                return psutil.Process(int(counted.name.partition("-")[0]))
        time.sleep(0.02)
    raise TimeoutError(f"no worker labelled a frame in {TIMEOUT_S} s")


def task_manager_of(cluster: FlinkCluster, worker: psutil.Process) -> int:
    """Index of the TaskManager that started this worker."""
    parents = {parent.pid for parent in worker.parents()}
    names = [name for name, process in cluster.processes.items() if process.pid in parents]
    return int(names[0].removeprefix("taskmanager-"))


def test_a_flink_run_is_byte_identical_to_the_local_run(cluster, local, tmp_path):
    out = tmp_path / "out"
    run(command(SIMULATED, out, *on_flink(cluster)))
    assert_same(out, local)


def test_real_episodes_too(cluster, tmp_path):
    dataset = SHARED_DATA / "libero_rollouts_v21"
    if not dataset.is_dir():
        pytest.skip("the shared real datasets are not beside this checkout")
    episodes = ("--episodes", "0-1")
    run(command(dataset, tmp_path / "local", *episodes))
    run(command(dataset, tmp_path / "flink", *episodes, *on_flink(cluster)))
    assert_same(tmp_path / "flink", digests(tmp_path / "local"))


def test_a_killed_task_manager_costs_nothing_but_time(cluster, local, tmp_path):
    out = tmp_path / "out"
    killed: list[int] = []

    def strike() -> None:
        killed.append(task_manager_of(cluster, busy_worker(out)))
        pid = cluster.kill_task_manager(killed[0])
        logger.info("SIGKILL to TaskManager %d, process %d", killed[0], pid)

    code = run_and_strike(command(SIMULATED, out, *on_flink(cluster)), out, strike)
    logger.info("%s", failure_of_last_job(cluster))
    cluster.start_task_manager(killed[0])
    cluster.wait_until_ready()

    assert code == 0
    assert_same(out, local)


def test_a_killed_python_worker_costs_nothing_but_time(cluster, local, tmp_path):
    out = tmp_path / "out"

    def strike() -> None:
        victim = busy_worker(out)
        logger.info("SIGKILL to Python worker %d", victim.pid)
        victim.kill()

    code = run_and_strike(command(SIMULATED, out, *on_flink(cluster)), out, strike)
    logger.info("%s", failure_of_last_job(cluster))

    assert code == 0
    assert_same(out, local)


def test_a_cancelled_job_resumes_and_builds_only_what_is_missing(cluster, local, tmp_path):
    out = tmp_path / "out"
    arguments = command(SIMULATED, out, *on_flink(cluster))

    def strike() -> None:
        running = [j["id"] for j in cluster.rest("/jobs")["jobs"] if j["status"] == "RUNNING"]
        logger.info("cancelling job %s", running[0])
        cluster.rest(f"/jobs/{running[0]}?mode=cancel", method="PATCH")

    assert run_and_strike(arguments, out, strike) != 0
    assert not (out / schema.MANIFEST_FILE).exists()
    kept = {p: p.stat().st_mtime_ns for p in (out / schema.DATA_DIR).glob("*.parquet")}
    complete = {p.name for p in (out / state.RECORDS_DIR).glob("*.json")}

    run([*arguments, "--resume"])
    total = len(list((out / schema.DATA_DIR).glob("*.parquet")))
    logger.info("resumed: %d of %d shards were complete", len(complete), total)

    assert_same(out, local)
    for path, written in kept.items():
        if f"{path.stem}.json" in complete:
            assert path.stat().st_mtime_ns == written, f"{path.name} was built again"
