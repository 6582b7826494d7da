"""Get the jars of a Flink cluster with Beam's job server into a cache outside the repository.

Two releases, tried in this order:

- `flink-2.2`: Flink 2.2.1 from PyPI's `apache-flink-libraries` and Beam's shaded job server 2.77.0.
- `flink-1.19`: Beam 2.62.0's Flink runner and Flink 1.19.0, assembled from their separate Maven artifacts.
  Some mirrors of Maven Central do not carry the job-server jars (100 to 200 MB each); they do carry
  these. The Python SDK stays 2.77: runner and SDK only share Beam's portability protocol.

Only the ordinary clients are used (`mvn`, `uv pip` or `pip`), with whatever registry they are set up for.
Every attempt is bounded, by a total and by the time without a word from the client: on a machine
without network the answer is `JarsUnavailable`, soon.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
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
NOT_STAGED = Path("gradle") / "wrapper"
"""Beam's job server uploads its class path with every job, 150 MB of it, but nothing from a path with this in
its name (`PipelineResources.isStageable`); the cluster has these jars on its own class path already."""
DOWNLOAD_TIMEOUT_S = 600.0
SILENCE_TIMEOUT_S = 60.0
"""Without a line from the client; one jar of 20 MB is one line."""
LONGEST_REASON = 240
EXIT_UNAVAILABLE = 75
"""The "temporary failure" of sysexits.h; any other code is a bug."""


class JarsUnavailable(RuntimeError):
    """The jars cannot be had on this machine; the message says which and why."""


class NoAnswer(JarsUnavailable):
    """The registry does not answer at all, so the next release need not be tried."""


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
    reasons: dict[str, str] = {}
    for name in [release] if release else list(RELEASES):
        distribution = _attempt(name, cache, reasons)
        if distribution is not None:
            return distribution
    raise JarsUnavailable("; ".join(f"{name}: {reason}" for reason, name in reasons.items()))


def _attempt(name: str, cache: Path, reasons: dict[str, str]) -> Distribution | None:
    try:
        return RELEASES[name](cache / name)
    except NoAnswer:
        raise
    except JarsUnavailable as error:
        logger.info("no %s: %s", name, error)
        reasons[str(error)] = name
        return None


def _flink_2_2(folder: Path) -> Distribution:
    server = _once(folder / "job-server", _copy_job_server)
    libraries = _once(folder / "libraries", _install_libraries)
    return Distribution("flink-2.2", (libraries / "pyflink" / "lib",), (server,))


def _flink_1_19(folder: Path) -> Distribution:
    jars = _once(folder / NOT_STAGED, _assemble)
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
    run_client(["mvn", "-B", *goal], cwd=folder)


def _assemble(folder: Path) -> None:
    (folder / "pom.xml").write_text(ASSEMBLED_POM)
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={folder}", "-DincludeScope=runtime"]
    run_client(["mvn", "-B", *goal], cwd=folder)


def _install_libraries(folder: Path) -> None:
    uv = shutil.which("uv")
    pip = [uv, "pip"] if uv else [sys.executable, "-m", "pip"]
    run_client([*pip, "install", "--no-deps", "--target", str(folder), FLINK_LIBRARIES], cwd=folder)


def run_client(
    command: list[str],
    *,
    cwd: Path,
    total_s: float = DOWNLOAD_TIMEOUT_S,
    silence_s: float = SILENCE_TIMEOUT_S,
) -> None:
    """Run a package client to its end. Raises `JarsUnavailable` when it fails, `NoAnswer` when it hangs."""
    tool = Path(command[0]).name
    if shutil.which(command[0]) is None:
        raise JarsUnavailable(f"no `{tool}` on PATH")
    log = cwd / f"{tool}.log"
    with log.open("wb") as output:
        client = subprocess.Popen(
            command, cwd=cwd, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        late = _lateness(client, log, total_s=total_s, silence_s=silence_s)
    finally:
        if client.poll() is None:
            os.killpg(client.pid, signal.SIGKILL)
            client.wait()
    if late is not None:
        raise NoAnswer(f"{tool} {late}")
    if client.returncode:
        raise JarsUnavailable(f"{tool} failed: {first_error(log.read_text(errors='replace'))}")


def _lateness(
    client: subprocess.Popen[bytes], log: Path, *, total_s: float, silence_s: float
) -> str | None:
    """Until the client ends: None. A log that grows shows that it gets on; else what is wrong, in words."""
    started = heard = time.monotonic()
    size = 0
    while client.poll() is None:
        time.sleep(0.1)
        now = time.monotonic()
        if log.stat().st_size != size:
            size, heard = log.stat().st_size, now
        if now - heard > silence_s:
            return f"said nothing for {silence_s:g} s"
        if now - started > total_s:
            return f"was not done in {total_s:g} s"
    return None


def first_error(output: str) -> str:
    """The line of a client's output that says what is wrong, without colours, and not all of a long one."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines()
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if line.lower().startswith(("[error]", "error"))]
    line = (errors or said or ["no output"])[0].removeprefix("[ERROR] ").partition(" -> [Help")[0]
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]} ..."


def main() -> None:
    """Fetch the jars; where they cannot be had, one line that says why, and a code of its own."""
    try:
        print(f"{fetch(default_cache()).release} is in {default_cache()}")
    except JarsUnavailable as reason:
        print(f"SKIPPED: no Flink on this machine: {reason}")
        sys.exit(EXIT_UNAVAILABLE)


if __name__ == "__main__":
    main()
