"""A new folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from molmoact_data.errors import UserError
from molmoact_data.storage import TEMPORARY_MARK


@contextmanager
def fresh_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place on a clean exit."""
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise UserError(
            f"{target} is not empty. Add --overwrite to replace it, or choose another --output-path."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}{TEMPORARY_MARK}{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
