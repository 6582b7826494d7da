"""Which interpreter set-up takes, asked of the script itself with made-up interpreters."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "find_python.sh"


def interpreter(path: Path, version: str | None) -> Path:
    """A program that answers as Python of `version`; None = it refuses, as pyenv's shims do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{'exit 127' if version is None else f'echo {version}'}\n")
    path.chmod(0o755)
    return path


class Machine:
    """A home, a pyenv and a uv with nothing in them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir()

    def add(self, place: str, version: str | None) -> Path:
        return interpreter(self.root / place, version)

    def find(self, **environment: str) -> subprocess.CompletedProcess[str]:
        tools = {"PATH": f"{self.root / 'bin'}", "HOME": str(self.root)}
        places = {
            "PYENV_ROOT": str(self.root / "pyenv"),
            "UV_PYTHON_INSTALL_DIR": str(self.root / "uv"),
        }
        return subprocess.run(
            ["/bin/bash", str(SCRIPT)],
            env={**tools, **places, **environment},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_three_twelve_comes_first_wherever_it_is(machine: Machine) -> None:
    machine.add("bin/python3.13", "3.13")
    machine.add("bin/python3.11", "3.11")
    wanted = machine.add("pyenv/versions/3.12.1/bin/python", "3.12")
    assert machine.find().stdout.strip() == str(wanted)


def test_then_three_thirteen_then_three_eleven(machine: Machine) -> None:
    last = machine.add("bin/python3.11", "3.11")
    assert machine.find().stdout.strip() == str(last)
    wanted = machine.add("uv/cpython-3.13.0-linux-x86_64-gnu/bin/python3", "3.13")
    assert machine.find().stdout.strip() == str(wanted)


def test_a_shim_that_refuses_is_passed_over(machine: Machine) -> None:
    machine.add("bin/python3.12", None)
    wanted = machine.add("bin/python3", "3.12")
    assert machine.find().stdout.strip() == str(wanted)


def test_a_name_that_lies_is_not_believed(machine: Machine) -> None:
    machine.add("bin/python3.12", "3.10")
    done = machine.find()
    assert (done.returncode, done.stdout) == (1, "")
    assert "no Python 3.11 to 3.13 on PATH" in done.stderr


def test_what_the_user_names_is_taken_or_refused(machine: Machine) -> None:
    machine.add("bin/python3.12", "3.12")
    wanted, old = machine.add("mine/python", "3.11"), machine.add("old/python", "3.9")
    assert machine.find(PYTHON=str(wanted)).stdout.strip() == str(wanted)
    refused = machine.find(PYTHON=str(old))
    assert refused.returncode == 1
    assert f"PYTHON={old}" in refused.stderr
