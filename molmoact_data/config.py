"""Strict configuration: a mapping (YAML, flags) becomes a frozen dataclass, or an error that helps.

The dataclass lives beside its owner and raises `ValueError` from `__post_init__` for impossible
combinations; this module only does what all of them share. A field says everything once: its name is the
key in YAML and the flag, its docstring the help text, its default the one that `--help` shows.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from molmoact_data.errors import UserError, unknown_name
from molmoact_data.redaction import redacted

Config = TypeVar("Config")


_MOST_BYTES, _MOST_VALUES, _DEEPEST = 1 << 20, 100_000, 50
"""Of a YAML file, written out without its aliases: a few lines of aliases to aliases stand for gigabytes."""


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; dashes in keys are read as underscores, like the flags.

    Raises `UserError` for what is no YAML, too large, too deep or endless, and for a key that is there twice.
    """
    import yaml

    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise UserError(f"{path} is longer than a configuration can be ({_MOST_BYTES} bytes).")
        loader = _loader(text)
        node = loader.get_single_node()
        _measured(node, {}, path, depth=0)
        values = None if node is None else loader.construct_document(node)
    except OSError as error:
        raise UserError(f"cannot read the config file {path}: {error.strerror}.") from error
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `key: value` pairs, found a {type(values).__name__}.")
    _refuse_doubles([str(key).replace("-", "_") for key in values], path)
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _loader(text: str) -> Any:
    """PyYAML's safe loader, whose time grows with the square of how deep brackets are nested; here that is bounded."""
    import yaml

    class Loader(yaml.SafeLoader):
        def fetch_flow_collection_start(self, TokenClass: Any) -> None:
            if self.flow_level > _DEEPEST:
                raise yaml.YAMLError(f"brackets are nested more than {_DEEPEST} levels deep")
            super().fetch_flow_collection_start(TokenClass)

    return Loader(text)


def _measured(
    node: Any, known: dict[int, tuple[int, int]], path: Path, *, depth: int
) -> tuple[int, int]:
    """(values, levels) of a YAML node, every alias counted as what it stands for; a node is looked into once."""
    children = getattr(node, "value", None)
    if not isinstance(children, list):
        return 1, 1
    if id(node) not in known and depth <= _DEEPEST:
        pairs = [child for child in children if isinstance(child, tuple)]
        _refuse_doubles([key.value for key, _ in pairs if isinstance(key.value, str)], path)
        below = [part for pair in pairs for part in pair] or children
        found = [_measured(child, known, path, depth=depth + 1) for child in below]
        values, levels = zip(*found, strict=True) if found else ((), ())
        known[id(node)] = 1 + sum(values), 1 + max(levels, default=0)
    size, height = known.get(id(node), (1, 1))
    if depth + height > _DEEPEST:
        raise UserError(f"{path} is nested more than {_DEEPEST} levels deep, or in itself.")
    if size > _MOST_VALUES:
        raise UserError(f"{path} stands for more than {_MOST_VALUES} values: aliases of aliases.")
    return size, height


def _refuse_doubles(keys: Sequence[str], path: Path) -> None:
    """YAML takes the last of two values without a word."""
    twice = next((key for key in keys if keys.count(key) > 1 and key != "<<"), None)
    if twice is not None:
        raise UserError(f"{path} has {twice!r} twice; which value is meant? Keep one of them.")


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
    if problem["type"] == "missing":
        return f"--{where.replace('_', '-')} is missing."
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def as_dict(config: Any) -> dict[str, Any]:
    """A frozen dataclass as plain JSON types, to be written down: secrets are hidden, else the inverse of `build`."""
    plain: dict[str, Any] = redacted(json.loads(json.dumps(dataclasses.asdict(config))))
    return plain


def content_hash(value: Any) -> str:
    """sha256 of the canonical JSON of plain data: equal content, equal hash, in any process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# Fields as flags


def option(
    default: Any = dataclasses.MISSING,
    *,
    factory: Callable[[], Any] | Any = dataclasses.MISSING,
    panel: str | None = None,
    flag: str | None = None,
    choices: Sequence[str] = (),
    metavar: str | None = None,
    alone: Sequence[str] = (),
) -> Any:
    """A dataclass field with what its flag needs beyond name, type, default and docstring.

    `panel`: heading of `--help` under which this field and those after it stand. `flag`: another name for
    the flag (`camera` for a field `cameras`); "" = in YAML only. `choices`: the values of a string that are
    not a Literal's. `metavar`: how a value is written (`ROLE=KEY`). `alone`: words that a mapping's flag takes
    without a `=`, as a key and its value. A field that needs none of these is an ordinary one.
    """
    metadata = {
        "panel": panel,
        "flag": flag,
        "choices": tuple(choices),
        "metavar": metavar,
        "alone": tuple(alone),
    }
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Option:
    """One field of a configuration, as a command line sees it."""

    name: str
    flag: str
    """Without the dashes in front."""
    kind: type
    """str, int, float, bool or Path: of the value, or of each where it is repeated."""
    repeated: bool
    pairs: bool
    """Each value is NAME=VALUE; together they are a mapping."""
    default: Any
    """`dataclasses.MISSING` where one must be given."""
    help: str
    panel: str | None
    choices: tuple[str, ...]
    metavar: str | None
    alone: tuple[str, ...] = ()
    """Words that stand for themselves where `pairs` are wanted."""


def options(cls: type) -> list[Option]:
    """The fields of a configuration dataclass in order, those of dataclasses inside it in their place."""
    hints, docs = get_type_hints(cls), _docstrings(cls)
    found: list[Option] = []
    panel: str | None = None
    for field in dataclasses.fields(cls):
        panel = field.metadata.get("panel") or panel
        hint = _without_none(hints[field.name])
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found += [o if o.panel else dataclasses.replace(o, panel=panel) for o in options(hint)]
        elif field.metadata.get("flag") != "":
            found.append(_option(field, hint, docs.get(field.name, ""), panel))
    return _once(found)


def _once(found: Iterable[Option]) -> list[Option]:
    """One flag for fields of one name in several dataclasses: the first one's, with the choices of all."""
    by_name: dict[str, Option] = {}
    for option in found:
        first = by_name.setdefault(option.name, option)
        choices = tuple(dict.fromkeys([*first.choices, *option.choices]))
        by_name[option.name] = dataclasses.replace(first, choices=choices)
    return list(by_name.values())


def _option(field: dataclasses.Field[Any], hint: Any, text: str, panel: str | None) -> Option:
    container = get_origin(hint)
    pairs = container not in (None, Literal, tuple, list)
    repeated = pairs or container in (tuple, list)
    single = get_args(hint)[1 if pairs else 0] if repeated else hint
    literal = get_args(single) if get_origin(single) is Literal else ()
    factory = field.default_factory
    return Option(
        name=field.name,
        flag=(field.metadata.get("flag") or field.name).replace("_", "-"),
        kind=str if literal or pairs else single,
        repeated=repeated,
        pairs=pairs,
        default=field.default if factory is dataclasses.MISSING else factory(),
        help=text,
        panel=panel,
        choices=literal if not pairs and literal else field.metadata.get("choices", ()),
        metavar=field.metadata.get("metavar") or ("NAME=VALUE" if pairs else None),
        alone=field.metadata.get("alone", ()),
    )


def _without_none(hint: Any) -> Any:
    """`X | None` -> X; what may be left out is not a type of its own on a command line."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    (single,) = (part for part in get_args(hint) if part is not NoneType)
    return single


@cache
def _docstrings(cls: type) -> dict[str, str]:
    """Field -> the string that follows it in the source, on one line; those of parent classes too."""
    inherited = [_docstrings(base) for base in cls.__bases__ if dataclasses.is_dataclass(base)]
    found = {name: text for docs in inherited for name, text in docs.items()}
    body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[field.target.id] = " ".join(text.value.split())
    return found
