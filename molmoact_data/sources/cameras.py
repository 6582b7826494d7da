"""Camera roles: which image stream of a dataset is `primary`, `wrist`, and so on.

The user says so; a guess is made only when nothing was said, and comes back with a note to print.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from molmoact_data.errors import UserError, unknown_name
from molmoact_data.sources.base import SourceInfo

PRIMARY = "primary"
WRIST = "wrist"

_WRIST_NAME = re.compile(r"wrist|hand|gripper|eye_in|(^|[._/])(eih|wrst)")
_NOT_WRIST_NAME = re.compile(r"hand_?eye_?to|third|eye_to_hand")
_ROLE = re.compile(r"[a-z][a-z0-9_]*")


def resolve_cameras(
    info: SourceInfo, requested: Mapping[str, str]
) -> tuple[dict[str, str], str | None]:
    """Role -> camera key, and the note to print where the roles were guessed.

    Recorded depth is never a camera here. Raises `UserError` for an unknown key, a malformed role, a
    key given two roles, or a dataset without a readable camera.
    """
    if requested:
        return _checked(info, requested), None
    return _guessed(info)


def looks_like_wrist(key: str) -> bool:
    """True for the usual names of a camera that moves with the gripper."""
    return bool(_WRIST_NAME.search(key.lower())) and not _NOT_WRIST_NAME.search(key.lower())


def _checked(info: SourceInfo, requested: Mapping[str, str]) -> dict[str, str]:
    colour = {camera.key for camera in info.cameras if not camera.is_depth}
    depth = {camera.key for camera in info.cameras if camera.is_depth}
    taken: dict[str, str] = {}
    for role, key in requested.items():
        if not _ROLE.fullmatch(role):
            raise UserError(
                f"camera role {role!r} becomes a column name, so it must be lower-case letters, digits "
                "and _ , for example primary or wrist_left"
            )
        if key in info.missing_cameras:
            raise UserError(_missing_message(info, [key]))
        if key in depth:
            raise UserError(
                f"{key!r} holds recorded depth, not colour; give a colour camera for role {role!r}: "
                f"{', '.join(sorted(colour)) or 'this dataset has none'}"
            )
        if key not in colour:
            raise unknown_name("camera", key, colour)
        if key in taken:
            raise UserError(f"camera {key!r} was given two roles: {taken[key]} and {role}")
        taken[key] = role
    return dict(requested)


def _guessed(info: SourceInfo) -> tuple[dict[str, str], str]:
    colour = [camera for camera in info.cameras if not camera.is_depth]
    if not colour:
        raise UserError(_missing_message(info, info.missing_cameras))
    mapping = _guess_roles([camera.key for camera in colour])
    unused = [camera.key for camera in colour if camera.key not in mapping.values()]
    chosen = ", ".join(f"{role}={key}" for role, key in mapping.items())
    note = f"cameras guessed from their names: {chosen}"
    note += f"; not used: {', '.join(unused)}" if unused else ""
    flags = " ".join(f"--camera {role}={key}" for role, key in mapping.items())
    return mapping, f"{note}. To decide yourself: {flags}"


def _guess_roles(keys: Sequence[str]) -> dict[str, str]:
    wrist = [key for key in keys if looks_like_wrist(key)]
    others = [key for key in keys if key not in wrist]
    if not others:  # someone must be looked through; a lone wrist camera is the primary one
        return {PRIMARY: wrist[0]} | ({WRIST: wrist[1]} if len(wrist) > 1 else {})
    return {PRIMARY: others[0]} | ({WRIST: wrist[0]} if wrist else {})


def _missing_message(info: SourceInfo, keys: Sequence[str]) -> str:
    if not keys:
        depth = [camera.key for camera in info.cameras if camera.is_depth]
        found = f"only recorded depth: {', '.join(depth)}" if depth else "no image feature at all"
        return f"dataset {info.name!r} has no colour camera ({found}); nothing can be labelled"
    return (
        f"dataset {info.name!r} declares {', '.join(map(repr, keys))}, but not one of the image or "
        "video files exists. Fetch them (for Git: `git lfs pull`; for the Hub: download videos/ too) "
        "or choose another camera"
    )
