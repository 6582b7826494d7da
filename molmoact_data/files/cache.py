"""A folder of downloaded files that all workers of one machine share, within a size limit.

    ROOT/files/<key>/<name>         whole files; the time of modification is the time of last use
    ROOT/downloads/NN.{lock,part}   who downloads, and how far; a key always has the same NN
    ROOT/usage.json                 bytes, so that files are looked at only when it is time to evict

A file is downloaded by one process while the others wait, and appears by a rename. Whoever uses a file
holds a shared lock on it (`Pin`); the least recently used files without one go when the limit is
reached. Locks are the kernel's (`flock`): they end with their process, however it ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from molmoact_data.errors import UserError

CACHE_VARIABLE, LIMIT_VARIABLE = "MOLMOACT_CACHE", "MOLMOACT_CACHE_GIB"
DEFAULT_LIMIT_BYTES = 64 * 2**30
SHARE_OF_DISK = 0.5
"""Without a limit of the user's, at most this share of what the disk has left may be ours."""
LEFT_AFTER_EVICTION = 0.9
"""Eviction goes on to this share of the limit: looking at every file is rare then."""
DOWNLOADS_AT_ONCE = 64


@dataclass
class Pin:
    """A file in the cache that nobody removes until `close`. It is read by its path."""

    path: Path
    _descriptor: int | None

    def close(self) -> None:
        """Let go; twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True)
class FileCache:
    """One cache folder. Every process may have its own instance of it."""

    root: Path
    limit_bytes: int

    def get(self, key: str, name: str, size: int, download: Callable[[Path], None]) -> Pin:
        """The file `name` under `key`, downloaded where it is not here yet.

        `size` is its number of bytes, for which room is made first. What `download` raises is raised,
        and leaves nothing behind.
        """
        path = self.root / "files" / key / name
        if (pin := _pinned(path)) is not None:
            return pin
        number = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % DOWNLOADS_AT_ONCE
        with _locked(self._lock_of(number)):
            if (pin := _pinned(path)) is not None:  # another process was faster
                return pin
            self._make_room(number, size)
            part = self._part_of(number)
            try:
                download(part)
                return self._commit(number, part, path)
            finally:
                part.unlink(missing_ok=True)
                with self._usage() as usage:
                    usage.coming.pop(number, None)

    def used_bytes(self) -> int:
        """What the whole files take."""
        with self._usage() as usage:
            return usage.files

    def _commit(self, number: int, part: Path, path: Path) -> Pin:
        with self._usage() as usage:
            path.parent.mkdir(parents=True, exist_ok=True)
            pin = Pin(path, _lock(part, fcntl.LOCK_SH))
            part.replace(path)
            usage.files += path.stat().st_size
            usage.coming.pop(number, None)
        return pin

    def _make_room(self, number: int, size: int) -> None:
        """Promise `size` more bytes; where that is too much, evict what was not used for longest."""
        with self._usage() as usage:
            usage.coming[number] = size
            if usage.total() <= self.limit_bytes:
                return
            for other in [n for n in usage.coming if n != number]:
                if _remove_unless_locked(self._part_of(other), by=self._lock_of(other)):
                    del usage.coming[other]  # its process is dead
            coming = sum(usage.coming.values())
            usage.files = self._evict(int(self.limit_bytes * LEFT_AFTER_EVICTION) - coming)

    def _evict(self, wanted_bytes: int) -> int:
        """Remove unused files, oldest first, down to `wanted_bytes` if that can be; what is left."""
        files = self._files()
        left = sum(stat.st_size for _, stat in files)
        for path, stat in sorted(files, key=lambda file: file[1].st_mtime_ns):
            if left <= wanted_bytes:
                break
            if _remove_unless_locked(path, by=path):
                left -= stat.st_size
                _remove_if_empty(path.parent)
        return left

    @contextmanager
    def _usage(self) -> Iterator[_Usage]:
        """The note of what is used, alone; counted again where it is lost."""
        note = self.root / "usage.json"
        self.root.mkdir(parents=True, exist_ok=True)
        with _locked(self.root / "usage.lock"):
            try:
                stored = json.loads(note.read_text())
                usage = _Usage(stored["files"], {int(n): b for n, b in stored["coming"].items()})
            except FileNotFoundError:
                usage = _Usage(sum(stat.st_size for _, stat in self._files()), {})
            yield usage
            fresh = note.with_suffix(".new")
            fresh.write_text(json.dumps({"files": usage.files, "coming": usage.coming}))
            fresh.replace(note)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in (self.root / "files").glob("*/*"):
            with suppress(FileNotFoundError):  # somebody tidies up by hand
                found.append((path, path.stat()))
        return found

    def _part_of(self, number: int) -> Path:
        return self.root / "downloads" / f"{number:02}.part"

    def _lock_of(self, number: int) -> Path:
        path = self.root / "downloads" / f"{number:02}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@dataclass
class _Usage:
    """Bytes in whole files, and promised to downloads by their number."""

    files: int
    coming: dict[int, int]

    def total(self) -> int:
        return self.files + sum(self.coming.values())


def machine_cache() -> FileCache:
    """The cache of this machine: `$MOLMOACT_CACHE/sources`, of at most `$MOLMOACT_CACHE_GIB`.

    Without the second, 64 GiB or half of what the disk has left for it, whichever is less.
    """
    home = os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "molmoact"
    root = Path(home) / "sources"
    if given := os.environ.get(LIMIT_VARIABLE):
        return FileCache(root, _limit_bytes(given))
    used = FileCache(root, 0).used_bytes()
    available = int(SHARE_OF_DISK * (shutil.disk_usage(root).free + used))
    return FileCache(root, min(DEFAULT_LIMIT_BYTES, available))


def _limit_bytes(given: str) -> int:
    try:
        gib = float(given)
    except ValueError:
        gib = 0.0
    if not gib > 0:
        raise UserError(f"{LIMIT_VARIABLE} must be a number of GiB above 0, got {given!r}.")
    return int(gib * 2**30)


def _pinned(path: Path) -> Pin | None:
    """The file with a shared lock and a new time of last use; None where it is not in the cache."""
    try:
        pin = Pin(path, _lock(path, fcntl.LOCK_SH))
        os.utime(path)
    except FileNotFoundError:
        return None
    return pin


def _lock(path: Path, kind: int) -> int:
    """A descriptor that holds a lock on the file that `path` names when the lock is there."""
    while True:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, kind)
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # removed between opening and locking, and there again


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone with this lock file; nobody ever removes one."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_unless_locked(path: Path, *, by: Path) -> bool:
    """Remove a file that nobody holds the lock `by` of; whether it is gone."""
    try:
        with by.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    except FileNotFoundError:  # removed by hand
        return True
    return True


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # another file of the same key came meanwhile
        return
