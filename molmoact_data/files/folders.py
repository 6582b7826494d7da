"""Files and folders that appear whole or not at all, and replace nothing but what this program made."""

from __future__ import annotations

import glob
import json
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from molmoact_data.errors import UserError, refused_by_system

TEMPORARY_MARK = ".tmp-"
"""In the name of whatever is not finished yet: `.NAME.tmp-WHO`."""
LOCK_FILE = ".lock"
"""In an output folder while a run writes there; see `lock`."""
MARK = ".molmoact"
"""Empty file in every folder made here: `--overwrite` deletes the folder only where it is found."""


def temporary_name(name: str) -> str:
    """A hidden name for a file or folder on its way to `name`, unlike that of any other writer."""
    return f".{name}{TEMPORARY_MARK}{socket.gethostname()}-{os.getpid()}-{time.monotonic_ns()}"


def writer_of(name: str) -> tuple[str, int] | None:
    """(host, process) that a name from `temporary_name` belongs to; None for any other name."""
    parts = name.partition(TEMPORARY_MARK)[2].rsplit("-", 2)
    if not name.startswith(".") or len(parts) != 3 or not (parts[1] + parts[2]).isdecimal():
        return None
    return parts[0], int(parts[1])


def is_left_over(name: str, *, elsewhere: bool = False) -> bool:
    """True where the writer was a process of this machine that is no more; `elsewhere` = or of another machine."""
    writer = writer_of(name)
    if writer is None:
        return False
    host, pid = writer
    return not is_running(pid) if host == socket.gethostname() else elsewhere


def is_running(pid: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def remove_left_overs(paths: Iterable[Path], *, elsewhere: bool = False) -> None:
    """Of these files and folders, delete those that a killed process never finished; see `is_left_over`."""
    for path in paths:
        if is_left_over(path.name, elsewhere=elsewhere):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_taken(folder: Path) -> bool:
    """Whether a folder holds anything besides our lock, our mark and what nobody will finish."""
    if not folder.exists():
        return False
    return any(
        p.name not in (LOCK_FILE, MARK) and not is_left_over(p.name) for p in folder.iterdir()
    )


@contextmanager
def writing(what: str, then: str = "") -> Iterator[None]:
    """Raises `UserError` where the operating system refuses to write `what`; `then` ends the message."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refusal = refused_by_system(error)
        if refusal is None:
            raise
        raise UserError(
            " ".join(filter(None, (f"cannot write {what}: {refusal}", then)))
        ) from error


@contextmanager
def new_file(path: Path, then: str = "") -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on a clean exit and vanishes on an exception.

    Its content is on the disk before the name appears. Where nothing was written to it, nothing is made.
    `then` ends the `UserError` of a disk that is full or may not be written.
    """
    temporary = path.with_name(temporary_name(path.name))
    with writing(str(path), then):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if temporary.exists():
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.replace(path)
        finally:
            if temporary.exists():
                temporary.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def together(contents: Mapping[Path, bytes]) -> Iterator[None]:
    """Small files that belong together, and to what is written inside: they appear on a clean exit, or none does."""
    with ExitStack() as unfinished:
        for path, content in contents.items():
            unfinished.enter_context(new_file(path)).write_bytes(content)
        yield


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write small files that belong together: all of them, or none where the disk refuses one."""
    with together(contents):
        pass


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a small JSON file whole or not at all; keys are sorted."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def check_new_file(path: Path | None, *, overwrite: bool) -> None:
    """Raises `UserError` where writing the file `path` would destroy something that was not offered; None = no file."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file. Give another path.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists. Add --overwrite to replace it, or give another path.")


def check_free(target: Path, *, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Raises `UserError` where writing `target` would destroy something that was not offered."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file, not a folder. Choose another --output-path.")
    for path in inputs:
        if target.resolve() in (path.resolve(), *path.resolve().parents):
            raise UserError(
                f"{target} is or holds {path}, which is read. Choose another --output-path."
            )
    if not is_taken(target):
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
    """A temporary folder beside `target` that takes its place when all went well.

    What a killed run of the same target left is removed first; one that is still at work is an error.
    """
    with writing(str(target)):
        check_free(target, overwrite=overwrite, inputs=inputs)
        target = target.resolve()
        _refuse_second_writer(target)
        temporary = target.with_name(temporary_name(target.name))
        try:
            temporary.mkdir(parents=True)
            yield temporary
            (temporary / MARK).touch()
            check_free(target, overwrite=overwrite)
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _refuse_second_writer(target: Path) -> None:
    unfinished = list(target.parent.glob(f".{glob.escape(target.name)}{TEMPORARY_MARK}*"))
    remove_left_overs(unfinished)
    for path in unfinished:
        writer = writer_of(path.name)
        if writer is not None and writer[0] == socket.gethostname() and path.exists():
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
            raise UserError(
                f"{target} is being written by process {writer[1]} on {writer[0]} since {since}. Wait for "
                "it, stop it, or choose another --output-path."
            )
