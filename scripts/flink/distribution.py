"""Get the jars of a Flink cluster with Beam's job server into a cache outside the repository.

Two releases, tried in this order:

- `flink-2.2`: Flink 2.2.1 from PyPI's `apache-flink-libraries` and Beam's shaded job server 2.77.0.
- `flink-1.19`: Beam 2.62.0's Flink runner and Flink 1.19.0, assembled from their separate Maven artifacts.
  Some mirrors of Maven Central do not carry the job-server jars (100 to 200 MB each); they do carry
  these. The Python SDK stays 2.77: runner and SDK only share Beam's portability protocol.

Only the ordinary clients are used (`mvn`, `uv pip` or `pip`), with whatever registry they are set up for.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

FLINK_LIBRARIES = "apache-flink-libraries==2.2.1"
JOB_SERVER = "org.apache.beam:beam-runners-flink-2.2-job-server:2.77.0"
ASSEMBLED_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>molmoact</groupId><artifactId>flink-classpath</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.beam</groupId>
      <artifactId>beam-runners-flink-1.19</artifactId><version>2.62.0</version></dependency>
    <dependency><groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""
COMPLETE = ".complete"
DOWNLOAD_TIMEOUT_S = 900


class JarsUnavailable(RuntimeError):
    """The jars cannot be had on this machine; the message says which and why."""


@dataclass(frozen=True)
class Distribution:
    """Class paths of one release."""

    release: str
    cluster_jars: tuple[Path, ...]
    job_server_jars: tuple[Path, ...]


def default_cache() -> Path:
    """`$MOLMOACT_CACHE/flink`, or `~/.cache/molmoact/flink`."""
    return Path(os.environ.get("MOLMOACT_CACHE", Path.home() / ".cache" / "molmoact")) / "flink"


def fetch(cache: Path, release: str | None = None) -> Distribution:
    """The first release that can be had, or the one asked for. Raises `JarsUnavailable`."""
    if shutil.which("java") is None:
        raise JarsUnavailable("no `java` on PATH; Flink needs Java 11 or 17")
    reasons: list[str] = []
    for name in [release] if release else list(RELEASES):
        distribution = _attempt(name, cache, reasons)
        if distribution is not None:
            return distribution
    raise JarsUnavailable("; ".join(reasons))


def _attempt(name: str, cache: Path, reasons: list[str]) -> Distribution | None:
    try:
        return RELEASES[name](cache / name)
    except JarsUnavailable as error:
        logger.info("%s", error)
        reasons.append(f"{name}: {error}")
        return None


def _flink_2_2(folder: Path) -> Distribution:
    server = _once(folder / "job-server", _copy_job_server)
    libraries = _once(folder / "libraries", _install_libraries)
    return Distribution("flink-2.2", (libraries / "pyflink" / "lib",), (server,))


def _flink_1_19(folder: Path) -> Distribution:
    jars = _once(folder / "jars", _assemble)
    return Distribution("flink-1.19", (jars,), (jars,))


RELEASES: Mapping[str, Callable[[Path], Distribution]] = {
    "flink-2.2": _flink_2_2,
    "flink-1.19": _flink_1_19,
}


def _once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Fill a folder, or find it complete from an earlier time; the mark is written last."""
    if not (folder / COMPLETE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        fill(folder)
        (folder / COMPLETE).touch()
    return folder


def _copy_job_server(folder: Path) -> None:
    goal = ["dependency:copy", f"-Dartifact={JOB_SERVER}", f"-DoutputDirectory={folder}"]
    _run(["mvn", "-q", "-B", *goal], cwd=folder)


def _assemble(folder: Path) -> None:
    (folder / "pom.xml").write_text(ASSEMBLED_POM)
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={folder}", "-DincludeScope=runtime"]
    _run(["mvn", "-q", "-B", *goal], cwd=folder)


def _install_libraries(folder: Path) -> None:
    uv = shutil.which("uv")
    pip = [uv, "pip"] if uv else [sys.executable, "-m", "pip"]
    _run([*pip, "install", "--no-deps", "--target", str(folder), FLINK_LIBRARIES], cwd=folder)


def _run(command: list[str], *, cwd: Path) -> None:
    tool = Path(command[0]).name
    if shutil.which(command[0]) is None:
        raise JarsUnavailable(f"no `{tool}` on PATH")
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise JarsUnavailable(f"{tool} did not answer in {DOWNLOAD_TIMEOUT_S} s") from error
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise JarsUnavailable(f"{tool} failed: {lines[0] if lines else 'no output'}")
