"""From a path, a URL or a Hub id to a source: the one place that looks at what kind of dataset it is."""

from __future__ import annotations

import re
from pathlib import Path

from molmoact_data.errors import UserError
from molmoact_data.files.inputs import Folder, LocalFolder, open_hub
from molmoact_data.files.kinds import why_no_dataset
from molmoact_data.sources.base import EpisodeSource

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LEROBOT_INFO = "meta/info.json"
_RLDS_FILES = ("features.json", "dataset_info.json")


def open_source(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    threads: int | None = None,
    isolate: bool = False,
) -> EpisodeSource:
    """The dataset in a local folder, under a URL (`s3://bucket/data`) or a Hub id, format detected.

    `revision` is a Hub branch, tag or commit. `threads` is the number of video decoder threads per
    camera; None = two. A split of an RLDS dataset is named behind the path, as in
    `bridge_dataset/1.0.0#val`; without it, `train`. `isolate` decodes in a child process, so
    that a file that kills the decoder rejects its episode and nothing else. Raises `UserError` where
    there is no such dataset, or it is none.
    """
    text, split = path_and_split(str(path_or_id))
    source = _open_folder(_folder(text, revision), split, threads)
    if not isolate:
        return source
    from molmoact_data.sources.isolation import IsolatedSource

    return IsolatedSource(source)


def path_and_split(text: str) -> tuple[str, str | None]:
    """`bridge/1.0.0#val` -> (`bridge/1.0.0`, `val`); a folder whose name has a number sign is a folder."""
    folder, slash, name = text.rpartition("/")
    if "#" not in name or Path(text).expanduser().is_dir():
        return text, None
    path, _, split = name.rpartition("#")
    return f"{folder}{slash}{path}", split or None


def _folder(text: str, revision: str | None) -> Folder:
    """Where the files are."""
    local = Path(text).expanduser()
    is_url = "://" in text
    if revision is not None and (is_url or local.is_dir()):
        what = "a URL" if is_url else "a local folder"
        raise UserError(f"{text!r} is {what}; a revision can only be asked of the Hub")
    if is_url:
        from molmoact_data.files.object_store import open_object_store

        return open_object_store(text)
    if local.is_dir():
        return LocalFolder(local.resolve(), local.resolve().name)
    if local.exists():
        raise UserError(f"{text!r} is a file; give the dataset's folder (the one that holds meta/)")
    if not _HUB_ID.fullmatch(text) or text.startswith("."):
        raise UserError(f"no such path: {text!r} (a Hub dataset is written as user/name)")
    return open_hub(text, revision)


def _open_folder(folder: Folder, split: str | None, threads: int | None) -> EpisodeSource:
    if folder.exists(_LEROBOT_INFO):
        if split is not None:
            raise UserError(
                f"{folder.name!r} is a LeRobot dataset; choose with --episodes, not #{split}"
            )
        from molmoact_data.sources.lerobot.opening import open_lerobot

        return open_lerobot(folder, threads=threads)
    if all(folder.exists(name) for name in _RLDS_FILES):
        from molmoact_data.sources.rlds.opening import open_rlds

        return open_rlds(folder, split)
    raise UserError(_not_a_dataset(folder))


def _not_a_dataset(folder: Folder) -> str:
    message = (
        f"{folder.name!r} is not a dataset that can be read: it has neither {_LEROBOT_INFO} (LeRobot) "
        f"nor {' and '.join(_RLDS_FILES)} (RLDS)"
    )
    if not isinstance(folder, LocalFolder):
        return message
    ours = why_no_dataset(folder.root)
    if ours:
        return f"{message}: {ours}"
    inner = [*folder.root.glob(f"*/{_LEROBOT_INFO}"), *folder.root.glob(f"*/*/{_RLDS_FILES[0]}")]
    inner = [*inner, *folder.root.glob(f"*/{_RLDS_FILES[0]}")]
    roots = sorted({str(p.parent.parent if p.name == "info.json" else p.parent) for p in inner})
    if roots:
        return f"{message}. Datasets inside it: {', '.join(roots[:3])}"
    return f"{message}. Looked in {folder.root}"
