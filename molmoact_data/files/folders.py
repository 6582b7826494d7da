"""A new folder that appears whole or not at all, and replaces nothing but what this program made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from molmoact_data.errors import UserError
from molmoact_data.files.storage import TEMPORARY_MARK

MARK = ".molmoact"
"""Empty file in every folder made here: `--overwrite` deletes the folder only where it is found."""


def check_free(target: Path, *, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Raises `UserError` where writing `target` would destroy something that was not offered."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file, not a folder. Choose another --output-path.")
    for path in inputs:
        if target.resolve() in (path.resolve(), *path.resolve().parents):
            raise UserError(
                f"{target} is or holds {path}, which is read. Choose another --output-path."
            )
    if not target.exists() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"{target} is not empty. Add --overwrite to replace it, or choose another --output-path."
        )
    if not (target / MARK).is_file():
        raise UserError(
            f"{target} was not made by this command (there is no {MARK} in it), and --overwrite would "
            "delete all of it. Remove it yourself, or choose another --output-path."
        )


@contextmanager
def new_folder(target: Path, *, overwrite: bool, inputs: Sequence[Path] = ()) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when all went well."""
    check_free(target, overwrite=overwrite, inputs=inputs)
    target = target.resolve()
    temporary = target.with_name(f".{target.name}{TEMPORARY_MARK}{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        (temporary / MARK).touch()
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
