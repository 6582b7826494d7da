"""What the cluster tests rest on: jars that cannot be had are said so, soon; the deployment files fit the project."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from scripts.flink.distribution import (
    ASSEMBLED_POM,
    EXIT_UNAVAILABLE,
    FLINK_LIBRARIES,
    JOB_SERVER,
    JarsUnavailable,
    NoAnswer,
    fetch,
    first_error,
    run_client,
)

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
KUBERNETES = ROOT / "deploy" / "flink-kubernetes.yaml"


def only_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    """A PATH on which nothing is found but these shell scripts."""
    folder.mkdir()
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_on_path(tmp_path / "nothing", monkeypatch)
    with pytest.raises(JarsUnavailable, match="no `java` on PATH"):
        fetch(tmp_path / "cache")
    only_on_path(tmp_path / "java", monkeypatch, java="exit 0")
    with pytest.raises(JarsUnavailable, match=r"flink-2\.2: no `mvn` .*flink-1\.19: no `mvn`"):
        fetch(tmp_path / "cache")


def test_a_failing_maven_is_quoted_and_the_next_time_is_a_new_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = r"printf '[INFO] Scanning\n[\033[1;31mERROR\033[m] Cannot access central\n'; exit 1"
    only_on_path(tmp_path / "offline", monkeypatch, java="exit 0", mvn=said)
    for _ in range(2):
        with pytest.raises(JarsUnavailable, match=r"1\.19: mvn failed: Cannot access central$"):
            fetch(tmp_path / "cache")


def test_jars_that_were_had_once_need_no_maven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses_2_2 = "case $2 in dependency:copy) exit 1;; esac; : > flink.jar"
    only_on_path(tmp_path / "online", monkeypatch, java="exit 0", mvn=refuses_2_2)
    found = fetch(tmp_path / "cache")
    assert found.release == "flink-1.19"
    assert (found.cluster_jars[0] / "flink.jar").exists()
    only_on_path(tmp_path / "offline", monkeypatch, java="exit 0")
    assert fetch(tmp_path / "cache") == found


def test_a_client_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    hangs = ["/bin/sh", "-c", "sleep 1000 & echo $! > child; wait"]
    with pytest.raises(NoAnswer, match=r"sh said nothing for 0\.5 s"):
        run_client(hangs, cwd=tmp_path, total_s=60, silence_s=0.5)
    grandchild = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while is_alive(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(grandchild)
    talks = ["/bin/sh", "-c", "while :; do echo still here; sleep 0.1; done"]
    with pytest.raises(NoAnswer, match=r"sh was not done in 1 s"):
        run_client(talks, cwd=tmp_path, total_s=1, silence_s=60)


def test_a_client_that_succeeds_is_left_alone(tmp_path: Path) -> None:
    run_client(["/bin/sh", "-c", "echo yes > made"], cwd=tmp_path)
    assert (tmp_path / "made").read_text() == "yes\n"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("[INFO] a\n[ERROR] broken -> [Help 1]\n[ERROR] more", "broken"),
        ("\x1b[0m\nerror: no such package\n", "error: no such package"),
        ("something else\n", "something else"),
        ("", "no output"),
    ],
)
def test_the_line_that_says_what_is_wrong(output: str, expected: str) -> None:
    assert first_error(output) == expected


def test_the_reason_to_skip_is_one_line_with_a_code_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.flink.distribution"],
        cwd=ROOT,
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == EXIT_UNAVAILABLE
    assert done.stdout.startswith("SKIPPED: no Flink on this machine: no `java` on PATH")
    assert len(done.stdout.splitlines()) == 1
    assert f"{EXIT_UNAVAILABLE}) ;;" in (ROOT / "Makefile").read_text()


def instructions(dockerfile: str) -> list[list[str]]:
    """The words of each instruction, comments and line continuations gone."""
    lines = [line for line in dockerfile.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if line.strip()]


def test_the_image_is_of_the_versions_and_files_that_are_here() -> None:
    words = instructions(DOCKERFILE.read_text())
    locked = re.search(r"^apache-beam==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    assert locked is not None

    python = words[0][1].removeprefix("python:").removesuffix("-slim")
    sdk = next(w for line in words for w in line if w.startswith("--from=apache/beam_python"))
    assert words[0][0] == "FROM"
    assert sdk == f"--from=apache/beam_python{python}_sdk:{locked[1]}"
    for path in re.findall(r"/opt/molmoact/([\w/.]+)|-r (\S+)", DOCKERFILE.read_text()):
        assert (ROOT / (path[0] or path[1])).is_file(), path


def test_the_kubernetes_cluster_is_one_of_the_tested_releases() -> None:
    cluster: dict[str, Any] = yaml.safe_load(KUBERNETES.read_text())["spec"]
    runner = re.search(r"beam-runners-flink-([\d.]+)<", ASSEMBLED_POM)
    assert runner is not None
    assert cluster["flinkVersion"] == "v" + runner[1].replace(".", "_")
    assert cluster["image"].startswith(f"flink:{runner[1]}-")
    containers = cluster["taskManager"]["podTemplate"]["spec"]["containers"]
    worker = next(c for c in containers if c["name"] == "python-worker")
    port = worker["ports"][0]["containerPort"]
    assert f"--service_port={port}" in DOCKERFILE.read_text()
    assert f"localhost:{port}" in (ROOT / "docs" / "cluster.md").read_text()


def test_the_job_server_is_of_the_sdk_that_is_locked() -> None:
    locked = (ROOT / "requirements.lock").read_text()
    version = JOB_SERVER.rpartition(":")[2]
    assert f"apache-beam=={version}" in locked
    flink = re.search(r"flink-([\d.]+)-job-server", JOB_SERVER)
    assert flink is not None
    assert FLINK_LIBRARIES.partition("==")[2].startswith(flink[1])
