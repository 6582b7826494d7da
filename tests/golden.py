"""Where the answers are that tests compare with.

`$MOLMOACT_GOLDEN`, else `../shared/golden`, else the archive in `tests/golden`, which holds what our own runs
made (see the README there). What other people wrote is only in the first two: its tests skip without them.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = ROOT / "tests" / "golden" / "answers.tar.xz"
UNPACKED = ROOT / ".pytest_cache" / "golden"


def unpacked() -> Path:
    """The repository's archive as a folder; unpacked once per content, whole or not at all."""
    folder = UNPACKED / hashlib.sha256(ARCHIVE.read_bytes()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    UNPACKED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=UNPACKED) as temporary:
        made = Path(temporary) / "golden"
        with tarfile.open(ARCHIVE) as tar:
            tar.extractall(made, filter="data")
        try:
            made.rename(folder)
        except OSError:  # another worker was first
            assert folder.is_dir()
    return folder


def golden_root() -> Path:
    """The folder of answers that this run compares with."""
    named = os.environ.get("MOLMOACT_GOLDEN")
    if named:
        return Path(named)
    shared = ROOT.parent / "shared" / "golden"
    return shared if shared.is_dir() else unpacked()


GOLDEN = golden_root()
SHARED_DATA = Path(os.environ.get("MOLMOACT_SHARED_DATA", ROOT.parent / "shared" / "data"))


def foreign(name: str) -> Path:
    """A folder that other people wrote and that is not ours to copy; skips the test where it is absent."""
    if not (GOLDEN / name).exists():
        pytest.skip(f"{name} is not ours to copy into the repository; set MOLMOACT_GOLDEN")
    return GOLDEN / name


def cases_with(name: str, cases: Iterable[T]) -> list[T]:
    """The cases of a test that needs `name` of `foreign`; where it is absent one, so that it skips once."""
    found = list(cases)
    return found if (GOLDEN / name).exists() else found[:1]


needs_golden = pytest.mark.golden
needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason=f"no real inputs at {SHARED_DATA}; set MOLMOACT_SHARED_DATA"
)
