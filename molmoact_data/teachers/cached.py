"""Points are paid for once: a cache on disk that survives a crash.

One append-only JSON-lines file per episode, flushed after every batch, in a folder named after the dataset,
its revision, the camera, the prompt and the pointer's own description. A process killed in the middle of a
line leaves a torn last line, which is skipped when the file is read again; two workers that point at the
same episode append the same answers twice, which is harmless. No locks, any file system.

Every entry carries a checksum of the frame, or of all frames of the clip: videos are not part of a local dataset's
revision, and what changed is asked about again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data.config import content_hash
from molmoact_data.errors import UserError
from molmoact_data.files.folders import writing
from molmoact_data.files.typed import parse_json
from molmoact_data.labels.pointing import ClipPointer, GripperPointer, GripperPoints, joined


@dataclass(frozen=True)
class EpisodeKey:
    """Whose frames are pointed at."""

    dataset: str
    revision: str
    camera: str
    """Key of the image feature, not its role."""
    episode_index: int


class CachedPointer:
    """A `FramePointer` over one episode: asks `pointer` only about frames that no earlier run asked about."""

    def __init__(self, pointer: GripperPointer, folder: Path, episode: EpisodeKey) -> None:
        self.num_arms = pointer.num_arms
        self._pointer = pointer
        self._folder = folder
        self._episode = episode
        self._known: dict[str, _EpisodeFile] = {}

    def describe(self) -> dict[str, str]:
        """That of the pointer behind: a cached answer is the same answer."""
        return self._pointer.describe()

    def point_frames(
        self, rgb_NHWC: NDArray[np.uint8], prompt: str, frame_index_N: Sequence[int]
    ) -> GripperPoints:
        """RGB uint8 [N,H,W,3] and their frame numbers -> points of the N frames."""
        file = self._file(prompt)
        checksums = [zlib.crc32(rgb.tobytes()) for rgb in rgb_NHWC]
        keys = [Key(*key) for key in zip(frame_index_N, checksums, strict=True)]
        missing = [row for row, key in enumerate(keys) if key not in file.entries]
        if missing:
            points = self._pointer.point(rgb_NHWC[missing], prompt)
            file.append({keys[row]: points.rows([i]) for i, row in enumerate(missing)})
        return joined([file.entries[key] for key in keys])

    def _file(self, prompt: str) -> _EpisodeFile:
        if prompt not in self._known:
            self._known[prompt] = _EpisodeFile.open(
                self._folder, self._episode, prompt, self._pointer.describe()
            )
        return self._known[prompt]


class CachedClipPointer(CachedPointer):
    """A `ClipPointer` over one episode."""

    def __init__(self, pointer: ClipPointer, folder: Path, episode: EpisodeKey) -> None:
        assert isinstance(pointer, GripperPointer)
        super().__init__(pointer, folder, episode)
        self.clips = pointer.clips
        self._of_clips: ClipPointer = pointer

    def point_clip(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
        """See `ClipPointer.point_clip`; known by the clip's content."""
        file = self._file(prompt)
        key = Key(None, zlib.crc32(rgb_NHWC.tobytes()), len(rgb_NHWC))
        if key not in file.entries:
            file.append({key: self._of_clips.point_clip(rgb_NHWC, prompt)})
        return file.entries[key]


def cached(
    pointer: GripperPointer, folder: Path, episode: EpisodeKey
) -> CachedPointer | CachedClipPointer:
    """The cache in front of a pointer, of clips too where it looks at them."""
    if isinstance(pointer, ClipPointer):
        return CachedClipPointer(pointer, folder, episode)
    return CachedPointer(pointer, folder, episode)


@dataclass(frozen=True)
class Key:
    """What an answer is about: a frame by its number, or a clip."""

    frame: int | None
    crc: int
    length: int = 1
    """Frames of the clip."""


@dataclass
class _EpisodeFile:
    path: Path
    entries: dict[Key, GripperPoints]
    torn: bool = False
    """Whether a killed process left the last line without its end."""

    @classmethod
    def open(
        cls, root: Path, episode: EpisodeKey, prompt: str, pointer: dict[str, str]
    ) -> _EpisodeFile:
        """Read what earlier runs left; makes the folder and says in `key.json` what it is of."""
        key = {**asdict(episode), "prompt": prompt, "pointer": pointer}
        episode_index = key.pop("episode_index")
        folder = root / content_hash(key)[:16]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "key.json").write_text(json.dumps(key, indent=2, sort_keys=True))
        path = folder / f"episode_{episode_index:06d}.jsonl"
        content = path.read_bytes() if path.exists() else b""
        entries = dict(filter(None, map(decode_line, content.splitlines())))
        return cls(path, entries, torn=bool(content) and not content.endswith(b"\n"))

    def append(self, entries: dict[Key, GripperPoints]) -> None:
        """Remember and write; a torn last line of a killed process is closed first. Nothing is read again."""
        self.entries.update(entries)
        lines = b"".join(encode_line(key, entry) for key, entry in entries.items())
        with writing(str(self.path)), self.path.open("ab") as file:
            file.write(b"\n" + lines if self.torn else lines)
        self.torn = False


Points = list[list[float] | None]
"""Of the arms of one frame."""


@dataclass(frozen=True)
class _Frame:
    """An answer about a frame as it is written."""

    frame: int
    crc: int
    xy: Points
    confidence: list[float]
    tokens: tuple[int, int] | None = None
    """Read and written; absent = not told."""


@dataclass(frozen=True)
class _Clip:
    """An answer about a clip as it is written."""

    clip: int
    """Its frames."""
    crc: int
    xy: list[Points]
    confidence: list[list[float]]
    tokens: tuple[int, int] | None = None


CLIP = b'{"clip"'
"""How a line about a clip begins."""


def encode_line(key: Key, points: GripperPoints) -> bytes:
    """One answer as a line; null = not found. float32 survive exactly."""
    xy_NA: list[Points] = [
        [None if np.isnan(xy).any() else [float(x) for x in xy] for xy in xy_A2]
        for xy_A2 in points.xy_NA2
    ]
    confidence_NA = points.confidence_NA.tolist()
    line: dict[str, Any] = {"crc": key.crc}
    if key.frame is None:
        line = {"clip": key.length, **line, "xy": xy_NA, "confidence": confidence_NA}
    else:
        line = {"frame": key.frame, **line, "xy": xy_NA[0], "confidence": confidence_NA[0]}
    if points.tokens_C2 is not None:
        line["tokens"] = points.tokens_C2[0].tolist()
    return json.dumps(line).encode() + b"\n"


def decode_line(line: bytes) -> tuple[Key, GripperPoints] | None:
    """The inverse; None for a line that a killed process did not finish."""
    try:
        read = _parse(line)
    except UserError:
        return None
    return _key_of(read), _points_of(read)


def _parse(line: bytes) -> _Frame | _Clip:
    where = "a line of the point cache"
    if line.startswith(CLIP):
        return parse_json(_Clip, line, where)
    return parse_json(_Frame, line, where)


def _key_of(read: _Frame | _Clip) -> Key:
    if isinstance(read, _Clip):
        return Key(None, read.crc, read.clip)
    return Key(read.frame, read.crc)


def _points_of(read: _Frame | _Clip) -> GripperPoints:
    xy_NA = read.xy if isinstance(read, _Clip) else [read.xy]
    confidence_NA = read.confidence if isinstance(read, _Clip) else [read.confidence]
    told = [[(np.nan, np.nan) if xy is None else xy for xy in xy_A] for xy_A in xy_NA]
    return GripperPoints(
        np.array(told, np.float32),
        np.array(confidence_NA, np.float32),
        None if read.tokens is None else np.array([read.tokens], np.int64),
    )
