"""One command of the program: its help, `-v` after its name as well as before it, and names that flags used to have."""

from __future__ import annotations

import functools
import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperArgument, TyperCommand, TyperOption

from molmoact_data.console import say
from molmoact_data.redaction import redact

OURS = ("molmoact_data", "molmoact_train", "molmoact_robot", "vqvae", "pipelines")
"""Packages whose log is for people."""
OLD_FLAGS: Mapping[str, str] = {
    "--input": "--input-path",
    "--output": "--output-path",
    "--report": "--output-path",
    "--save-folder": "--output-path",
    "--sheet": "--output-path",
}
"""What a flag was called -> what it is called in every command. The old name works, with a note."""
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log debug output.")]
_EXAMPLE = "Example: "


class Command(TyperCommand):
    """As Typer's; each option's whole name stands in its help, however narrow the terminal."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Old names of flags are read as the new ones."""
        return super().parse_args(ctx, self._with_new_names(args))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Usage, what the command does, an example in one line to copy, and panels of options."""
        console = Console(highlight=False)
        console.print(f"\n {escape(self.get_usage(ctx))}\n", soft_wrap=True)
        text, _, example = (self.help or "").partition(_EXAMPLE)
        for paragraph in filter(str.strip, text.split("\n\n")):
            console.print(Padding(escape(" ".join(paragraph.split())), (0, 1, 1, 1)))
        if example:
            console.print(f" {_EXAMPLE}{escape(' '.join(example.split()))}\n", soft_wrap=True)
        for title, rows in self._panels(ctx).items():
            console.print(Panel(_table(rows), title=title, title_align="left", border_style="dim"))

    def _with_new_names(self, args: Sequence[str]) -> list[str]:
        known = {name for parameter in self.params for name in parameter.opts}
        words = []
        for word in args:
            name, equals, value = word.partition("=")
            new = OLD_FLAGS.get(name)
            if new in known and name not in known:
                say(f"note: {name} is called {new} now.")
                word = new + equals + value
            words.append(word)
        return words

    def _panels(self, ctx: Any) -> dict[str, list[tuple[Text, str]]]:
        """Heading -> rows of name and explanation; arguments first, flags without a heading under Options."""
        kinds = {
            name: _kind(get_args(own.annotation)[0])
            for name, own in inspect.signature(self.callback or _nothing).parameters.items()
        }
        found: dict[str, list[tuple[Text, str]]] = {}
        for parameter in self.get_params(ctx):
            if getattr(parameter, "hidden", False):
                continue
            argument = isinstance(parameter, TyperArgument)
            panel = getattr(parameter, "rich_help_panel", None)
            title = panel or ("Arguments" if argument else "Options")
            found.setdefault(title, []).append((_name(parameter, kinds), _explained(parameter)))
        return dict(sorted(found.items(), key=lambda pair: pair[0] != "Arguments"))


def _table(rows: Sequence[tuple[Text, str]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for name, text in rows:
        table.add_row(name, text)
    return table


def _nothing() -> None:
    """A command that takes nothing."""


def _name(parameter: Any, kinds: Mapping[str, str]) -> Text:
    """`--camera ROLE=KEY`, `--json`, `OUTPUT`; one line per spelling."""
    if isinstance(parameter, TyperArgument):
        return Text(str(parameter.name).upper(), style="bold cyan")
    names = sorted(parameter.opts, key=lambda name: -len(name))
    lines = [", ".join(names), *parameter.secondary_opts]
    if not parameter.is_flag:
        lines[0] += " " + (parameter.metavar or kinds.get(parameter.name, "TEXT"))
    return Text("\n".join(lines), style="cyan")


def _explained(parameter: Any) -> str:
    """Help text (Rich markup), default, and whether it must be given."""
    parts = [parameter.help or ""]
    if parameter.required and isinstance(parameter, TyperOption):
        parts.append(escape("[required]"))
    default = parameter.default
    if default is not None and not parameter.required and isinstance(default, str | int | float):
        if default != "" and not isinstance(default, bool):
            parts.append(escape(f"[default: {default}]"))
        elif default is True:
            parts.append(escape("[default: yes]"))
    return " ".join(part for part in parts if part)


def _kind(annotation: Any) -> str:
    """What a value is, for people: N for a whole number, X for any, PATH or TEXT."""
    text = str(annotation)
    names = {"int": "N", "float": "X", "pathlib.Path": "PATH"}
    return next((short for name, short in names.items() if re.search(rf"\b{name}\b", text)), "TEXT")


def with_verbose(function: Callable[..., None]) -> Callable[..., None]:
    """The command, which takes `-v` after its name as well as before it."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())
    flag = inspect.Parameter(
        "verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=VerboseOption
    )

    @functools.wraps(function)
    def command(*, verbose: bool, **values: Any) -> None:
        if verbose:
            set_up_log(verbose=True)
        function(**values)

    command.__signature__ = inspect.Signature([*own, flag])  # type: ignore[attr-defined]
    command.__annotations__ = {}
    del command.__wrapped__  # type: ignore[attr-defined]
    return command


def set_up_log(*, verbose: bool) -> None:
    """What is logged, and where: our own notes on stderr, without the secrets in them."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    root = logging.getLogger()
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    for handler in root.handlers:
        handler.addFilter(hide_secrets)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
    # Beam logs a traceback for every error it passes on; the error itself is what a user needs.
    logging.getLogger("apache_beam").setLevel(logging.NOTSET if verbose else logging.CRITICAL)


def hide_secrets(record: logging.LogRecord) -> bool:
    """A filter that lets every line through, without the secrets in it."""
    record.msg, record.args = redact(record.getMessage()), ()
    return True
