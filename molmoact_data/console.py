"""What every command shares: options of more than one, and where results go (stdout) and notes (stderr)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from molmoact_data.errors import unknown_name

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON result on stdout, nothing else there.")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="YAML with the same names as the flags; flags win. Strict."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Do only what is missing in the output.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output that is there.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan and an estimate, do nothing.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
OutputArgument = Annotated[
    str, typer.Argument(help="Output folder (or URL) of `molmoact preprocess`.")
]


def emit_json(value: Any) -> None:
    """One JSON result on stdout."""
    typer.echo(json.dumps(value))


def say(text: str) -> None:
    """A line for a person, on stderr."""
    typer.echo(text, err=True)


def given(context: typer.Context) -> dict[str, Any]:
    """The flags that were typed, by parameter name; those left out belong to the config."""
    return {name: value for name, value in context.params.items() if value not in (None, [], ())}


def chosen(value: str, flag: str, literal: Any) -> Any:
    """A flag's value if it is one of a Literal's; otherwise the error names the nearest."""
    if value not in get_args(literal):
        raise unknown_name(flag, value, get_args(literal))
    return value
