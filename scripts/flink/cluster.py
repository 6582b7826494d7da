"""A Flink session cluster of plain processes on loopback: one JobManager, N TaskManagers, one Beam job server.

Not a deployment tool: it is what `make cluster-test` and a curious developer start on one machine.
On a real cluster, Flink's own operator does this (docs/cluster.md). Nothing here needs Docker.
"""

from __future__ import annotations

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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.flink.distribution import Distribution, default_cache, fetch

ROOT = Path(__file__).resolve().parents[2]
BOOT = Path(__file__).resolve().with_name("boot.py")
MIB = 1024 * 1024
LOG_OPTIONS = (
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss",
)

JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
JOB_SERVER = "org.apache.beam.runners.flink.FlinkJobServerDriver"

# Flink's serializers and Netty reach into the JDK; Java 17 hides it by default.
ADD_OPENS = tuple(
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in (
        "java.lang",
        "java.net",
        "java.io",
        "java.nio",
        "sun.nio.ch",
        "java.util",
        "java.util.concurrent",
        "java.util.concurrent.atomic",
        "java.time",
    )
)


@dataclass(frozen=True)
class ClusterConfig:
    """Sizes and time limits of the cluster. The defaults suit tests on a small machine."""

    cluster_jars: tuple[Path, ...]
    """Folders of jars, or jars, for the JobManager and the TaskManagers."""
    job_server_jars: tuple[Path, ...]
    """The same for Beam's job server."""
    work_dir: Path
    """Logs, configuration and staged artifacts; created."""
    task_managers: int = 2
    slots_per_task_manager: int = 2
    """Two, so that one TaskManager can carry the job after the other was killed."""
    heap_MiB: int = 384
    """Java heap for tasks of one TaskManager; the Python workers live outside it."""
    heartbeat_timeout_s: int = 40
    """For a TaskManager that hangs; one that died is noticed at once, by its closed connection."""
    restart_attempts: int = 5
    restart_delay_s: int = 2
    start_timeout_s: int = 240
    worker_environment: Mapping[str, str] = field(default_factory=dict)
    """More variables for the Python workers."""

    @classmethod
    def from_distribution(
        cls, distribution: Distribution, work_dir: Path, **changes: Any
    ) -> ClusterConfig:
        """The class paths of a downloaded release, and any other field by name."""
        return cls(
            cluster_jars=distribution.cluster_jars,
            job_server_jars=distribution.job_server_jars,
            work_dir=work_dir,
            **changes,
        )


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def flink_configuration(config: ClusterConfig, rpc_port: int, rest_port: int) -> dict[str, Any]:
    """Flink's settings; the last block is what makes a batch job survive a lost TaskManager."""
    return {
        "jobmanager.rpc.address": "localhost",
        "jobmanager.rpc.port": rpc_port,
        "jobmanager.bind-host": "localhost",
        "jobmanager.memory.process.size": "1024m",
        "rest.address": "localhost",
        "rest.bind-address": "localhost",
        "rest.port": rest_port,
        "taskmanager.host": "localhost",
        "taskmanager.bind-host": "localhost",
        "taskmanager.numberOfTaskSlots": config.slots_per_task_manager,
        "io.tmp.dirs": str(config.work_dir / "tmp"),
        "blob.storage.directory": str(config.work_dir / "blobs"),
        # Both spellings of "one worker on each TaskManager before a second on any" (1.19 and 2.x).
        "cluster.evenly-spread-out-slots": True,
        "taskmanager.load-balance.mode": "SLOTS",
        "heartbeat.interval": 2000,
        "heartbeat.timeout": config.heartbeat_timeout_s * 1000,
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": config.restart_attempts,
        "restart-strategy.fixed-delay.delay": f"{config.restart_delay_s} s",
        "jobmanager.execution.failover-strategy": "region",
    }


def task_manager_memory(config: ClusterConfig) -> dict[str, str]:
    """Every part spelled out: started without Flink's shell scripts, a TaskManager derives none of them."""
    return {
        "taskmanager.cpu.cores": f"{config.slots_per_task_manager}.0",
        "taskmanager.memory.framework.heap.size": f"{128 * MIB}b",
        "taskmanager.memory.task.heap.size": f"{config.heap_MiB * MIB}b",
        "taskmanager.memory.framework.off-heap.size": f"{128 * MIB}b",
        "taskmanager.memory.task.off-heap.size": "0b",
        "taskmanager.memory.network.min": f"{64 * MIB}b",
        "taskmanager.memory.network.max": f"{64 * MIB}b",
        "taskmanager.memory.managed.size": f"{128 * MIB}b",
        "taskmanager.memory.jvm-metaspace.size": f"{256 * MIB}b",
        "taskmanager.memory.jvm-overhead.min": f"{128 * MIB}b",
        "taskmanager.memory.jvm-overhead.max": f"{128 * MIB}b",
        "external-resources": "none",
    }


def _wait_or_kill(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def classpath(entries: tuple[Path, ...]) -> str:
    """Java's class path; a folder stands for every jar in it."""
    return os.pathsep.join(f"{entry}/*" if entry.is_dir() else str(entry) for entry in entries)


@dataclass
class FlinkCluster:
    """Use as a context manager; `pipeline_flags` are what a pipeline needs to run on it."""

    config: ClusterConfig
    rest_port: int = field(default_factory=free_port)
    rpc_port: int = field(default_factory=free_port)
    job_port: int = field(default_factory=free_port)
    artifact_port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

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
        self._wait_until_ready()

    def start_task_manager(self, index: int) -> None:
        """One more worker machine, so to say; also used to replace one that was killed."""
        options = [f"-Xmx{self.config.heap_MiB + 128}m", f"-XX:MaxDirectMemorySize={320}m"]
        settings = [f"-D{k}={v}" for k, v in task_manager_memory(self.config).items()]
        self._java(f"taskmanager-{index}", TASK_MANAGER, options, [*self._conf, *settings])

    def kill_task_manager(self, index: int) -> int:
        """SIGKILL, as the kernel's out-of-memory killer would; returns the process id."""
        process = self.processes.pop(f"taskmanager-{index}")
        process.kill()
        process.wait()
        return process.pid

    def stop(self) -> None:
        """Ends every process that was started here; also the Python workers of the TaskManagers."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            _wait_or_kill(process)
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
            *LOG_OPTIONS,
            *options,
            "-cp",
            classpath(jars),
            main_class,
            *arguments,
        ]
        with (self.config.work_dir / "logs" / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment
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

    def _wait_until_ready(self) -> None:
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
    config = ClusterConfig.from_distribution(fetch(default_cache()), Path.cwd() / "flink-cluster")
    with FlinkCluster(config) as cluster:
        print(f"{cluster.overview()}\nWeb interface: http://localhost:{cluster.rest_port}")
        runner, *options = cluster.pipeline_flags(parallelism=config.task_managers)
        print(f"molmoact preprocess ... {runner} \\")
        print(" \\\n".join(f"  --beam-option={shlex.quote(option)}" for option in options))
        signal.sigwait([signal.SIGINT, signal.SIGTERM])


if __name__ == "__main__":
    main()
