"""A dataset on an object store: one listing at the start, then file by file through the machine's cache.

Any URL that fsspec has a driver for. The listing tells what exists, how large it is and which version of
it; a file is downloaded when it is asked for, at its version, and goes when the cache needs room.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from molmoact_data.errors import UserError
from molmoact_data.files.cache import CACHE_VARIABLE, LIMIT_VARIABLE, FileCache, Pin, machine_cache
from molmoact_data.files.inputs import (
    Folder,
    LocalFolder,
    OutsideDatasetError,
    fingerprint,
    is_hidden,
    is_inside,
)
from molmoact_data.files.stores import must_exist, open_filesystem, store_errors

GATHERED_BYTES = 2**30
"""Up to this much of rows or records is fetched when a dataset is opened, to be looked at."""
PINNED_FILES = 4
"""The most recently fetched files stay pinned, so that a caller can still open the path it was given."""
PARALLEL_DOWNLOADS = 8
_RESUME = "What is written is safe, and --resume continues."
_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "crc32c",
    "generation",
    "mtime",
    "LastModified",
    "created",
)


@dataclass(frozen=True)
class StoredFile:
    """One object of the listing."""

    size: int
    version: str
    """The store's ETag, or another value that changes with the content."""


@dataclass
class ObjectStoreFolder:
    """All objects below a URL. Pickles without connections; pins stay with the process."""

    url: str
    files: Mapping[str, StoredFile]
    """By path relative to the URL."""
    cache: FileCache
    _recent: deque[Pin] = field(default_factory=lambda: deque(maxlen=PINNED_FILES), repr=False)

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recent": deque(maxlen=PINNED_FILES)}

    def fetch(self, path: str) -> Path:
        """Stays at least until `PINNED_FILES` others were asked for; `hold` keeps it for longer."""
        pin = self._pin(path)
        if len(self._recent) == PINNED_FILES:
            self._recent.popleft().close()
        self._recent.append(pin)
        return pin.path

    def hold(self, path: str) -> AbstractContextManager[Path]:
        return self._pin(path)

    def exists(self, path: str) -> bool:
        return path in self.files

    def listing(self, folder: str, suffix: str) -> list[str]:
        prefix = f"{folder}/" if folder else ""
        listed = (p for p in self.files if p.startswith(prefix) and p.endswith(suffix))
        return sorted(p for p in listed if not is_hidden(p))

    def gather(self, paths: Sequence[str]) -> bool:
        if sum(self.files[path].size for path in paths) > GATHERED_BYTES:
            return False
        with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
            for pin in pool.map(self._pin, paths):
                pin.close()
        return True

    def size(self, path: str) -> int:
        return self.files[path].size

    def revision(self, paths: Sequence[str]) -> str:
        """As of a local copy where the files are few; else of names, sizes and the store's versions."""
        if sum(self.files[path].size for path in paths) <= GATHERED_BYTES:
            return fingerprint(self, list(paths))
        digest = hashlib.sha256()
        for path in sorted(paths):
            digest.update(f"{path}\0{self.files[path].size}\0{self.files[path].version}\0".encode())
        return f"listing:{digest.hexdigest()}"

    def _pin(self, path: str) -> Pin:
        if not is_inside(path):
            raise OutsideDatasetError(path)
        stored = self.files.get(path)
        if stored is None:
            raise FileNotFoundError(f"{self.url}/{path}")
        identity = f"{self.url}/{path}\0{stored.size}\0{stored.version}"
        key = hashlib.sha256(identity.encode()).hexdigest()[:24]

        def download(part: Path) -> None:
            self._download(path, stored.size, part)

        url = f"{self.url}/{path}"
        try:
            with store_errors(url, _RESUME), must_exist(url, _RESUME):
                return self.cache.get(key, PurePosixPath(path).name, stored.size, download)
        except OSError as error:  # the disk is full
            raise UserError(
                f"no space left to fetch {url}. Point {CACHE_VARIABLE} to a larger disk, or set "
                f"{LIMIT_VARIABLE} lower than it is. {_RESUME}"
            ) from error

    def _download(self, path: str, size: int, part: Path) -> None:
        url = f"{self.url}/{path}"
        filesystem, where = open_filesystem(url)
        filesystem.get_file(where, str(part))
        found = part.stat().st_size
        if found != size:
            raise UserError(
                f"{url} has {found} bytes, the listing said {size}: somebody writes to this dataset. "
                f"{_RESUME}"
            )


def open_object_store(url: str) -> Folder:
    """The dataset below `url`: list it, download nothing. A `file://` URL is a local folder."""
    url = url.rstrip("/")
    with store_errors(url), must_exist(url):
        filesystem, base = open_filesystem(url)
        if "file" in _protocols(filesystem):
            return _local(url, Path(base))
        filesystem.invalidate_cache()
        found = filesystem.find(base, detail=True)
        cache = machine_cache()
    start = len(base.rstrip("/")) + 1
    files = {
        path[start:]: StoredFile(int(entry["size"]), _version(entry))
        for path, entry in found.items()
        if entry["type"] == "file" and len(path) > start and not path.endswith("/")
    }
    if not files:
        raise UserError(f"there is nothing under {url}: no such bucket or prefix, or an empty one.")
    return ObjectStoreFolder(url, files, cache)


def _local(url: str, root: Path) -> LocalFolder:
    if not root.is_dir():
        raise UserError(f"no such folder: {url}")
    return LocalFolder(root.resolve(), root.resolve().name)


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _version(entry: Mapping[str, Any]) -> str:
    return next((f"{key}={entry[key]}" for key in _VERSION_KEYS if entry.get(key)), "")
