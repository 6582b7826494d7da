"""Flags are made from configuration dataclasses: name, type, default, choices and help are said once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Any, Literal

import click
import pytest
import typer
from typer.testing import CliRunner

from molmoact_data.config import option, options
from molmoact_data.console import JsonOption, choice, options_of
from molmoact_data.errors import UserError


@dataclass(frozen=True)
class Labels:
    depth: str = option("small", panel="Depth", choices=("small", "large"))
    """Depth teacher; brackets [stay]."""
    units: Literal["pixels", "grid"] = "pixels"
    """Unit of a point."""


@dataclass(frozen=True)
class Config:
    data: str
    """What is read,
    in two lines."""
    cameras: Mapping[str, str] = option(factory=dict, flag="camera", metavar="ROLE=KEY")
    """Role and key."""
    labels: Labels = field(default_factory=Labels)
    many: tuple[str, ...] = ()
    """Repeated."""
    process_actions: bool = True
    """Write actions."""
    lr: float = option(1e-3, panel="Training")
    """Rate."""
    steps: int | None = None
    """Stop earlier."""
    retries: int = option(3, flag="")
    """In YAML only."""


def run(*words: str, **how: Any) -> tuple[dict[str, Any], bool]:
    seen: list[tuple[dict[str, Any], bool]] = []
    app = typer.Typer()

    @app.command()
    @options_of(Config, **how)
    def command(
        flags: dict[str, Any],
        *,
        preset: Annotated[str | None, choice("Preset.", ["debug", "full"])] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Do it."""
        seen.append(({**flags, **({"preset": preset} if preset else {})}, as_json))

    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    if not seen:
        return {"output": click.unstyle(done.output)}, False
    return seen[0]


def test_a_field_says_name_type_default_choices_and_help() -> None:
    found = {o.name: o for o in options(Config)}
    assert list(found) == [
        "data", "cameras", "depth", "units", "many", "process_actions", "lr", "steps",
    ]  # fmt: skip
    assert (found["data"].default, found["data"].help) == (MISSING, "What is read, in two lines.")
    assert (found["cameras"].flag, found["cameras"].pairs, found["cameras"].default) == (
        "camera", True, {},
    )  # fmt: skip
    assert (found["depth"].choices, found["units"].choices) == (
        ("small", "large"), ("pixels", "grid"),
    )  # fmt: skip
    assert (found["units"].kind, found["units"].panel) == (str, "Depth"), "a panel holds on"
    assert found["many"].panel is None, "a panel inside a part ends with it"
    assert (found["steps"].kind, found["steps"].panel) == (int, "Training")


def test_only_what_was_typed_is_passed_on() -> None:
    assert run() == ({}, False)
    words = "--data d --camera a=x --camera b=y=z --no-process-actions --many 1 --many 2 --lr 0.5 --json"
    assert run(*words.split()) == (
        {
            "data": "d", "cameras": {"a": "x", "b": "y=z"}, "process_actions": False,
            "many": ["1", "2"], "lr": 0.5,
        },
        True,
    )  # fmt: skip
    assert run("--steps", "0", "--preset", "debug")[0] == {"steps": 0, "preset": "debug"}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--camera", "a"], "--camera wants ROLE=KEY"),
        (["--camera", "a=x", "--camera", "a=y"], "--camera names 'a' twice"),
    ],
)
def test_a_pair_that_is_none_is_named(words: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        run(*words)


def test_help_shows_panels_defaults_choices_and_what_is_required() -> None:
    shown = run("--help", defaults={"lr": 2e-5})[0]["output"]
    lines = [" ".join(line.strip("│ ").split()) for line in shown.splitlines()]
    wanted = ("--data", "--depth", "--process-actions", "--lr", "--preset")
    rows = {name: next(line for line in lines if line.startswith(f"{name} ")) for name in wanted}
    assert rows["--data"].endswith("What is read, in two lines. [required]")
    assert rows["--depth"].endswith(
        "Depth teacher; brackets [stay]. One of small, large. [default: small]"
    )
    assert "--no-process-actions" in rows["--process-actions"]
    assert rows["--lr"].endswith("Rate. [default: 2e-05]"), "a command's own default"
    assert "One of debug, full." in rows["--preset"]
    titles = [line.strip("╭╮─ ") for line in shown.splitlines() if line.startswith("╭")]
    assert titles == ["Options", "Depth", "Training"]
    assert "--retries" not in shown


def test_a_command_may_leave_fields_out() -> None:
    assert "--units" not in run("--help", without=["units"])[0]["output"]
    assert "--data" not in run("--help", only=["units"])[0]["output"]
