"""From a path or a Hub id to a source: the one place that looks at what kind of dataset it is."""

from __future__ import annotations

import re
from pathlib import Path

from molmoact_data.episodes.base import EpisodeSource
from molmoact_data.episodes.storage import Folder, LocalFolder, open_hub
from molmoact_data.errors import UserError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LEROBOT_INFO = "meta/info.json"


def open_source(
    path_or_id: str | Path, *, revision: str | None = None, threads: int | None = None
) -> EpisodeSource:
    """The dataset in a local folder or under a Hub id, format detected.

    `revision` is a Hub branch, tag or commit. `threads` is the number of video decoder threads per
    camera; None chooses by codec. Raises `UserError` where there is no such dataset, or it is none.
    """
    text = str(path_or_id)
    local = Path(text).expanduser()
    if local.is_dir():
        if revision is not None:
            raise UserError(f"{text!r} is a local folder; a revision can only be asked of the Hub")
        return _open_folder(LocalFolder(local.resolve(), local.resolve().name), threads)
    if local.exists():
        raise UserError(f"{text!r} is a file; give the dataset's folder (the one that holds meta/)")
    if not _HUB_ID.fullmatch(text) or text.startswith(("./", "../", ".")):
        raise UserError(f"no such path: {text!r} (a Hub dataset is written as user/name)")
    return _open_folder(open_hub(text, revision), threads)


def _open_folder(folder: Folder, threads: int | None) -> EpisodeSource:
    if folder.exists(_LEROBOT_INFO):
        from molmoact_data.episodes.lerobot_opening import open_lerobot

        return open_lerobot(folder, threads=threads)
    raise UserError(_not_a_dataset(folder))


def _not_a_dataset(folder: Folder) -> str:
    message = (
        f"{folder.name!r} is not a dataset that can be read: it has no {_LEROBOT_INFO} (LeRobot)"
    )
    if not isinstance(folder, LocalFolder):
        return message
    inner = sorted(folder.root.glob(f"*/{_LEROBOT_INFO}"))[:3]
    if inner:
        names = ", ".join(str(path.parent.parent) for path in inner)
        return f"{message}. Datasets inside it: {names}"
    return f"{message}. Looked in {folder.root}"
