"""The raw files of a general set: from the Hub, from plain servers, or told to the person who must fetch them.

A file that is there and whole is not asked for again; half a file goes on where it stopped; an archive is unpacked
once.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from molmoact_data.errors import UserError
from molmoact_data.files.folders import write_json
from molmoact_data.files.hub import hub_errors
from molmoact_data.web.catalogue import ByHand, HubFiles, WebFile, WebSet

NOTES = ".fetched"
"""Folder below a set's with one note per file: what was asked for and how large it was."""
ARCHIVES = "archives"
_TIMEOUT_S = 30.0
_THEN = "What arrived is kept: run the same command again to continue."


@dataclass(frozen=True)
class WebPlan:
    """What fetching a set would move."""

    name: str
    folder: str
    licence: str
    files: int
    num_bytes: int | None
    """None where a server does not say."""
    by_hand: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dict(vars(self))


@dataclass(frozen=True)
class Servers:
    """Where the files are asked for."""

    endpoint: str | None = None
    """Another Hub than the default."""
    mirror: str | None = None
    """URL below which the plain servers' files lie as HOST/PATH, for machines without the open network."""
    offline: bool = False
    """Ask nobody; what is there must be enough."""

    def address(self, url: str) -> str:
        """Where a file is asked for."""
        if self.mirror is None:
            return url
        parts = urlsplit(url)
        return f"{self.mirror.rstrip('/')}/{parts.netloc}{parts.path}" + (
            f"?{parts.query}" if parts.query else ""
        )


def plan_set(entry: WebSet, servers: Servers) -> WebPlan:
    """Ask the servers how large it is, without fetching."""
    files = 0
    sizes: list[int | None] = []
    for part in entry.fetch:
        if isinstance(part, HubFiles):
            _, found = _hub_files(part, servers)
            files += len(found)
            sizes.append(sum(size for _, size in found))
        elif isinstance(part, WebFile):
            files += 1
            sizes.append(_announced_size(servers.address(part.url)))
    known = [size for size in sizes if size is not None]
    total = sum(known) if len(known) == len(sizes) else None
    return WebPlan(entry.name, entry.folder, entry.licence, files, total, tuple(_told(entry)))


def fetch_set(entry: WebSet, root: Path, servers: Servers, *, workers: int = 4) -> tuple[str, ...]:
    """Fetch what is missing below `root`; returns what a person has to put there, line by line."""
    folder = root / entry.folder
    folder.mkdir(parents=True, exist_ok=True)
    for part in entry.fetch:
        if isinstance(part, HubFiles):
            _fetch_hub(part, folder, servers, workers)
    plain = [part for part in entry.fetch if isinstance(part, WebFile)]
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda part: _fetch_file(part, folder, servers), plain):
            pass
    return tuple(line for line in _told(entry) if not _is_there(entry, folder))


def _told(entry: WebSet) -> Iterator[str]:
    for part in entry.fetch:
        if isinstance(part, ByHand):
            yield f"{entry.name}: register at {part.page} and put {', '.join(part.files)} into {entry.folder}/"


def _is_there(entry: WebSet, folder: Path) -> bool:
    wanted = [
        name
        for part in entry.fetch
        if isinstance(part, ByHand)
        for name in part.files
        if "." in name or name.endswith("/")
    ]
    return all((folder / name).exists() for name in wanted)


def _hub_files(part: HubFiles, servers: Servers) -> tuple[str, list[tuple[str, int]]]:
    """The commit, and (path, bytes) of each file that is wanted."""
    from fnmatch import fnmatch

    from huggingface_hub import HfApi

    with hub_errors(f"{part.repo_id} cannot be fetched", _THEN):
        info = HfApi(endpoint=servers.endpoint).dataset_info(
            part.repo_id, revision=part.revision, files_metadata=True
        )
    files = [
        (s.rfilename, s.size or 0)
        for s in info.siblings or []
        if any(fnmatch(s.rfilename, pattern) for pattern in part.patterns)
    ]
    if not files:
        raise UserError(
            f"{part.repo_id} has no file like {', '.join(part.patterns)} (revision {part.revision or 'main'})."
        )
    return str(info.sha), files


def _fetch_hub(part: HubFiles, folder: Path, servers: Servers, workers: int) -> None:
    from huggingface_hub import snapshot_download

    if servers.offline:
        if not any(folder.rglob("*.parquet")):
            raise UserError(
                f"HF_HUB_OFFLINE is set and {folder} has nothing of {part.repo_id}. Download it once with the network."
            )
        return
    commit, _ = _hub_files(part, servers)
    with hub_errors(f"{part.repo_id} cannot be fetched", _THEN):
        snapshot_download(
            part.repo_id,
            repo_type="dataset",
            revision=commit,
            allow_patterns=list(part.patterns),
            local_dir=folder,
            endpoint=servers.endpoint,
            max_workers=workers,
        )


def _fetch_file(part: WebFile, folder: Path, servers: Servers) -> None:
    note = folder / NOTES / f"{part.name.replace('/', '__')}.json"
    kept = folder / (part.name if part.unpack is None else f"{ARCHIVES}/{part.name}")
    if _is_done(note, kept, unpacked=part.unpack is not None):
        return
    if servers.offline:
        raise UserError(
            f"HF_HUB_OFFLINE is set and {kept} is not there. Download it once with the network."
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    if not kept.is_file():
        _continue_download(servers.address(part.url), kept)
    size = kept.stat().st_size
    if part.unpack is not None:
        _unpack(kept, folder / part.unpack)
        kept.unlink()  # the note says that it was unpacked; nobody wants both
    write_json(note, {"url": part.url, "num_bytes": size})


def _is_done(note: Path, kept: Path, *, unpacked: bool) -> bool:
    if not note.is_file():
        return False
    told: Mapping[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    return unpacked or (kept.is_file() and kept.stat().st_size == told["num_bytes"])


def _continue_download(url: str, target: Path) -> None:
    """Fetch into `NAME.part`, from where an earlier try stopped; the name appears when it is whole."""
    part = target.with_name(target.name + ".part")
    have, reached = (part.stat().st_size if part.is_file() else 0), -1
    while have > reached:  # as long as every try brings something
        reached = have
        with _network_errors(url):
            total = _append_rest(url, part)
        have = part.stat().st_size
        if total is None or have == total:
            part.replace(target)
            return
    raise UserError(f"{url} broke off at {have:,} bytes. {_THEN}")


def _append_rest(url: str, part: Path) -> int | None:
    """Append what is missing; returns the whole size as the server says it, None where it does not."""
    import httpx

    have = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with httpx.stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT_S
    ) as response:
        if response.status_code == 416:  # nothing is left after what is there
            return have
        response.raise_for_status()
        resumed = response.status_code == 206
        length = response.headers.get("content-length")
        # What broke off is seen by its size, and the caller asks for the rest.
        with part.open("ab" if resumed else "wb") as file, suppress(httpx.RemoteProtocolError):
            for piece in response.iter_raw():
                file.write(piece)
        return None if length is None else int(length) + (have if resumed else 0)


def _announced_size(url: str) -> int | None:
    import httpx

    with _network_errors(url):
        response = httpx.head(url, follow_redirects=True, timeout=_TIMEOUT_S)
        response.raise_for_status()
        length = response.headers.get("content-length")
        return int(length) if length else None


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as error:
        raise UserError(
            f"{url} answers {error.response.status_code}: the file is not there any more, or not for everybody."
        ) from error
    except httpx.HTTPError as error:
        raise UserError(
            f"{url} cannot be fetched ({type(error).__name__}: {error}). {_THEN}"
        ) from error


def _unpack(archive: Path, folder: Path) -> None:
    """ZIP or tar, whole, never outside `folder`. A damaged archive is deleted, so that it is fetched again."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                _refuse_outside(packed.namelist(), archive)
                packed.extractall(folder)
        else:
            _drain(archive)
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
    except (zipfile.BadZipFile, gzip.BadGzipFile, tarfile.TarError, zlib.error, EOFError) as error:
        archive.unlink()
        raise UserError(
            f"{archive.name} is damaged or no archive ({error}); run the same command to fetch it again."
        ) from error


def _drain(archive: Path) -> None:
    """Read a compressed tar file to its last byte: its checksum stands there, and `tarfile` stops before it."""
    with archive.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return
    with gzip.open(archive, "rb") as packed:
        while packed.read(1 << 20):
            pass


def _refuse_outside(names: Sequence[str], archive: Path) -> None:
    for name in names:
        if (
            name.startswith(("/", "\\"))
            or ".." in Path(name).parts
            or ":" in name.partition("/")[0]
        ):
            raise UserError(
                f"{archive} wants to write {name!r}, outside its folder. It is not unpacked."
            )
