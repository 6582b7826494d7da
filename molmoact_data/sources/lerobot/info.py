"""`meta/info.json` and the JSON lines of LeRobot: read, and checked as far as everything else relies on it.

People write these files with their own recorders. What is not as it must be is one `UserError` that
names the file and the key, never a traceback from the depth of the reader.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from molmoact_data.errors import UserError, first_line
from molmoact_data.files.inputs import Folder, is_inside
from molmoact_data.sources.base import CameraFeature
from molmoact_data.sources.lerobot.files import INFO_FILE

SUPPORTED_VERSIONS = ("v2.0", "v2.1", "v3.0")
LARGEST_INDEX = 2**31 - 1
"""Episodes and rows are numbered in int32 everywhere behind."""
_POSITIVE = {
    "fps": 1e6,
    "chunks_size": LARGEST_INDEX,
    "total_episodes": LARGEST_INDEX,
    "total_frames": 2**53,
}
_LARGEST_SIDE = 2**20


def read_info(folder: Folder) -> dict[str, Any]:
    """`meta/info.json`, with the keys everything else needs in the types they must have."""
    info = json_object(folder, INFO_FILE)
    for key in ("codebase_version", "features"):
        if key not in info:
            raise UserError(f"{INFO_FILE} of {folder.name!r} has no {key!r}: not a LeRobot dataset")
    version = str(info["codebase_version"])
    info["codebase_version"] = version if version.startswith("v") else f"v{version}"
    if info["codebase_version"] not in SUPPORTED_VERSIONS:
        raise UserError(
            f"dataset {folder.name!r} is LeRobot {version}; {', '.join(SUPPORTED_VERSIONS)} can be read. "
            "LeRobot's own converters bring older datasets up"
        )
    for key, highest in _POSITIVE.items():
        if info.get(key) is not None:
            info[key] = _positive(folder, key, info[key], highest)
    if not isinstance(info.get("robot_type"), str | None):
        raise _wrong(folder, "robot_type", info["robot_type"], "a text")
    _check_features(folder, info["features"])
    return info


def path_template(folder: Folder, info: Mapping[str, Any], key: str, default: str) -> str:
    """The template of `info[key]`, or `default`; the names it may use are those of the default.

    A field is `{name}` or `{name:03d}`, nothing else that Python's formatting could do, and what comes out
    is a path inside the dataset, whatever a camera is called.
    """
    template = info.get(key) or default
    names = re.findall(r"{(\w+)", default)
    wanted = f"a path with {{{'}, {'.join(names)}}}, for example {default}"
    if not isinstance(template, str):
        raise _wrong(folder, key, template, wanted)
    rest = re.sub(r"{(\w+)(?::0?\d{0,2}d?)?}", lambda m: "" if m[1] in names else m[0], template)
    if "{" in rest or "}" in rest:
        raise _wrong(folder, key, template, wanted)
    cameras = [c.key for c in declared_cameras(info["features"])] if "video_key" in names else [""]
    for camera in cameras:
        try:
            path = template.format(**dict.fromkeys(names, 0) | {"video_key": camera})
        except (AttributeError, LookupError, ValueError) as error:
            raise _wrong(folder, key, template, wanted) from error
        if not is_inside(path):
            raise _wrong(folder, key, template, f"a path inside the dataset; {path!r} is not")
    return template


def declared_cameras(features: Mapping[str, Any]) -> tuple[CameraFeature, ...]:
    """Image and video features, recorded depth included, in declared order."""
    return tuple(
        CameraFeature(key, *_height_width(feature), feature["dtype"], _is_depth(key, feature))
        for key, feature in features.items()
        if feature.get("dtype") in ("video", "image")
    )


def json_lines(folder: Folder, path: str) -> list[tuple[str, dict[str, Any]]]:
    """Objects of a JSON-lines file, each with the words for where it is; none without the file."""
    if not folder.exists(path):
        return []
    rows = []
    # Not splitlines(): a task text may hold U+2028 and its like, which JSON need not escape.
    lines = _text(folder, path).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path} of {folder.name!r}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise UserError(f"{where} must hold one JSON object, found {line.strip()[:40]}")
        rows.append((where, row))
    return rows


def parse_json(text: str, where: str) -> Any:
    """A JSON value, whose texts can be written as UTF-8. Raises `UserError`, however deep or long it is."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {first_line(error)}") from error
    return value


def integer(row: Mapping[str, Any], key: str, where: str, lowest: int = 0) -> int:
    """A whole number of a metadata row, or one error that says where it is missing."""
    value = row.get(key)
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        if number.is_integer() and lowest <= number <= LARGEST_INDEX:
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    found = f"it is {repr(value)[:40]}" if key in row else f"there is no {key!r}"
    raise UserError(f"{where} needs a whole number {key!r}; {found}")


def _positive(folder: Folder, key: str, value: Any, highest: float) -> float | int:
    """0 stands for "not known", as it does in datasets that were recorded by hand."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= highest or (key != "fps" and not number.is_integer()):
        raise _wrong(folder, key, value, "a positive number")
    return number if key == "fps" else int(number)


def _check_features(folder: Folder, features: Any) -> None:
    if not isinstance(features, dict):
        raise _wrong(folder, "features", features, "an object of key to feature")
    for key, feature in features.items():
        if not isinstance(feature, dict):
            raise _wrong(folder, f"features.{key}", feature, "an object with dtype and shape")
        shape = feature.get("shape")
        if shape is not None and not _is_shape(shape):
            raise _wrong(folder, f"features.{key}.shape", shape, "a list of whole numbers")
        if feature.get("dtype") in ("video", "image") and len(shape or (0, 0, 0)) not in (2, 3):
            raise _wrong(folder, f"features.{key}.shape", shape, "[height, width, channels]")


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) <= 8
        and all(type(n) is int and 0 <= n <= _LARGEST_SIDE for n in shape)
    )


def _wrong(folder: Folder, key: str, found: Any, wanted: str) -> UserError:
    return UserError(
        f"{INFO_FILE} of {folder.name!r}: {key!r} must be {wanted}; it is {json.dumps(found)[:80]}"
    )


def _height_width(feature: Mapping[str, Any]) -> tuple[int, int]:
    """Shapes are written as HWC or CHW; the channel axis is named, or is the short one."""
    shape = feature.get("shape") or [0, 0, 0]
    declared = feature.get("names")
    names = [str(n).lower() for n in declared] if isinstance(declared, list) else []
    if len(names) == len(shape) == 3 and {"height", "width"} <= set(names):
        return shape[names.index("height")], shape[names.index("width")]
    if len(shape) == 2:
        return shape[0], shape[1]
    return (shape[1], shape[2]) if shape[0] <= 4 else (shape[0], shape[1])


def _is_depth(key: str, feature: Mapping[str, Any]) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    named = ("video.is_depth_map", "is_depth_map")
    flags = [info.get(name) for name in named] if isinstance(info, dict) else []
    return True in flags or "depth" in re.split(r"[^a-z]+", key.lower())


def _text(folder: Folder, path: str) -> str:
    try:
        return folder.fetch(path).read_text(encoding="utf-8-sig")  # editors on Windows add a mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path} of {folder.name!r} is not JSON: {error}") from error
    except OSError as error:
        raise UserError(f"{path} of {folder.name!r} cannot be read: {error.strerror}") from error


def json_object(folder: Folder, path: str) -> dict[str, Any]:
    """The JSON object in a metadata file. Raises `UserError`."""
    where = f"{path} of {folder.name!r}"
    content = parse_json(_text(folder, path), where)
    if not isinstance(content, dict):
        raise UserError(f"{where} must hold one JSON object")
    return content
