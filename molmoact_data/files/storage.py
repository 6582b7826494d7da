"""The only place that knows a local folder from an object store.

Local: write to a temporary name in the same folder, then rename, so that a reader sees a whole file
or none. Object stores (`s3://...` through fsspec): one PUT, which is atomic on close. Either way the
last of two identical writers wins, which is harmless because contents are a function of the name.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from molmoact_data.files.folders import (
    LOCK_FILE,
    TEMPORARY_MARK,
    new_file,
    remove_left_overs,
    temporary_name,
    writing,
)
from molmoact_data.files.stores import must_exist, open_filesystem, store_errors

_GO_ON = "Complete shards are safe: run the same command again with --resume."


@dataclass(frozen=True)
class Storage:
    """One output folder; every name is relative to it and uses `/`. Cheap to pickle."""

    root: str
    """A local path, or a URL such as `s3://bucket/prefix`."""

    @property
    def is_remote(self) -> bool:
        """True for a URL that fsspec resolves."""
        return "://" in self.root

    @contextmanager
    def local_file(self, name: str) -> Iterator[Path]:
        """A local path to write; it becomes `name` on a clean exit and vanishes on an exception.

        Where nothing was written to it, nothing is made.
        """
        if self.is_remote:
            with writing(f"{name} in {self.root}", _GO_ON), self._uploaded(name) as path:
                yield path
        else:
            with new_file(self._local(name), _GO_ON) as path:
                yield path

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file atomically."""
        with self.local_file(name) as path, path.open("wb") as file:
            file.write(content)

    def read_bytes(self, name: str) -> bytes:
        """The content of a file; `FileNotFoundError` where there is none."""
        if not self.is_remote:
            return self._local(name).read_bytes()
        with self._remote() as (filesystem, base):
            return filesystem.cat_file(f"{base}/{name}")

    def open_bytes(self, name: str) -> BinaryIO:
        """The file to read from; `FileNotFoundError` where there is none. Close it."""
        if not self.is_remote:
            return self._local(name).open("rb")
        with self._remote() as (filesystem, base):
            return filesystem.open(f"{base}/{name}", "rb")

    def size(self, name: str) -> int:
        """Bytes of a file; `FileNotFoundError` where there is none."""
        if not self.is_remote:
            return self._local(name).stat().st_size
        with self._remote() as (filesystem, base):
            return int(filesystem.size(f"{base}/{name}"))

    def exists(self, name: str) -> bool:
        """True where the file is complete."""
        if not self.is_remote:
            return self._local(name).exists()
        with self._remote() as (filesystem, base):
            filesystem.invalidate_cache()
            return filesystem.exists(f"{base}/{name}")

    def list(self, folder: str = "") -> list[str]:
        """Names of the complete files below `folder`, sorted; empty where it does not exist."""
        if self.is_remote:
            with self._remote() as (filesystem, base):
                filesystem.invalidate_cache()
                prefix = f"{base}/{folder}".rstrip("/")
                found = filesystem.find(prefix) if filesystem.exists(prefix) else []
            return sorted(path[len(base) + 1 :] for path in found)
        top = self._local(folder)
        files = (p for p in top.rglob("*") if p.is_file() and not _is_ours_alone(p.name))
        return sorted(p.relative_to(self.root).as_posix() for p in files)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every complete file below `folder`, by name; one listing, nothing is read."""
        if not self.is_remote:
            return {name: self._local(name).stat().st_size for name in self.list(folder)}
        with self._remote() as (filesystem, base):
            filesystem.invalidate_cache()
            prefix = f"{base}/{folder}".rstrip("/")
            if not filesystem.exists(prefix):
                return {}
            found = filesystem.find(prefix, detail=True)
        return {path[len(base) + 1 :]: int(entry["size"]) for path, entry in found.items()}

    def delete(self, name: str) -> None:
        """Remove a file or a folder; nothing happens where there is none."""
        if self.is_remote:
            with self._remote() as (filesystem, base):
                if filesystem.exists(f"{base}/{name}"):
                    filesystem.rm(f"{base}/{name}", recursive=True)
            return
        path = self._local(name)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def delete_empty(self, folder: str) -> None:
        """Remove a folder without files, which only local folders can be."""
        if not self.is_remote and self._local(folder).is_dir() and not self.list(folder):
            shutil.rmtree(self._local(folder))

    def remove_temporary_files(self) -> None:
        """Remove what killed writers left. Call it while the folder is held: of other machines, nobody is at work."""
        if not self.is_remote:
            remove_left_overs(Path(self.root).rglob(f".*{TEMPORARY_MARK}*"), elsewhere=True)

    @contextmanager
    def _uploaded(self, name: str) -> Iterator[Path]:
        temporary = Path(tempfile.gettempdir()) / temporary_name(Path(name).name)
        try:
            yield temporary
            if temporary.exists():
                with must_exist(self.root), self._remote() as (filesystem, base):
                    filesystem.put_file(str(temporary), f"{base}/{name}")
        finally:
            temporary.unlink(missing_ok=True)

    def _local(self, name: str) -> Path:
        return Path(self.root) / name

    @contextmanager
    def _remote(self) -> Iterator[tuple[Any, str]]:
        """fsspec's file system and our root in it; its errors become one-line `UserError`s."""
        with store_errors(self.root):
            filesystem, base = open_filesystem(self.root)
            yield filesystem, base.rstrip("/")


def _is_ours_alone(name: str) -> bool:
    """Files of a run at work, which are no part of an output."""
    return name == LOCK_FILE or TEMPORARY_MARK in name
