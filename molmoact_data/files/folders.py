"""Files and folders that appear whole or not at all, and replace nothing but what this program made."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from molmoact_data.errors import UserError

TEMPORARY_MARK = ".tmp-"
"""In the name of whatever is not finished yet: `.NAME.tmp-WHO`."""
MARK = ".molmoact"
"""Empty file in every folder made here: `--overwrite` deletes the folder only where it is found."""


def temporary_name(name: str) -> str:
    """A hidden name for a file or folder on its way to `name`, unlike that of any other writer."""
    return f".{name}{TEMPORARY_MARK}{socket.gethostname()}-{os.getpid()}-{time.monotonic_ns()}"


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on a clean exit and vanishes on an exception.

    Its content is on the disk before the name appears. Where nothing was written to it, nothing is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name(path.name))
    try:
        yield temporary
        if temporary.exists():
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a small JSON file whole or not at all; keys are sorted."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


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
