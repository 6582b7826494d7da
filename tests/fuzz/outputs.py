"""Broken manifests, statistics and rejects of outputs: every reader says the same labels as before, or one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
from made_outputs import DotSource, source_statistics, write_output

from fuzz.commands import call
from fuzz.outcomes import EQUAL, EXPLAINED, REFUSED, REJECTED, TRACEBACK, UNEXPLAINED, Kind, attempt
from fuzz.values import change_bytes, change_field
from molmoact_data import schema
from molmoact_data.outputs.manifest import Manifest
from molmoact_data.outputs.output import Output
from molmoact_data.validate.run import validate
from molmoact_train.data.rendering import KIND_NEEDS
from molmoact_train.data.sources import ShardSource
from molmoact_train.data.split import SourceOptions

DESCRIPTIVE = {"dataset", "teachers", "cameras"}
"""Fields that say where rows come from; no label follows from them."""

Labels = Any


@cache
def sound() -> Path:
    """An output of three shards with every label."""
    return Path(write_output(Path(tempfile.mkdtemp(prefix="fuzz-output-")) / "out"))


@cache
def another() -> Path:
    """Other episodes with the same settings and statistics."""
    source = DotSource(first_episode=4)
    statistics = source_statistics(DotSource())
    return Path(write_output(sound().with_name("another"), source, statistics))


def of_training(root: Path) -> Labels:
    """What training reads: every row, with the statistics that say what its bins mean."""
    options = SourceOptions(needs={"reasoning": KIND_NEEDS["reasoning"]}, max_images=2)
    source = ShardSource(root, options)
    assert source.statistics is not None
    rows = [
        (row.instruction, row.images, row.depth_codes, row.traces, repr(row.action_bins))
        for row in map(source.row, range(source.size))
    ]
    return rows, source.statistics.num_bins, source.statistics.sha256(), source.cameras


def of_validate(root: Path) -> Labels:
    """Nothing found, or the first finding."""
    report = validate(str(root))
    return None if report.passed else report.problems[0]


def of_conversations(root: Path) -> Labels:
    """The rows that `export` writes; without its note of where they come from."""
    return _command(
        root, "export", root, "--format", "conversations", "--output-path", _beside(root)
    )


def of_retokenize(root: Path) -> Labels:
    """The rows with other tokens of the same statistics."""
    return _command(
        root, "retokenize", root, "--action-bins", "128", "--output-path", _beside(root)
    )


def of_merge(root: Path) -> Labels:
    """The rows of this output and another."""
    return _command(root, "merge", root, another(), "--output-path", _beside(root))


READERS: dict[str, Callable[[Path], Labels]] = {
    "training": of_training,
    "validate": of_validate,
    "conversations": of_conversations,
    "retokenize": of_retokenize,
    "merge": of_merge,
}


class Refused(Exception):
    """A command ended with another code than 0."""


def _beside(root: Path) -> Path:
    return root.with_name("made")


def _command(root: Path, *arguments: object) -> Labels:
    shutil.rmtree(_beside(root), ignore_errors=True)
    code, said = call(*arguments)
    if code:
        raise Refused(code, said)
    files = sorted(_beside(root).rglob("*.parquet"))
    return [pq.read_table(path).to_pydict() for path in files]


@cache
def before(name: str) -> Labels:
    """Of the sound output."""
    return READERS[name](sound())


FILES = (schema.MANIFEST_FILE,) * 4 + (schema.STATISTICS_FILE, schema.REJECTS_FILE)


def output(rng: Random, place: Path) -> tuple[str, str, str]:
    """One broken file of an output, and one reader of it."""
    root = place / "out"
    shutil.copytree(sound(), root)
    path = root / rng.choice(FILES)
    where: tuple[str | int, ...] = ()
    if path.name == schema.REJECTS_FILE or rng.random() < 0.15:
        change_bytes(path, rng)
    else:
        changed, where = change_field(json.loads(path.read_text()), rng)
        path.write_text(json.dumps(changed))
    name = rng.choice(list(READERS))

    def work() -> tuple[str, str]:
        known, found = before(name), READERS[name](root)
        if found == known:
            silent = name == "validate" and not _same_meaning(root)
            return (UNEXPLAINED, "nothing was found") if silent else (EQUAL, "")
        if name == "validate":
            return REJECTED, str(found)
        return (EXPLAINED if where[:1] == ("dataset",) else UNEXPLAINED), "other labels"

    return f"{name}: {path.name}: {'.'.join(map(str, where)) or 'bytes'}", *of_command(work)


def _same_meaning(root: Path) -> bool:
    """Whether everything from which labels follow is as it was."""
    now, then = Output.open(root), Output.open(sound())
    fields = [f.name for f in dataclasses.fields(now.manifest) if f.name not in DESCRIPTIVE]
    return all(_said(now.manifest, field) == _said(then.manifest, field) for field in fields)


def _said(manifest: Manifest, field: str) -> Any:
    """A field; of measures, those that were taken."""
    value = getattr(manifest, field)
    return {k: v for k, v in value.items() if v is not None} if field == "quality" else value


def of_command(work: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """As `attempt`, where `work` may call a command that is refused."""
    try:
        return attempt(work, passing=(Refused,))
    except Refused as refused:
        code, said = refused.args
        if code == 2 and said.count("error:") == 1:
            return REFUSED, said
        return (REJECTED, said) if code == 3 else (TRACEBACK, said[-3000:])


KINDS: dict[str, Kind] = {"output": output}
