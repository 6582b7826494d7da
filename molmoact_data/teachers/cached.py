"""Points are paid for once: a cache on disk that survives a crash.

One append-only JSON-lines file per episode, flushed after every batch, in a folder named after the dataset,
its revision, the camera, the prompt and the pointer's own description. A process killed in the middle of a
line leaves a torn last line, which is skipped when the file is read again; two workers that point at the
same episode append the same answers twice, which is harmless. No locks, any file system.

Every entry carries a checksum of the frame: videos are not part of a local dataset's revision, and a frame
that changed is asked about again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molmoact_data.config import content_hash
from molmoact_data.errors import UserError
from molmoact_data.files.folders import writing
from molmoact_data.files.typed import parse_json
from molmoact_data.labels.pointing import GripperPointer, GripperPoints


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
        keys = list(zip(frame_index_N, checksums, strict=True))
        missing = [row for row, key in enumerate(keys) if key not in file.entries]
        if missing:
            points = self._pointer.point(rgb_NHWC[missing], prompt)
            file.append({keys[row]: _entry(points, i) for i, row in enumerate(missing)})
        return GripperPoints(
            np.stack([file.entries[key][0] for key in keys]),
            np.stack([file.entries[key][1] for key in keys]),
        )

    def _file(self, prompt: str) -> _EpisodeFile:
        if prompt not in self._known:
            self._known[prompt] = _EpisodeFile.open(
                self._folder, self._episode, prompt, self._pointer.describe()
            )
        return self._known[prompt]


Entry = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Unit coordinates [arms, 2] and confidence [arms] of one frame."""
FrameKey = tuple[int, int]
"""Frame number and checksum."""


@dataclass
class _EpisodeFile:
    path: Path
    entries: dict[FrameKey, Entry]
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

    def append(self, entries: dict[FrameKey, Entry]) -> None:
        """Remember and write; a torn last line of a killed process is closed first. Nothing is read again."""
        self.entries.update(entries)
        lines = b"".join(encode_line(key, entry) for key, entry in entries.items())
        with writing(str(self.path)), self.path.open("ab") as file:
            file.write(b"\n" + lines if self.torn else lines)
        self.torn = False


@dataclass(frozen=True)
class _Line:
    """One answer as it is written."""

    frame: int
    crc: int
    xy: list[tuple[float, float] | None]
    confidence: list[float]


def encode_line(key: FrameKey, entry: Entry) -> bytes:
    """One answer as a line; null = not found. float32 survive exactly."""
    xy_A2, confidence_A = entry
    points = [None if np.isnan(xy).any() else [float(x) for x in xy] for xy in xy_A2]
    line = {"frame": key[0], "crc": key[1], "xy": points, "confidence": confidence_A.tolist()}
    return json.dumps(line).encode() + b"\n"


def decode_line(line: bytes) -> tuple[FrameKey, Entry] | None:
    """The inverse; None for a line that a killed process did not finish."""
    try:
        read = parse_json(_Line, line, "a line of the point cache")
    except UserError:
        return None
    xy = [(np.nan, np.nan) if point is None else point for point in read.xy]
    entry = (np.array(xy, np.float32), np.array(read.confidence, np.float32))
    return (read.frame, read.crc), entry


def _entry(points: GripperPoints, row: int) -> Entry:
    return points.xy_NA2[row], points.confidence_NA[row]
