"""The door: every command explains itself, mistakes are one line and exit code 2, JSON is alone on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
from made_datasets import make_dataset

import cli

ROOT = Path(__file__).resolve().parent.parent


def all_commands() -> list[tuple[str, ...]]:
    def walk(command: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        children = getattr(command, "commands", None)
        if not children:
            return [path]
        return [p for name, child in children.items() for p in walk(child, (*path, name))]

    return walk(typer.main.get_command(cli.app), ())


def molmoact(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"},
        check=False,
    )


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(cli.app, [*path, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "Usage:" in click.unstyle(result.output)
    if path != ("version",):
        assert "Example:" in result.output, "a command's docstring shows how to type it"


def test_the_commands_people_type_exist() -> None:
    assert {
        ("preprocess",), ("preview",), ("validate",), ("retokenize",), ("export",), ("publish",),
        ("download",), ("parse",), ("viz",), ("vqvae", "train"), ("vqvae", "eval"),
        ("vqvae", "encode"), ("vqvae", "decode"), ("vqvae", "convert"), ("train",), ("merge-lora",),
        ("export-hf",), ("predict",), ("demo",), ("evaluate-labels",), ("unshard",), ("merge",),
        ("stats",),
    } <= set(all_commands())  # fmt: skip


def test_preprocess_prints_one_json_object_and_nothing_else_on_stdout(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "d", lengths=(6, 5))
    done = molmoact(
        *("preprocess", "--dataset-path", str(dataset), "--output-path", str(tmp_path / "out")),
        *("--depth", "none", "--pointer", "none", "--json"),
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    expected = {"episodes": 2, "frames": 11, "shards": 1, "rejected_episodes": 0}
    assert {key: summary[key] for key in expected} == expected
    assert {"seconds", "frames_per_second"} <= set(summary)
    assert "cameras guessed" in done.stderr


MISTAKES = {
    "no such dataset": ["--dataset-path", "/no/such", "--output-path", "out"],
    "no output": ["--dataset-path", "/no/such"],
    "no VQ-VAE": ["--dataset-path", "/no/such", "--output-path", "out", "--depth-encoder", "vits"],
    "unknown preset": ["--dataset-path", "d", "--output-path", "out", "--preset", "embeded"],
    "role without key": ["--dataset-path", "d", "--output-path", "out", "--camera", "primary"],
}


@pytest.mark.parametrize("arguments", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    done = molmoact("preprocess", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")


def test_a_reject_above_the_limit_is_exit_code_3_and_still_json(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "d", lengths=(6, 5))
    next((dataset / "videos").rglob("*.mp4")).write_bytes(b"")
    done = molmoact(
        *("preprocess", "--dataset-path", str(dataset), "--output-path", str(tmp_path / "out")),
        *("--depth", "none", "--pointer", "none", "--json"),
    )
    assert done.returncode == 3
    assert json.loads(done.stdout)["rejected_episodes"] == 1
    assert "--max-reject-fraction" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_misspelt_config_key_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("dataset-path: d\noutput-path: o\npoint-evry: 3\n")
    done = molmoact("preprocess", "--config", str(tmp_path / "c.yaml"))
    assert done.returncode == 2
    assert "Did you mean 'point_every'?" in done.stderr


def test_dry_run_plans_and_writes_nothing(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "d", lengths=(6, 5))
    done = molmoact(
        *("preprocess", "--dataset-path", str(dataset), "--output-path", str(tmp_path / "out")),
        *("--depth", "none", "--pointer", "none", "--dry-run", "--json"),
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["episodes"], plan["frames"], plan["shards"]) == (2, 11, 1)
    assert plan["estimated_seconds"] > 0
    assert not (tmp_path / "out").exists()
