"""The door: every `molmoact` command is a signature, a docstring and one call.

Heavy packages are imported inside the commands, so that `molmoact --help` needs neither torch nor Beam.
Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 a bug; 2 the input or the flags
are wrong; 3 the run finished but what it found is above a limit that the user set.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from molmoact_data.errors import UserError

app = typer.Typer(
    name="molmoact",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Robot demonstrations in, an Action Reasoning Model out.",
)

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON result on stdout, nothing else there.")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="YAML with the same names as the flags; flags win. Strict."),
]


@app.command()
def version() -> None:
    """Print the installed version."""
    from importlib.metadata import version as installed_version

    typer.echo(installed_version("molmoact"))


@app.callback()
def _configure(
    *, verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log debug output.")] = False
) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def main() -> None:
    """Entry point: a user's mistake is one clear line and exit code 2, a bug keeps its traceback."""
    try:
        app()
    except UserError as error:
        if os.environ.get("MOLMOACT_TRACEBACK"):
            raise
        typer.secho(f"error: {error}", fg="red", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
