"""Broken state of an interrupted `molmoact preprocess`: `--resume` ends as if nothing had been, or says why not."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from unittest import mock

from made_datasets import make_dataset

from fuzz.commands import call
from fuzz.outcomes import EQUAL, EXPLAINED, REFUSED, TRACEBACK, UNEXPLAINED, Kind
from fuzz.values import change_bytes, change_field
from molmoact_data import schema
from molmoact_data.statistics import DatasetStatistics
from pipelines.state import PLAN_FILE, STATE_DIR

LENGTHS = (6, 4, 5, 3)


@cache
def dataset() -> Path:
    """Four episodes with recorded points, so that a run needs no teacher."""
    return make_dataset(Path(tempfile.mkdtemp(prefix="fuzz-resume-")) / "cups", LENGTHS)


def preprocess(out: Path, *more: str) -> tuple[int, str]:
    """One run: a shard per episode, with points and statistics."""
    return call(
        "preprocess", "--dataset-path", dataset(), "--output-path", out, "--depth", "none", "--pointer", "column",
        "--pointer-column", "gripper_xy", "--pointer-units", "pixels", "--frames-per-shard", "3", *more,
    )  # fmt: skip


@cache
def untroubled() -> Path:
    """The output of a run that nothing stopped."""
    out = dataset().with_name("whole")
    code, said = preprocess(out)
    assert code == 0, said
    return out


@cache
def interrupted() -> Path:
    """What is left of a run that ended before its last two shards."""
    out = dataset().with_name("part")
    with mock.patch("pipelines.shards.manifest.write", side_effect=KeyboardInterrupt):
        assert preprocess(out)[0] == 130
    for number in range(2):
        for path in out.rglob(f"episodes-{number:06d}-*"):
            path.unlink()
    assert list((out / STATE_DIR).rglob("*.json"))
    return out


def resume(rng: Random, place: Path) -> tuple[str, str, str]:
    """One broken file of the state, then `--resume`."""
    out = place / "out"
    before = contents(untroubled())
    shutil.copytree(interrupted(), out)
    files = sorted(p for p in out.rglob("*") if p.is_file())
    records = [p for p in files if p.parent.name == "records"]
    path = rng.choice([out / PLAN_FILE, out / schema.STATISTICS_FILE, *records, rng.choice(files)])
    done = f"{path.relative_to(out)}: "
    if path.suffix == ".json" and rng.random() < 0.8:
        changed, where = change_field(json.loads(path.read_text()), rng)
        path.write_text(json.dumps(changed))
        done += ".".join(map(str, where))
    else:
        change_bytes(path, rng)
        done += "bytes"
    code, said = preprocess(out, "--resume")
    if code == 2:
        one_line = said.count("error:") == 1
        return done, (REFUSED if one_line else UNEXPLAINED), said[-500:]
    if code not in (0, 3):
        return done, TRACEBACK, said[-3000:]
    after = contents(out)
    if after == before:
        return done, EQUAL, ""
    if _same_but_for_words(before, after):
        return done, EXPLAINED, ""
    other = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    return done, UNEXPLAINED, f"exit code {code}, other: {other}"


def _same_but_for_words(before: dict[str, bytes], after: dict[str, bytes]) -> bool:
    """Whether only the statistics' file is another, which says the same in another way."""
    name = schema.STATISTICS_FILE
    stored = [DatasetStatistics.from_json(json.loads(files[name])) for files in (before, after)]
    same = {**before, name: b""} == {**after, name: b""}
    return same and stored[0].to_json() == stored[1].to_json()


def contents(out: Path) -> dict[str, bytes]:
    """Every file of an output by name."""
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


KINDS: dict[str, Kind] = {"resume": resume}
