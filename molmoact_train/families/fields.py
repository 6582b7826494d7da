"""Fields of a checkpoint's files, held against their types and ranges before anything is built of them.

A width of 10^30 or a list in place of a number is one line that names the field, not whatever a network makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from molmoact_data.errors import UserError, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Size = Annotated[int, Field(ge=1, le=1 << 24)]
"""A width, a number of heads, rows of a table: 16.7 million at most."""
Depth = Annotated[int, Field(ge=1, le=1024)]
"""Blocks on top of each other, or tiles of a picture."""
Count = Annotated[int, Field(ge=0, le=1 << 24)]
TokenId = Annotated[int, Field(ge=0, le=1 << 24)]
Share = Annotated[float, Field(ge=0, le=1)]
"""Of what is dropped, or a small number beside a norm."""
Finite = Annotated[float, Field(ge=-1e30, le=1e30)]
"""NaN is in no range, so it is refused too."""


def check_fields(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raises `ValueError` naming the first value that is not of its type, nothing converted, or out of its range."""
    for name, hint in hints.items():
        try:
            _adapter(hint).validate_python(values[name], strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            message = str(first["msg"])
            raise ValueError(
                f"{name}: {message[:1].lower()}{message[1:]}, found {repr(first['input'])[:60]}"
            ) from error


def hints_of(function: Any) -> dict[str, Any]:
    """The annotated parameters of a function, ranges included."""
    hints = get_type_hints(function, include_extras=True)
    return {name: hint for name, hint in hints.items() if name not in ("return", "kwargs")}


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json. Raises `UserError` for a damaged one."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises plain Exception for a file that it cannot read.
        raise UserError(
            f"{path} is no tokenizer, or damaged ({first_line(error)}); download or export it again."
        ) from error


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)
