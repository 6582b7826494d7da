"""JSON that we did not write, or that a crash may have cut, becomes a typed value or one line with file and field."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from molmoact_data.errors import UserError, first_line

Value = TypeVar("Value")


def parse_json(kind: type[Value], content: bytes | str, where: str, then: str = "") -> Value:
    """`content` as a `kind` (a dataclass, or `dict[str, float]` and the like). Keys that `kind` lacks are ignored.

    Nothing is converted: "8" is no number, 1 is no boolean. `where` names the file in the error, `then` ends it
    with what to do. Raises `UserError` for text that is no JSON (however deep, long or cut) and for wrong fields.
    """
    try:
        value: Value = _adapter(kind).validate_json(content, strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        raise UserError(" ".join(filter(None, (_sentence(error, where), then)))) from error
    return value


def read_typed(kind: type[Value], path: Path, then: str = "") -> Value:
    """The JSON file at `path` as a `kind`; see `parse_json`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(" ".join(filter(None, (_cannot_read(path, error), then)))) from error
    return parse_json(kind, content, str(path), then)


def _cannot_read(path: Path, error: OSError) -> str:
    return f"cannot read {path}: {error.strerror or first_line(error)}."


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _sentence(error: ValidationError, where: str) -> str:
    """The first thing that is wrong; with more of them, how many."""
    problems = error.errors(include_url=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        return f"{where} is damaged: {first['msg']}."
    field = ".".join(str(part) for part in first["loc"]) or "the whole"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {field}: {_said(first)}{more}."


def _said(problem: Mapping[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if problem["type"] == "missing":
        return message
    return f"{message}, found {repr(problem['input'])[:60]}"
