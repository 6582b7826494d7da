"""A Flink session cluster of plain processes on loopback: one JobManager, N TaskManagers, one Beam job server.

Not a deployment tool: it is what `make cluster-test` and a curious developer start on one machine.
On a real cluster, Flink's own operator does this (docs/cluster.md). Nothing here needs Docker.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from scripts.flink.configuration import (
    ADD_OPENS,
    JAVA_OPTIONS,
    ClusterConfig,
    classpath,
    flink_configuration,
    task_manager_memory,
)
from scripts.flink.distribution import default_cache, fetch

ROOT = Path(__file__).resolve().parents[2]
BOOT = Path(__file__).resolve().with_name("boot.py")
PR_SET_PDEATHSIG = 1
JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
JOB_SERVER = "org.apache.beam.runners.flink.FlinkJobServerDriver"


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end_with_parent() -> None:
    """In the child, before it becomes Java: SIGKILL when this process is gone, however it went (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _family(processes: Iterable[subprocess.Popen[bytes]]) -> list[psutil.Process]:
    """The processes that still run, and what they have started: a TaskManager's Python workers."""
    parents = [psutil.Process(p.pid) for p in processes if p.poll() is None]
    return [child for p in parents for child in p.children(recursive=True)] + parents


def _end(family: list[psutil.Process]) -> None:
    """Ask, wait ten seconds, insist."""
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=10)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=10)


@dataclass
class FlinkCluster:
    """Use as a context manager; `pipeline_flags` are what a pipeline needs to run on it."""

    config: ClusterConfig
    rest_port: int = field(default_factory=free_port)
    rpc_port: int = field(default_factory=free_port)
    job_port: int = field(default_factory=free_port)
    artifact_port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    orphans: list[psutil.Process] = field(default_factory=list)
    """Python workers of killed TaskManagers; they end by themselves, or with the cluster."""

    def __enter__(self) -> FlinkCluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        for name in ("conf", "tmp", "blobs", "artifacts", "logs"):
            (self.config.work_dir / name).mkdir(parents=True, exist_ok=True)
        settings = flink_configuration(self.config, self.rpc_port, self.rest_port)
        lines = [f"{key}: {json.dumps(value)}" for key, value in settings.items()]
        (self.config.work_dir / "conf" / "config.yaml").write_text("\n".join(lines) + "\n")
        self._start_job_manager()
        for index in range(self.config.task_managers):
            self.start_task_manager(index)
        self._start_job_server()
        self.wait_until_ready()

    def start_task_manager(self, index: int) -> None:
        """One more worker machine, so to say; also used to replace one that was killed."""
        options = [f"-Xmx{self.config.heap_MiB + 128}m", f"-XX:MaxDirectMemorySize={320}m"]
        settings = [f"-D{k}={v}" for k, v in task_manager_memory(self.config).items()]
        self._java(f"taskmanager-{index}", TASK_MANAGER, options, [*self._conf, *settings])

    def kill_task_manager(self, index: int) -> int:
        """SIGKILL, as the kernel's out-of-memory killer would; returns the process id."""
        process = self.processes.pop(f"taskmanager-{index}")
        self.orphans += psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        return process.pid

    def stop(self) -> None:
        """Ends every process that was started here; also the Python workers of the TaskManagers."""
        _end([*_family(self.processes.values()), *self.orphans])
        for process in self.processes.values():
            process.wait()
        self.processes.clear()

    def overview(self) -> dict[str, Any]:
        """Flink's own answer to "what runs here": `taskmanagers`, `slots-total`, ..."""
        return self.rest("/overview")

    def rest(self, path: str, method: str = "GET") -> dict[str, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.rest_port}{path}", method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.loads(response.read() or b"{}")

    def pipeline_flags(self, parallelism: int) -> list[str]:
        """Beam's flags for this cluster: workers are processes that `boot.py` starts."""
        binaries = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {
            "command": str(BOOT),
            "env": {"PATH": binaries, "PYTHONPATH": str(ROOT), **self.config.worker_environment},
        }
        return [
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{self.job_port}",
            f"--artifact_endpoint=localhost:{self.artifact_port}",
            "--environment_type=PROCESS",
            f"--environment_config={json.dumps(environment)}",
            "--sdk_worker_parallelism=1",
            f"--environment_cache_millis={1000 * self.config.keep_workers_s}",
            f"--parallelism={parallelism}",
        ]

    @property
    def _conf(self) -> list[str]:
        return ["-c", str(self.config.work_dir / "conf")]

    def _java(self, name: str, main_class: str, options: list[str], arguments: list[str]) -> None:
        is_server = main_class == JOB_SERVER
        jars = self.config.job_server_jars if is_server else self.config.cluster_jars
        environment = {**os.environ, "FLINK_CONF_DIR": self._conf[1]}
        command = [
            "java",
            *ADD_OPENS,
            *JAVA_OPTIONS,
            *options,
            "-cp",
            classpath(jars),
            main_class,
            *arguments,
        ]
        with (self.config.work_dir / "logs" / f"{name}.log").open("ab") as log:
            # A session of its own: Ctrl-C is for us, and we end the cluster in order.
            self.processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def _start_job_manager(self) -> None:
        arguments = [*self._conf, "--executionMode", "cluster"]
        self._java("jobmanager", JOB_MANAGER, ["-Xmx512m"], arguments)

    def _start_job_server(self) -> None:
        arguments = [
            f"--flink-master=localhost:{self.rest_port}",
            "--job-host=localhost",
            f"--job-port={self.job_port}",
            f"--artifact-port={self.artifact_port}",
            "--expansion-port=0",
            f"--artifacts-dir={self.config.work_dir / 'artifacts'}",
            f"--flink-conf-dir={self._conf[1]}",
        ]
        self._java("jobserver", JOB_SERVER, ["-Xmx512m"], arguments)

    def wait_until_ready(self) -> None:
        """Until every TaskManager has offered its slots and the job server listens."""
        deadline = time.monotonic() + self.config.start_timeout_s
        while time.monotonic() < deadline:
            self._fail_on_dead_process()
            if self._is_ready():
                return
            time.sleep(0.5)
        raise TimeoutError(f"no Flink cluster after {self.config.start_timeout_s} s; {self._logs}")

    def _is_ready(self) -> bool:
        try:
            slots = self.overview()["slots-available"]
            with socket.create_connection(("127.0.0.1", self.job_port), timeout=1):
                return slots >= self.config.task_managers * self.config.slots_per_task_manager
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def _fail_on_dead_process(self) -> None:
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with code {process.returncode}; {self._logs}")

    @property
    def _logs(self) -> str:
        return f"logs in {self.config.work_dir / 'logs'}"


def main() -> None:
    """Keep a cluster up until interrupted, and print the flags that send a pipeline there."""
    config = ClusterConfig.from_distribution(
        fetch(default_cache()), Path.cwd() / "out" / "flink-cluster"
    )
    with FlinkCluster(config) as cluster:
        print(f"{cluster.overview()}\nWeb interface: http://localhost:{cluster.rest_port}")
        runner, *options = cluster.pipeline_flags(parallelism=config.task_managers)
        print(f"molmoact preprocess ... {runner} \\")
        print(" \\\n".join(f"  --beam-option={shlex.quote(option)}" for option in options))
        signal.sigwait([signal.SIGINT, signal.SIGTERM])


if __name__ == "__main__":
    main()
