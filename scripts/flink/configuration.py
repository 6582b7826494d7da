"""The settings of the local cluster: sizes, time limits, and what Flink and Java are told of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.flink.distribution import Distribution

MIB = 1024 * 1024
JAVA_OPTIONS = (
    # Short-lived processes on few cores: no second compiler, no collector threads.
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss",
)

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
    restart_attempts: int = 10
    restart_delay_s: int = 3
    keep_workers_s: int = 2
    """How long a Python worker waits for the next stage of its job, which otherwise starts another one."""
    start_timeout_s: int = 240
    worker_environment: Mapping[str, str] = field(default_factory=dict)
    """More variables for the Python workers."""

    def __post_init__(self) -> None:
        if self.keep_workers_s >= self.restart_delay_s:
            raise ValueError(
                f"a job restarted after {self.restart_delay_s} s would be given the worker that died, "
                f"which is kept for {self.keep_workers_s} s; keep workers for less"
            )

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


def classpath(entries: tuple[Path, ...]) -> str:
    """Java's class path; a folder stands for every jar in it."""
    return os.pathsep.join(f"{entry}/*" if entry.is_dir() else str(entry) for entry in entries)
