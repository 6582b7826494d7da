"""Broken datasets given to the whole `molmoact preprocess`: exit code 0, 2 or 3, and never a traceback."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import traceback
from pathlib import Path
from random import Random
from unittest import mock

from made_rlds import make_rlds

import cli
from fuzz.datasets import mutate_lerobot, mutate_rlds, v2, v3
from fuzz.outcomes import EQUAL, REFUSED, REJECTED, TRACEBACK, UNEXPLAINED, Kind

OUTCOMES = {0: EQUAL, 2: REFUSED, 3: REJECTED}


def preprocess(rng: Random, place: Path) -> tuple[str, str, str]:
    """One run of the command on one broken dataset."""
    make, mutate = rng.choice(
        [(v2, mutate_lerobot), (v3, mutate_lerobot), (make_rlds, mutate_rlds)]
    )
    sound = place.parent / f"sound-cli-{make.__name__}"
    if not sound.exists():
        make(sound)
    shutil.copytree(sound, place / "data")
    done, _ = mutate(place / "data", rng)
    code, said = call(
        "preprocess", "--dataset-path", place / "data", "--output-path", place / "out",
        "--depth", "none", "--pointer", "none",
    )  # fmt: skip
    if code == 2 and said.count("error:") != 1:
        return done, UNEXPLAINED, f"not one line: {said[-500:]}"
    return done, OUTCOMES.get(code, TRACEBACK), "" if code in OUTCOMES else said[-3000:]


def call(*arguments: object) -> tuple[int, str]:
    """The real entry point in this process -> exit code, and what it said on stderr; 1 is a bug."""
    said = io.StringIO()
    argv = ["molmoact", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stderr(said):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                cli.main()
        except SystemExit as ended:
            return int(ended.code or 0), said.getvalue()
        except BaseException:  # noqa: BLE001 - any exception is what this looks for
            return 1, said.getvalue() + traceback.format_exc()
    return 0, said.getvalue()


KINDS: dict[str, Kind] = {"preprocess": preprocess}
