"""Strict configuration: a mapping (YAML, flags) becomes a frozen dataclass, or an error that helps.

The dataclass lives beside its owner and raises `ValueError` from `__post_init__` for impossible
combinations; this module only does what all of them share.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from molmoact_data.errors import UserError, unknown_name

Config = TypeVar("Config")


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; dashes in keys are read as underscores, like the flags."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the config file {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `key: value` pairs, found a {type(values).__name__}.")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def build(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """An instance of the frozen dataclass `cls`; an unknown key names its nearest match.

    Values are converted to the annotated types where nothing is lost ("8" -> 8, but not 8.5 -> 8).
    """
    from pydantic import TypeAdapter, ValidationError

    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise unknown_name("configuration key", key, known)
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise UserError(_readable(error)) from error


def _readable(error: Any) -> str:
    problems = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        problems.append(f"{where}: {message}" if where else message)
    return "; ".join(problems)


def as_dict(config: Any) -> dict[str, Any]:
    """A frozen dataclass as plain JSON types, nested ones included; the inverse of `build`."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def content_hash(value: Any) -> str:
    """sha256 of the canonical JSON of plain data: equal content, equal hash, in any process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
