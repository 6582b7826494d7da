"""What the cluster tests rest on: jars that cannot be had are said so, soon; the deployment files fit the project."""

from __future__ import annotations

import os
import re
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
    with pytest.raises(JarsUnavailable, match=r"^flink-1\.19: no `mvn` on PATH$"):
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
    while is_alive(grandchild):  # one that stays is ended by pytest's own limit
        time.sleep(0.05)
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
        ("[INFO] no error yet\n[ERROR] this\n", "this"),
        ("something else\n", "something else"),
        ("x" * 500, "x" * 240 + " ..."),
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


def locked_beam() -> str:
    found = re.search(r"^apache-beam==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    assert found is not None
    return found[1]


def test_the_image_is_of_the_versions_and_files_that_are_here() -> None:
    dockerfile = DOCKERFILE.read_text()
    base = re.search(r"^FROM python:([\d.]+)-slim$", dockerfile, re.M)
    assert base is not None
    assert f"--from=apache/beam_python{base[1]}_sdk:{locked_beam()} " in dockerfile
    copied = re.findall(r"^COPY (?!--from)(\S+) ", dockerfile, re.M)
    assert copied == ["requirements.lock", "."]
    assert (ROOT / copied[0]).is_file()
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().split()
    assert {".git", ".venv"} <= set(ignored)
    assert not {"scripts", "pipelines", "deploy", "docs"} & set(ignored)


def test_the_kubernetes_cluster_is_one_of_the_tested_releases() -> None:
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(KUBERNETES.read_text()))
    flink, job_server, service = (document["spec"] for document in documents)
    runner = re.search(r"beam-runners-flink-([\d.]+)<", ASSEMBLED_POM)
    assert runner is not None
    assert flink["flinkVersion"] == "v" + runner[1].replace(".", "_")
    assert flink["image"].startswith(f"flink:{runner[1]}-")
    (server,) = job_server["template"]["spec"]["containers"]
    assert server["image"] == f"apache/beam_flink{runner[1]}_job_server:{locked_beam()}"
    assert f"--flink-master={documents[0]['metadata']['name']}-rest:8081" in server["args"]
    assert [port["port"] for port in service["ports"]] == [8099, 8098]


def test_the_worker_beside_a_task_manager_is_the_one_that_is_here() -> None:
    flink = next(iter(yaml.safe_load_all(KUBERNETES.read_text())))["spec"]
    containers = flink["taskManager"]["podTemplate"]["spec"]["containers"]
    worker = next(c for c in containers if c["name"] == "python-worker")
    options = dict(argument.split("=") for argument in worker["args"])
    boot = ROOT / options["--container_executable"].removeprefix("/opt/molmoact/")
    assert os.access(boot, os.X_OK)
    assert worker["ports"] == [{"containerPort": int(options["--service_port"])}]
    advised = (ROOT / "docs" / "cluster.md").read_text()
    assert f"--environment_config=localhost:{options['--service_port']}" in advised


def test_the_job_server_is_of_the_sdk_that_is_locked() -> None:
    assert JOB_SERVER.rpartition(":")[2] == locked_beam()
    flink = re.search(r"flink-([\d.]+)-job-server", JOB_SERVER)
    assert flink is not None
    assert FLINK_LIBRARIES.partition("==")[2].startswith(flink[1])
