"""One writer per output folder: the second is told who is at work, and touches nothing.

The lock is the operating system's, on a small file in the folder that says who holds it. It goes with its process,
however that ends, so what a killed run leaves behind blocks nobody. Object stores have no such lock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from molmoact_data.errors import UserError
from molmoact_data.files.folders import LOCK_FILE, is_running, writing
from molmoact_data.files.typed import parse_json

_HELD = (errno.EAGAIN, errno.EACCES)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """Who writes in a folder."""

    host: str
    pid: int
    since: str
    """Local time, `2026-11-25 03:00:00`."""

    @classmethod
    def here(cls) -> Holder:
        """This process, from now on."""
        return cls(socket.gethostname(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"))

    @property
    def may_be_at_work(self) -> bool:
        """False for a process of this machine that is no more."""
        return self.host != socket.gethostname() or is_running(self.pid)


@contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Hold `folder` (made where it is missing) while inside. None = somewhere without locks.

    Raises `UserError` naming host, process and time where another process holds it.
    """
    if folder is None:
        yield
        return
    made = not folder.exists()
    with writing(str(folder)):
        file = _take(folder)
    try:
        yield
    finally:
        (folder / LOCK_FILE).unlink(missing_ok=True)
        file.close()
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _take(folder: Path) -> IO[str]:
    """The lock file, locked and signed. Its last holder may have deleted it meanwhile: then another is made."""
    path = folder / LOCK_FILE
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(path)
            if error.errno in _HELD or (error.errno in _UNSUPPORTED and _blocks(holder)):
                file.close()
                raise _refusal(folder, holder) from error
            if error.errno not in _UNSUPPORTED:
                raise
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            file.truncate(0)
            file.write(json.dumps(asdict(Holder.here())) + "\n")
            file.flush()
            return file
        file.close()


def _holder(path: Path) -> Holder | None:
    """Who signed the lock file; None while that is not to be read."""
    try:
        return parse_json(Holder, path.read_bytes(), str(path))
    except (OSError, UserError):
        return None


def _blocks(holder: Holder | None) -> bool:
    """Where the file system knows no locks, the signature has to do."""
    return holder is not None and holder.host == socket.gethostname() and holder.may_be_at_work


def _refusal(folder: Path, holder: Holder | None) -> UserError:
    who = "another process"
    if holder is not None:
        who = f"process {holder.pid} on {holder.host} since {holder.since}"
    return UserError(
        f"{folder} is being written by {who}. Wait for it or stop it, then go on with --resume; or choose "
        "another folder."
    )
