"""The images for users and developers name versions, extras and files that are here; no Docker is needed to see it."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "deploy" / "user" / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_python_of_every_image_is_one_that_the_project_takes() -> None:
    devcontainer = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    named = re.findall(r"python:?(3\.\d+)", DOCKERFILE + devcontainer["image"])
    assert set(named) == {"3.12"}
    assert SpecifierSet(PROJECT["requires-python"]).contains(named[0])


def test_the_base_is_an_argument_and_the_cpu_is_the_default() -> None:
    instructions = [line for line in DOCKERFILE.splitlines() if line and line[0] not in "# "]
    assert instructions[:2] == ["ARG BASE=python:3.12-slim", "FROM ${BASE}"]
    assert "--build-arg BASE=nvidia/cuda:" in DOCKERFILE


def test_extras_files_and_the_program_exist() -> None:
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", DOCKERFILE)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    copied = re.findall(r"^COPY (\S+) ", DOCKERFILE, re.M)
    assert copied == ["requirements.lock", "."]
    assert (ROOT / "requirements.lock").is_file()
    (program,) = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)[0])
    assert program in PROJECT["scripts"]
    ignored = (ROOT / "deploy" / "user" / "Dockerfile.dockerignore").read_text().split()
    assert {".git", ".venv"} <= set(ignored)


def test_the_dev_container_sets_up_as_the_makefile_does() -> None:
    devcontainer = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    target = devcontainer["postCreateCommand"].removeprefix("make ")
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
    libraries = set(re.findall(r"\blib\w+\b", DOCKERFILE))
    assert libraries <= set(devcontainer["onCreateCommand"].split())
