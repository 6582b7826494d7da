"""Where a dataset's files are: a local folder, a Hub repository, or (`object_store`) a bucket.

Readers only ever ask for a relative path and get a local file: a path that a dataset's metadata made up
never leads out of the dataset (`OutsideDatasetError`), and hidden files (a Mac's `._x`) are no part of it.
Metadata is fetched first, rows and videos when an episode needs them, so choosing five episodes of a
terabyte costs five episodes.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from molmoact_data.errors import UserError

logger = logging.getLogger(__name__)

WHOLE_HASH_BYTES = 64 * 2**20
_SAMPLE_BYTES = 2**16
_SAMPLES = 18
_LFS_POINTER_PREFIX = b"version https://git-lfs"


class OutsideDatasetError(FileNotFoundError):
    """A path out of a dataset's metadata that leads to a file which is not the dataset's."""

    def __str__(self) -> str:
        return f"{self.args[0]} is not inside the dataset; nothing outside it is read"


def is_inside(path: str) -> bool:
    """True for a relative POSIX path that stays below its root, whatever is there."""
    parts = path.split("/")
    return bool(path) and not path.startswith("/") and ".." not in parts and "\0" not in path


def is_hidden(path: str) -> bool:
    """True where a name in the path begins with a dot."""
    return any(part.startswith(".") for part in path.split("/"))


class Folder(Protocol):
    """Files under one root; relative POSIX paths in, local files out."""

    @property
    def name(self) -> str:
        """Hub id or folder name."""
        ...

    def fetch(self, path: str) -> Path:
        """A local path of the file, to be opened at once.

        Raises `FileNotFoundError` where the dataset has no such file, `OutsideDatasetError` where the path
        leads out of it.
        """
        ...

    def hold(self, path: str) -> AbstractContextManager[Path]:
        """As `fetch`, for files that are opened again: the path is good until the context ends."""
        ...

    def exists(self, path: str) -> bool:
        """True where `fetch` would find it; nothing is downloaded."""
        ...

    def listing(self, folder: str, suffix: str) -> list[str]:
        """Sorted relative paths below `folder` that end in `suffix`; hidden files are left out."""
        ...

    def gather(self, paths: Sequence[str]) -> bool:
        """Fetch these files together, to look at all of them; False where they are too large for that."""
        ...

    def size(self, path: str) -> int:
        """Bytes of a file that exists; an object store need not be asked again."""
        ...

    def revision(self, paths: Sequence[str]) -> str:
        """A text that is another one when one of these files changes."""
        ...


@dataclass(frozen=True)
class LocalFolder:
    """A folder on this machine (or mounted on it)."""

    root: Path
    name: str

    def fetch(self, path: str) -> Path:
        local = local_path(self.root, path)
        if not local.is_file():
            raise FileNotFoundError(str(local))
        return local

    def exists(self, path: str) -> bool:
        return is_inside(path) and _is_file(self.root / path)

    def listing(self, folder: str, suffix: str) -> list[str]:
        beyond = len(str(self.root)) + 1
        found = _files_below(self.root, self.root / folder)
        return sorted(path[beyond:] for path in found if path.endswith(suffix))

    def hold(self, path: str) -> AbstractContextManager[Path]:
        return nullcontext(self.fetch(path))

    def gather(self, paths: Sequence[str]) -> bool:
        return True

    def size(self, path: str) -> int:
        return (self.root / path).stat().st_size

    def revision(self, paths: Sequence[str]) -> str:
        return fingerprint(self, paths)


@dataclass(frozen=True)
class HubFolder:
    """One commit of a Hub dataset; missing files are downloaded into the Hub cache when asked for."""

    name: str
    commit: str
    snapshot: Path
    files: frozenset[str] | None
    """What the commit holds; None offline, where only the cache counts."""

    def fetch(self, path: str) -> Path:
        local = local_path(self.snapshot, path)
        if local.is_file():
            return local
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if self.files is not None and path not in self.files:
            raise FileNotFoundError(f"{self.name}@{self.commit[:8]}:{path}")
        try:
            found = hf_hub_download(self.name, path, repo_type="dataset", revision=self.commit)
        except LocalEntryNotFoundError as error:
            raise _offline_error(self.name, path) from error
        except EntryNotFoundError as error:
            raise FileNotFoundError(f"{self.name}@{self.commit[:8]}:{path}") from error
        return Path(found)

    def exists(self, path: str) -> bool:
        known = self.files is not None and path in self.files
        return known or (is_inside(path) and _is_file(self.snapshot / path))

    def listing(self, folder: str, suffix: str) -> list[str]:
        if self.files is None:
            return LocalFolder(self.snapshot, self.name).listing(folder, suffix)
        prefix = f"{folder}/" if folder else ""
        listed = (p for p in self.files if p.startswith(prefix) and p.endswith(suffix))
        return sorted(p for p in listed if not is_hidden(p))

    def hold(self, path: str) -> AbstractContextManager[Path]:
        return nullcontext(self.fetch(path))

    def gather(self, paths: Sequence[str]) -> bool:
        """All of them at once, in parallel: statistics need every row anyway."""
        from huggingface_hub import snapshot_download

        if self.files is not None:
            folders = {p.partition("/")[0] + "/**" if "/" in p else p for p in paths}
            snapshot_download(
                self.name,
                repo_type="dataset",
                revision=self.commit,
                allow_patterns=sorted(folders),
            )
        return True

    def size(self, path: str) -> int:
        return self.fetch(path).stat().st_size

    def revision(self, paths: Sequence[str]) -> str:
        return self.commit


def local_path(root: Path, path: str) -> Path:
    """Where the file is, or would be. Raises `OutsideDatasetError`.

    Linked folders are the user's own arrangement of disks. A single file that is a link must stay in the
    dataset, in its own folder, or in the Hub cache's store beside the snapshot.
    """
    local = root / path
    if not is_inside(path):
        raise OutsideDatasetError(path)
    if local.is_symlink():
        target = local.resolve()
        homes = (root.resolve(), local.parent.resolve(), root.resolve().parent.parent / "blobs")
        if not any(target.is_relative_to(home) for home in homes):
            raise OutsideDatasetError(f"{path}, a link to {target},")
    return local


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is longer than a name can be
        return False


def _files_below(root: Path, folder: Path) -> list[str]:
    """Files that are not hidden, through linked folders too; every folder once, by its own path if it has one."""
    found: list[str] = []
    seen: set[str] = set()
    waiting: list[str] = [str(folder)]
    linked: list[str] = []
    while waiting or linked:
        here = waiting.pop() if waiting else linked.pop(0)
        real = os.path.realpath(here)
        if real in seen or not os.path.isdir(real) or _leads_up(root, Path(here), Path(real)):
            continue
        seen.add(real)
        with os.scandir(here) as entries:
            children = sorted(entries, key=lambda entry: entry.name)
        for child in children:
            if child.name.startswith("."):
                continue
            if child.is_dir():
                (linked if child.is_symlink() else waiting).append(child.path)
            elif child.is_file():
                found.append(child.path)
    return found


def _leads_up(root: Path, link: Path, target: Path) -> bool:
    """True for a link that leads to a folder that it is in itself."""
    if not link.is_symlink():
        return False
    above = [parent for parent in link.parents if parent == root or root in parent.parents]
    return any(parent.resolve().is_relative_to(target) for parent in above)


def open_hub(repo_id: str, revision: str | None) -> HubFolder:
    """Resolve the revision to a commit and fetch `meta/`; from the cache where offline."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    info = None
    try:
        info = HfApi().dataset_info(repo_id, revision=revision, timeout=30)
    except GatedRepoError as error:
        raise UserError(
            f"Hub dataset {repo_id!r} is gated: accept its terms on its page, then `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"Hub dataset {repo_id!r} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{repo_id!r} is neither a folder here nor a dataset on the Hub that you may read. "
            "Check the spelling; for a private dataset run `hf auth login` first"
        ) from error
    except (HfHubHTTPError, OSError):
        logger.warning("the Hub cannot be reached; using what is cached of %s", repo_id)
    try:
        # By the name that was asked for: only so does the cache remember, for offline, what it meant.
        snapshot = snapshot_download(
            repo_id,
            repo_type="dataset",
            revision=revision,
            allow_patterns=["meta/**"],
            local_files_only=info is None,
        )
    except LocalEntryNotFoundError as error:
        raise _offline_error(repo_id, "meta/") from error
    commit = Path(snapshot).name
    if info is not None and info.sha != commit:  # somebody pushed in between
        info = HfApi().dataset_info(repo_id, revision=commit, timeout=30)
    files = None if info is None else frozenset(s.rfilename for s in info.siblings or [])
    return HubFolder(repo_id, commit, Path(snapshot), files)


def _offline_error(repo_id: str, path: str) -> UserError:
    return UserError(
        f"cannot reach the Hub, and {path} of {repo_id!r} is not in the local cache. Connect once, or "
        f"download it elsewhere (`hf download {repo_id} --repo-type dataset --local-dir DIR`) and give "
        "the folder as the dataset path"
    )


def is_git_lfs_pointer(path: Path) -> bool:
    """True for the small text file that Git LFS leaves where content was not fetched."""
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER_PREFIX)) == _LFS_POINTER_PREFIX


def fingerprint(folder: Folder, paths: Sequence[str]) -> str:
    """`sha256:...` over names, sizes and contents of these files, independent of where they are.

    Files up to 64 MiB are hashed whole; larger ones by 18 blocks of 64 KiB from the first byte to the
    last (a Parquet footer, which holds every column's statistics, is at the end).
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        local = folder.fetch(path)
        digest.update(f"{path}\0{local.stat().st_size}\0".encode())
        _hash_file(digest, local)
    return f"sha256:{digest.hexdigest()}"


def _hash_file(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_HASH_BYTES:
            while block := file.read(_SAMPLE_BYTES):
                digest.update(block)
            return
        last = size - _SAMPLE_BYTES
        for sample in range(_SAMPLES):
            file.seek(last * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
