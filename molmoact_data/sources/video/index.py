"""What a video file holds, read from its packets without decoding: times, keyframes, orientation.

Demuxing costs about 3 us per packet and happens once per file and process: a file that many episodes
share is looked at once, and every check of it (`match_frames`, the spans of a shared file) uses the same
numbers. Decoding starts at the keyframe that this index names, never at one that a seek by time guessed.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

KEPT_INDEXES = 8
"""Files whose index a process remembers: some cameras, and the next file of each."""


@dataclass(frozen=True)
class Orientation:
    """What the file's display matrix does to a decoded picture [H,W,...]: transpose it, then mirror it."""

    swap: bool = False
    """Rows become columns."""
    mirror_x: bool = False
    mirror_y: bool = False

    def turned(self, picture: NDArray[Any]) -> NDArray[Any]:
        """A view of the picture as a player shows it."""
        turned = picture.swapaxes(0, 1) if self.swap else picture
        return turned[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]

    def size_hw(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the turned picture."""
        return (width, height) if self.swap else (height, width)


UPRIGHT = Orientation()


@dataclass(frozen=True)
class VideoIndex:
    """Frames of one file. Ticks are units of the stream's time base."""

    ticks: NDArray[np.int64]
    """[P] presentation times of what a player shows, sorted."""
    tick_s: float
    promised: int
    """Frames by the file's header, 0 where it does not say; a file that was cut off holds fewer."""
    stored: int
    """Packets in the file, those that a player does not show included."""
    decode_order: NDArray[np.int64]
    """[P'] presentation times of all packets, in the order in which they are stored."""
    key_positions: NDArray[np.int64]
    """[K] places of the keyframes in `decode_order`."""
    key_seek: NDArray[np.int64]
    """[K] the earlier of the keyframes' two times: a seek there never arrives behind them."""
    orientation: Orientation
    """How a player turns the decoded pictures."""

    @property
    def presentation_s(self) -> NDArray[np.float64]:
        """[P] seconds."""
        return self.ticks.astype(np.float64) * self.tick_s

    @property
    def key_ticks(self) -> NDArray[np.int64]:
        """[K] presentation times of the keyframes, sorted."""
        return np.sort(self.decode_order[self.key_positions])

    @property
    def is_cut_off(self) -> bool:
        """True where the header promises more than there is."""
        return self.promised > self.stored

    def start_for(self, tick: int) -> tuple[int, int]:
        """Presentation time of the last keyframe from which the frame shown at `tick` can be decoded, and a
        seek time that is never behind it.

        The keyframe is stored before the frame and shown no later than it: a frame that is shown before
        the keyframe that precedes it in the file (an open group, MPEG-4 with B-frames) also needs the group
        before.
        """
        key = int(np.searchsorted(self.key_positions, self._position(tick), side="right")) - 1
        while key > 0 and self.decode_order[self.key_positions[key]] > tick:
            key -= 1
        if not len(self.key_seek):
            return tick, 0
        key = max(key, 0)
        return int(self.decode_order[self.key_positions[key]]), int(self.key_seek[key])

    def is_behind(self, tick: int | None, key_tick: int) -> bool:
        """True where the packet shown at `tick` is stored behind this keyframe, or is none."""
        return tick is None or self._position(tick) > self._position(key_tick)

    def _position(self, tick: int) -> int:
        found = np.flatnonzero(self.decode_order == tick)
        return int(found[0]) if len(found) else len(self.decode_order)


_KEPT: OrderedDict[tuple[str, int, int], VideoIndex] = OrderedDict()


def index_of(path: Path, container: InputContainer, stream: VideoStream) -> VideoIndex:
    """The index of an open file; read once for every file, size and time of change."""
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key in _KEPT:
        _KEPT.move_to_end(key)
        return _KEPT[key]
    index = _read(container, stream)
    _KEPT[key] = index
    if len(_KEPT) > KEPT_INDEXES:
        _KEPT.popitem(last=False)
    return index


def orientation_of(frame: VideoFrame) -> Orientation | None:
    """How a player shows the frame; None for a matrix that is no quarter turn or mirror image."""
    matrix = cast(Any, frame.side_data).get(Type.DISPLAYMATRIX)
    if matrix is None:
        return UPRIGHT
    m = np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2]
    a, b, c, d = (int(n) for n in m.ravel())  # x' = a x + c y, y' = b x + d y
    if b == c == 0 and a and d:
        return Orientation(mirror_x=a < 0, mirror_y=d < 0)
    if a == d == 0 and b and c:
        return Orientation(swap=True, mirror_x=c < 0, mirror_y=b < 0)
    return None


def _read(container: InputContainer, stream: VideoStream) -> VideoIndex:
    shown: list[int] = []
    stored: list[int] = []
    keys: list[tuple[int, int]] = []
    for packet in container.demux(stream):
        if packet.pts is None:
            continue
        if packet.is_keyframe:
            before = packet.pts if packet.dts is None else min(packet.pts, packet.dts)
            keys.append((len(stored), before))
        stored.append(packet.pts)
        if not packet.is_discard:
            shown.append(packet.pts)
    places = np.asarray(keys, np.int64).reshape(-1, 2)
    return VideoIndex(
        ticks=np.sort(np.asarray(shown, np.int64)),
        tick_s=float(stream.time_base or 0),
        promised=stream.frames,
        stored=len(stored),
        decode_order=np.asarray(stored, np.int64),
        key_positions=places[:, 0],
        key_seek=places[:, 1],
        orientation=first_orientation(container, stream),
    )


def first_orientation(container: InputContainer, stream: VideoStream) -> Orientation:
    """Of the first frame that can be decoded; every frame is held against it when it is used."""
    container.seek(0, stream=stream)
    for packet in container.demux(stream):
        with suppress(av.FFmpegError):
            for frame in stream.codec_context.decode(packet):
                return orientation_of(frame) or UPRIGHT
    return UPRIGHT
