"""Places where the operating system refuses to write: full, read-only, inside a file, under a name that is too long.

Where this process may mount, full and read-only are file systems of their own in memory; elsewhere a limit of the
process and permissions stand in for them.
"""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

PLENTY = 256 * 2**20
PAGE = 4096


@dataclass(frozen=True)
class Place:
    """A folder to write in, and how its trouble ends."""

    folder: Path
    heal: Callable[[], object] | None = None
    """None where only another path helps."""


Trouble = Callable[[Path, int], AbstractContextManager[Place]]
"""(an empty folder, bytes that still fit) -> the place."""


def _mount(*words: str) -> bool:
    done = subprocess.run(["mount", *words], capture_output=True, check=False)
    return done.returncode == 0


@contextmanager
def _memory(root: Path, options: str) -> Iterator[bool]:
    """A file system of its own in memory at `root`; False where this process may not mount."""
    mounted = os.geteuid() == 0 and _mount("-t", "tmpfs", "-o", options, "tmpfs", str(root))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(root)], check=True)


@contextmanager
def limited(limit: int) -> Iterator[Callable[[], None]]:
    """No file may grow beyond `limit` bytes, whoever writes it; yields what ends that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def heal() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield heal
    finally:
        heal()


@contextmanager
def full(root: Path, room: int) -> Iterator[Place]:
    """ENOSPC after `room` bytes."""
    pages = max(1, room // PAGE)
    with _memory(root, f"size={pages * PAGE}") as mounted:
        if mounted:
            if room < PAGE:
                (root / "filler").write_bytes(bytes(PAGE))
            yield Place(root, lambda: _mount("-o", f"remount,size={PLENTY}", str(root)))
            return
    with limited(room) as heal:
        yield Place(root, heal)


@contextmanager
def short_files(root: Path, room: int) -> Iterator[Place]:
    """EFBIG: no file may be longer than `room` bytes."""
    with limited(room) as heal:
        yield Place(root, heal)


@contextmanager
def read_only(root: Path, room: int) -> Iterator[Place]:
    """EROFS, or EACCES for those who may not mount."""
    with _memory(root, "ro") as mounted:
        if mounted:
            yield Place(root, lambda: _mount("-o", "remount,rw", str(root)))
            return
    root.chmod(0o500)
    try:
        yield Place(root, lambda: root.chmod(0o700))
    finally:
        root.chmod(0o700)


@contextmanager
def inside_a_file(root: Path, room: int) -> Iterator[Place]:
    """ENOTDIR."""
    (root / "a-file").write_text("precious")
    yield Place(root / "a-file")


@contextmanager
def long_name(root: Path, room: int) -> Iterator[Place]:
    """ENAMETOOLONG, of one part of the path."""
    yield Place(root / ("n" * 300))


@contextmanager
def long_path(root: Path, room: int) -> Iterator[Place]:
    """ENAMETOOLONG, of the whole path."""
    yield Place(root.joinpath(*["n" * 200] * 25))


TROUBLES: dict[str, Trouble] = {
    "full": full,
    "short-files": short_files,
    "read-only": read_only,
    "inside-a-file": inside_a_file,
    "long-name": long_name,
    "long-path": long_path,
}
