"""`molmoact download`: the published MolmoAct data, by stage or by name; resumable, and usable offline.

huggingface_hub does the transfer; a file that is there and whole is not asked for again, half a file is
fetched anew.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from molmoact_data.errors import UserError, unknown_name
from molmoact_data.files.hub import hub_errors
from molmoact_data.files.storage import Storage
from molmoact_data.teachers.published import HUB_ID
from molmoact_data.web.catalogue import WEB_SETS, WebSet, chosen

PRETRAIN = "allenai/MolmoAct-Pretraining-Mixture"
MIDTRAIN = "allenai/MolmoAct-Midtraining-Mixture"
LIBERO = "allenai/libero"
TOP_LEVEL_SUFFIXES = (".md", ".json", ".txt", ".yaml")
WHOLE = ""
"""The configuration of a repository that is wanted as it is."""
NOTE_FILE = ".cache/molmoact/files.json"
"""Path -> bytes of what was asked for, so that half a download is not taken for a whole one offline."""
LEFT_OVER_AFTER_S = 3600
"""Half a file that nobody wrote to for so long is what a killed download left."""
_THEN = "What arrived is kept: run the same command again to continue, or set HF_HUB_OFFLINE=1 to use what is there."


@dataclass(frozen=True)
class PublishedSet:
    """One configuration of one of the published repositories."""

    repo_id: str
    config: str
    rows: str
    """As reported by its authors."""
    reference: str
    """Class of the public training code."""


PUBLISHED: Mapping[str, PublishedSet] = {
    "bc_z": PublishedSet(PRETRAIN, "bc_z", "10,289,224", "BC_Z"),
    "bridge_dataset": PublishedSet(PRETRAIN, "bridge_dataset", "3,746,468", "BridgeDataV2"),
    "fractal20220817_data": PublishedSet(PRETRAIN, "fractal20220817_data", "7,065,568", "RT_1"),
    "auxiliary_depth": PublishedSet(PRETRAIN, "auxiliary_depth", "1.5 M", "AuxiliaryDepthData"),
    "auxiliary_trace": PublishedSet(PRETRAIN, "auxiliary_trace", "1.5 M", "AuxiliaryTraceData"),
    "lvis": PublishedSet(PRETRAIN, "lvis", "124,108", "LVIS"),
    "home_primary": PublishedSet(
        MIDTRAIN, "molmoact_home_primary", "1,977,450", "MolmoActDatasetHomePrimary"
    ),
    "home_secondary": PublishedSet(
        MIDTRAIN, "molmoact_home_secondary", "1,977,450", "MolmoActDatasetHomeSecondary"
    ),
    "tabletop_primary": PublishedSet(
        MIDTRAIN, "molmoact_tabletop_primary", "987,748", "MolmoActDatasetTabletopPrimary"
    ),
    "tabletop_secondary": PublishedSet(
        MIDTRAIN, "molmoact_tabletop_secondary", "987,748", "MolmoActDatasetTabletopSecondary"
    ),
    "libero_spatial": PublishedSet(LIBERO, "libero_spatial", "unknown", "LIBEROSpatial"),
    "libero_object": PublishedSet(LIBERO, "libero_object", "unknown", "LIBEROObject"),
    "libero_goal": PublishedSet(LIBERO, "libero_goal", "unknown", "LIBEROGoal"),
    "libero_10": PublishedSet(LIBERO, "libero_10", "unknown", "LIBEROLong"),
}
RAW: Mapping[str, str] = {"molmoact_dataset": "allenai/MolmoAct-Dataset"}
"""LeRobot datasets as they were recorded; any other is named by its repository, `owner/name`."""
STAGES: Mapping[str, str] = {"pretrain": PRETRAIN, "midtrain": MIDTRAIN, "libero": LIBERO}


@dataclass(frozen=True)
class Download:
    """What of one repository is wanted."""

    repo_id: str
    configs: tuple[str, ...]

    def folder(self, root: Path) -> Path:
        """Where it goes: the repository's own name below `root`."""
        return root / self.repo_id.rpartition("/")[2]


@dataclass(frozen=True)
class DownloadPlan:
    """The files of one repository, and how large they are."""

    repo_id: str
    revision: str
    files: tuple[tuple[str, int], ...]
    """(path, bytes)."""
    licence: str
    """As the repository's own card says."""

    @property
    def num_bytes(self) -> int:
        return sum(size for _, size in self.files)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "repo_id": self.repo_id,
            "revision": self.revision,
            "files": len(self.files),
            "bytes": self.num_bytes,
            "licence": self.licence,
        }


@dataclass(frozen=True)
class Wanted:
    """What the names of one command stand for."""

    repositories: tuple[Download, ...]
    web: tuple[WebSet, ...]


def choose(names: Sequence[str]) -> Wanted:
    """Names -> what to fetch: `all`, a stage, a group of general sets, a set by our name or the reference's class,
    or a dataset repository as `owner/name`. Raises `UserError` with the nearest name."""
    repositories: dict[str, list[str]] = {}
    general: dict[str, WebSet] = {}
    wider = [[*STAGES, "web"] if name == "all" else [name] for name in names]
    for name in chain.from_iterable(wider):
        published, web = _published(name), chosen(name)
        if not published and not web:
            raise unknown_name("published dataset", name, known_names())
        for repo_id, config in published:
            repositories.setdefault(repo_id, []).append(config)
        general |= {entry.name: entry for entry in web}
    downloads = [Download(repo, tuple(dict.fromkeys(c))) for repo, c in repositories.items()]
    return Wanted(tuple(downloads), tuple(general.values()))


def known_names() -> list[str]:
    """Everything that `choose` knows by name."""
    groups = ["all", *STAGES, "web", "academic", "pixmo", *PUBLISHED, *RAW, *WEB_SETS]
    classes = [s.reference for s in PUBLISHED.values()] + [s.reference for s in WEB_SETS.values()]
    return [*groups, *dict.fromkeys(classes)]


def _published(name: str) -> list[tuple[str, str]]:
    """(repository, configuration) pairs of a name; "" is a whole repository."""
    if "/" in name and not HUB_ID.fullmatch(name):
        raise UserError(
            f"{name!r} is no dataset on the Hub; write owner/name, for example {LIBERO}."
        )
    if "/" in name or name in RAW:
        return [(RAW.get(name, name), WHOLE)]
    return [
        (s.repo_id, s.config)
        for key, s in PUBLISHED.items()
        if name in (key, s.reference) or s.repo_id == STAGES.get(name)
    ]


def belongs(path: str, configs: Sequence[str]) -> bool:
    """Whether a file of a repository is part of these configurations: by folder, or by the file's name."""
    if WHOLE in configs:
        return True
    parts = PurePosixPath(path).parts
    if len(parts) == 1 and path.endswith(TOP_LEVEL_SUFFIXES):
        return True
    names = [part.partition(".")[0] for part in parts]
    return any(
        name == config or name.startswith(f"{config}-") for name in names for config in configs
    )


def plan_download(
    download: Download, *, revision: str | None = None, endpoint: str | None = None
) -> DownloadPlan:
    """Ask the Hub which files there are. Raises `UserError` where it cannot be reached."""
    from huggingface_hub import HfApi

    with hub_errors(f"{download.repo_id} cannot be fetched", _THEN):
        info = HfApi(endpoint=endpoint).dataset_info(
            download.repo_id, revision=revision, files_metadata=True
        )
    siblings = info.siblings or []
    files = [(s.rfilename, s.size or 0) for s in siblings if belongs(s.rfilename, download.configs)]
    if not any(len(PurePosixPath(path).parts) > 1 for path, _ in files):
        folders = sorted({PurePosixPath(s.rfilename).parts[0] for s in siblings})
        raise UserError(
            f"{download.repo_id} has no files of {', '.join(download.configs)}; it has: {', '.join(folders)}."
        )
    card = info.card_data.to_dict() if info.card_data else {}
    licence = str(card.get("license_name") or card.get("license") or "not named on its card")
    return DownloadPlan(download.repo_id, str(info.sha), tuple(sorted(files)), licence)


def transfer_hours(num_bytes: int, mbit_per_s: float) -> float:
    """How long so many bytes take on a line of so many megabits per second that does nothing else."""
    return num_bytes * 8 / (mbit_per_s * 1e6) / 3600


def fetch(
    download: Download,
    root: Path,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    workers: int = 8,
) -> Path:
    """Fetch what is missing into its folder; returns the folder. Offline, what is there must be enough."""
    from huggingface_hub import snapshot_download

    folder = download.folder(root)
    if is_offline():
        return _offline(download, folder)
    plan = plan_download(download, revision=revision, endpoint=endpoint)
    refuse_full_disk(plan, folder)
    note = {**_noted(folder), **dict(plan.files)}
    Storage(str(folder)).write_bytes(NOTE_FILE, json.dumps(note).encode())
    drop_leftovers(folder)
    with hub_errors(f"{download.repo_id} cannot be fetched", _THEN):
        snapshot_download(
            download.repo_id,
            repo_type="dataset",
            revision=plan.revision,
            allow_patterns=[path for path, _ in plan.files],
            local_dir=folder,
            endpoint=endpoint,
            max_workers=workers,
        )
    return folder


def drop_leftovers(folder: Path) -> None:
    """Remove the halves of files that killed downloads left: huggingface_hub never looks at them again."""
    for path in (folder / ".cache" / "huggingface").rglob("*.incomplete"):
        if time.time() - path.stat().st_mtime > LEFT_OVER_AFTER_S:
            path.unlink(missing_ok=True)


def is_offline() -> bool:
    """True where the user said so with `HF_HUB_OFFLINE=1`."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def refuse_full_disk(plan: DownloadPlan, folder: Path) -> None:
    """Raise `UserError` before the first byte where the rest does not fit."""
    missing = sum(size for path, size in plan.files if not _is_whole(folder / path, size))
    parent = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(parent).free
    if missing > free:
        raise UserError(
            f"{plan.repo_id} needs {missing / 1e9:,.1f} GB more, {parent} has {free / 1e9:,.1f} GB free. "
            "Choose fewer sets, or another --output-path."
        )


def _offline(download: Download, folder: Path) -> Path:
    """The folder, if everything that was asked for is there; without a note of that, if anything is."""
    noted = _noted(folder)
    missing = []
    for config in download.configs:
        files = [p for p in noted if len(PurePosixPath(p).parts) > 1 and belongs(p, [config])]
        lost = [path for path in files if not _is_whole(folder / path, noted[path])]
        if lost:
            missing.append(f"{config} ({len(lost)} of {len(files)} files, {lost[0]} for one)")
        elif not files and not _holds_any(folder, config):
            missing.append(config)
    if missing:
        raise UserError(
            f"HF_HUB_OFFLINE is set and {folder} lacks {', '.join(missing)}. Download it once with the "
            "network, or copy the folder from a machine that has it."
        )
    return folder


def _noted(folder: Path) -> dict[str, int]:
    note = folder / NOTE_FILE
    return json.loads(note.read_text()) if note.is_file() else {}


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _holds_any(folder: Path, config: str) -> bool:
    paths = (p.relative_to(folder).as_posix() for p in folder.rglob("*.parquet"))
    return any(belongs(path, [config]) for path in paths)
