"""Strict configuration: a mapping (YAML, flags) becomes a frozen dataclass, or an error that helps.

The dataclass lives beside its owner and raises `ValueError` from `__post_init__` for impossible
combinations; this module only does what all of them share.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from molmoact_data.errors import UserError, unknown_name

Config = TypeVar("Config")


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; dashes in keys are read as underscores, like the flags."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config file {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `key: value` pairs, found a {type(values).__name__}.")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def build(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """An instance of the frozen dataclass `cls`; an unknown key or choice names its nearest match.

    Values are converted to the annotated types where nothing is lost ("8" -> 8, but not 8.5 -> 8).
    """
    from pydantic import TypeAdapter, ValidationError

    _check_keys(cls, values, "")
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise UserError(_readable(error)) from error


def _check_keys(kind: Any, value: Any, where: str) -> None:
    """Nested dataclasses too, along the annotated types; pydantic would pass over their unknown keys."""
    if get_origin(kind) in (Union, UnionType):
        for part in get_args(kind):
            _check_keys(part, value, where)
    elif isinstance(value, Mapping) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        known = [f"{where}{field.name}" for field in dataclasses.fields(kind)]
        for key, item in value.items():
            if f"{where}{key}" not in known:
                raise unknown_name("configuration key", f"{where}{key}", known)
            _check_keys(hints[key], item, f"{where}{key}.")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            for part in get_args(kind)[1:]:
                _check_keys(part, item, f"{where}{key}.")
    elif isinstance(value, list | tuple):
        for item in value:
            for part in get_args(kind):
                _check_keys(part, item, where)


def _readable(error: Any) -> str:
    return "; ".join(_sentence(item) for item in error.errors())


def _sentence(problem: Mapping[str, Any]) -> str:
    """What is wrong with one value; a misspelt choice names the nearest."""
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        return str(unknown_name(where, str(problem["input"]), choices))
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def as_dict(config: Any) -> dict[str, Any]:
    """A frozen dataclass as plain JSON types, nested ones included; the inverse of `build`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def content_hash(value: Any) -> str:
    """sha256 of the canonical JSON of plain data: equal content, equal hash, in any process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
