"""The commands of the program, found by walking it, and the type of the fixture that calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import click
import typer.main

import cli

Molmoact = Callable[..., tuple[int, str, str]]
"""The fixture `molmoact`: arguments -> exit code, stdout, stderr."""
Words = tuple[str, ...]
"""The words of a command: `("vqvae", "train")`."""


def walk(command: click.Command, path: Words = ()) -> Iterator[tuple[Words, click.Command]]:
    """Every command below `command` that does something itself."""
    children: dict[str, click.Command] = getattr(command, "commands", {})
    if not children:
        yield path, command
    for name, child in children.items():
        yield from walk(child, (*path, name))


ALL: dict[Words, click.Command] = dict(walk(typer.main.get_command(cli.app)))
