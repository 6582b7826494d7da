"""What every command shares: options of more than one, and where results go (stdout) and notes (stderr)."""

from __future__ import annotations

import functools
import inspect
import json
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from molmoact_data.config import Option, options
from molmoact_data.errors import UserError, unknown_name
from molmoact_data.redaction import redact, redacted

Command = Callable[..., None]

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


def check_device_name(name: str) -> str:
    """The name, if torch can know it: whether the machine has the device is seen when torch is there."""
    if re.fullmatch(r"auto|(cpu|cuda|mps|xpu)(:\d+)?", name) is None:
        raise unknown_name("device", name, ("auto", "cpu", "cuda", "cuda:0", "cuda:1"))
    return name


DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1.", callback=check_device_name)
]
OutputArgument = Annotated[
    str, typer.Argument(help="Output folder (or URL) of `molmoact preprocess`.")
]


def emit_json(value: Any) -> None:
    """One JSON result on stdout."""
    typer.echo(json.dumps(redacted(value)))


def say(text: str) -> None:
    """A line for a person, on stderr."""
    typer.echo(redact(text), err=True)


def conclude(headline: str, *, then: Sequence[object] = ()) -> None:
    """How every command ends for a person: what came out, in numbers, and the words of what usually comes next.

    Names in capitals stand for what only the person knows.
    """
    say(headline)
    if then:
        say(f"next: {shlex.join(map(str, then))}")


def typed_again(flag: str, value: object) -> tuple[object, ...]:
    """For the `then` of `conclude`: a flag that the next command needs as well, where this one was given it."""
    return () if value is None else (flag, value)


def given(context: typer.Context) -> dict[str, Any]:
    """The flags that were typed, by parameter name; those left out belong to the config."""
    return {name: value for name, value in context.params.items() if value not in (None, [], ())}


def chosen(value: str, flag: str, literal: Any) -> Any:
    """A flag's value if it is one of a Literal's; otherwise the error names the nearest."""
    if value not in get_args(literal):
        raise unknown_name(flag, value, get_args(literal))
    return value


# Flags from configurations


def options_of(
    config: type,
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[Command], Command]:
    """Decorate a command: every field of the dataclass `config` is a flag, before the command's own.

    The command's first argument is a mapping from field to value of the flags that were typed; those left
    out belong to the preset and the YAML file. `only` and `without` name fields; `defaults` are shown
    instead of the dataclass's where the command has others.
    """
    found = [o for o in options(config) if o.name not in without]
    if only is not None:
        found = [o for o in found if o.name in only]
    shown = {o.name: o.default for o in found} | dict(defaults or {})

    def decorate(function: Command) -> Command:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        @functools.wraps(function)
        def command(**values: Any) -> None:
            typed = {o.name: _value(o, values.pop(o.name)) for o in found}
            kept = {name: v for name, v in typed.items() if v not in (None, [], (), {})}
            function(kept, **values)

        flags = [_parameter(o, shown[o.name]) for o in found]
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            sorted([*flags, *own], key=lambda parameter: parameter.kind)  # arguments before flags
        )
        command.__annotations__ = {}
        del command.__wrapped__  # type: ignore[attr-defined]
        return command

    return decorate


def choice(help: str, choices: Sequence[str]) -> Any:  # noqa: A002  as in typer.Option
    """An option with named values: they are shown and completed; the owner refuses others with the nearest."""
    text = f"{help} {_one_of(choices)}"
    return typer.Option(help=text, metavar="NAME", autocompletion=_completion(choices))


def _parameter(found: Option, default: Any) -> inspect.Parameter:
    """What typer reads; its own default is None, so that a flag that was not typed is known as such."""
    flag = f"--{found.flag}/--no-{found.flag}" if found.kind is bool else f"--{found.flag}"
    parts = (found.help, _one_of(found.choices), _shown(default))
    text = " ".join(part for part in parts if part)
    info = typer.Option(
        flag,
        help=text.replace("[", "\\["),  # brackets are Rich's own language
        rich_help_panel=found.panel,
        metavar=found.metavar or ("NAME" if found.choices else None),
        autocompletion=_completion(found.choices),
    )
    kind = list[found.kind] if found.repeated else found.kind  # type: ignore[name-defined]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(
        found.name, keyword, default=None, annotation=Annotated[kind | None, info]
    )


def _shown(default: Any) -> str:
    """A default in words; nothing for what is simply left out."""
    if default is MISSING:
        return "[required]"
    if default is None or default in ((), [], {}):
        return ""
    if isinstance(default, bool):
        default = "yes" if default else "no"
    if isinstance(default, tuple | list):
        default = ", ".join(map(str, default))
    return f"[default: {default:g}]" if isinstance(default, float) else f"[default: {default}]"


def _one_of(choices: Sequence[str]) -> str:
    return f"One of {', '.join(choices)}." if choices else ""


def _completion(choices: Sequence[str]) -> Callable[[str], list[str]] | None:
    return (
        (lambda incomplete: [c for c in choices if c.startswith(incomplete)]) if choices else None
    )


def _value(found: Option, typed: Any) -> Any:
    return _mapping(typed or (), found) if found.pairs else typed


def _mapping(values: Sequence[str], found: Option) -> dict[str, str]:
    """`NAME=VALUE` flags as a mapping, in the order given."""
    parsed: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if value in found.alone:
            equals, rest = "=", value
        if not equals or not name or not rest:
            raise UserError(f"--{found.flag} wants {found.metavar}, repeatable; got {value!r}.")
        if name in parsed:
            raise UserError(f"--{found.flag} names {name!r} twice.")
        parsed[name] = rest
    return parsed
