"""Frames at known presentation times, in order; several threads may each decode one stretch of a file.

A stretch starts at a keyframe, so nothing is decoded twice. Threads inside one decoder gain nothing at
256x256 (a frame takes 0.1 ms, about what handing it over costs); two decoders on neighbouring
stretches do. Every thread is at most `2 * batch_size` frames ahead, which bounds memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from threading import Event

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, RejectReason

_HANDED_OVER = 8
"""Frames per queue item: fewer switches between threads."""
_NO_LIMIT = 2**31

Pixels = NDArray[np.generic]


@dataclass(frozen=True)
class OpenVideo:
    """A file, its first video stream, and the converter that all its frames share."""

    path: Path
    container: InputContainer
    stream: VideoStream
    to_rgb: VideoReformatter = field(default_factory=VideoReformatter)

    def seek(self, tick: int) -> None:
        """Go to the keyframe at or before this presentation time."""
        self.container.seek(tick, stream=self.stream)

    def frames_at(
        self, ticks: NDArray[np.int64], first_row: int, *, is_depth: bool
    ) -> Iterator[Pixels]:
        """Pixels at these times [T]; frames in between are decoded, as they must, and dropped."""
        self.seek(int(ticks[0]))
        row = 0
        for frame in self.container.decode(self.stream):
            while row < len(ticks) and frame.pts == ticks[row]:
                if frame.is_corrupt:
                    raise self._undecodable(f"frame {first_row + row} is damaged")
                yield self._pixels(frame, is_depth=is_depth)
                row += 1
            if row == len(ticks):
                return
        raise self._undecodable(f"frame {first_row + row} could not be decoded")

    def _pixels(self, frame: VideoFrame, *, is_depth: bool) -> Pixels:
        if is_depth:
            return luma_u16(frame)
        return self.to_rgb.reformat(frame, format="rgb24").to_ndarray()

    def _undecodable(self, what: str) -> EpisodeRejected:
        return EpisodeRejected(RejectReason.VIDEO_UNDECODABLE, f"{self.path.name}: {what}")


@contextmanager
def open_video(path: Path) -> Iterator[OpenVideo]:
    """The file and its first video stream; whatever FFmpeg refuses becomes VIDEO_UNDECODABLE."""
    with naming_decoder_errors(path), av.open(str(path), metadata_errors="ignore") as container:
        if not container.streams.video:
            raise EpisodeRejected(RejectReason.VIDEO_UNDECODABLE, f"no video stream in {path.name}")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        yield OpenVideo(path, container, stream)


@contextmanager
def naming_decoder_errors(path: Path) -> Iterator[None]:
    """Whatever FFmpeg raises inside becomes VIDEO_UNDECODABLE."""
    try:
        yield
    except av.FFmpegError as error:
        raise EpisodeRejected(
            RejectReason.VIDEO_UNDECODABLE, f"{path.name}: {error.strerror}"
        ) from error


def iter_pixels(
    video: OpenVideo,
    ticks: NDArray[np.int64],
    key_ticks: NDArray[np.int64],
    *,
    threads: int,
    batch_size: int,
    is_depth: bool,
) -> Generator[Pixels, None, None]:
    """Pixels at `ticks` [T], increasing, one frame after the other. Close it before the file."""
    starts = stretch_starts(ticks, key_ticks, batch_size)
    if threads == 1 or len(starts) == 1:
        yield from video.frames_at(ticks, 0, is_depth=is_depth)
        return
    with ExitStack() as stack:
        more = [stack.enter_context(open_video(video.path)) for _ in range(threads - 1)]
        stretches = [
            _Stretch(int(start), part, batch_size)
            for start, part in zip(starts, np.split(ticks, starts[1:]), strict=True)
        ]
        yield from _in_order(stretches, [video, *more], is_depth=is_depth)


def stretch_starts(
    ticks: NDArray[np.int64], key_ticks: NDArray[np.int64], min_rows: int
) -> list[int]:
    """First rows of the stretches: each begins at a keyframe and has at least `min_rows` rows."""
    starts = [0]
    for row in np.searchsorted(ticks, key_ticks).tolist():
        if row - starts[-1] >= min_rows and len(ticks) - row >= min_rows:
            starts.append(row)
    return starts


class _Stretch:
    """Consecutive rows that one thread decodes, and the queue through which they leave."""

    def __init__(self, first_row: int, ticks: NDArray[np.int64], batch_size: int) -> None:
        self.first_row = first_row
        self.ticks = ticks
        items = max(1, 2 * batch_size // _HANDED_OVER)
        self.queue: Queue[list[Pixels] | BaseException] = Queue(maxsize=items)

    def decode(self, free: Queue[OpenVideo], stop: Event, *, is_depth: bool) -> None:
        """In a thread: fill the queue, and end it with an empty list or the error."""
        video = free.get()
        part: list[Pixels] = []
        try:
            with naming_decoder_errors(video.path):
                for pixels in video.frames_at(self.ticks, self.first_row, is_depth=is_depth):
                    part.append(pixels)
                    if len(part) == _HANDED_OVER:
                        self.queue.put(part)
                        part = []
                    if stop.is_set():
                        return
            if part:
                self.queue.put(part)
            self.queue.put([])
        except BaseException as error:  # noqa: BLE001 - raised again where the frames are used
            self.queue.put(error)
        finally:
            free.put(video)

    def take(self) -> Iterator[Pixels]:
        """In the caller's thread: the frames, or the error that stopped them."""
        while True:
            part = self.queue.get()
            if isinstance(part, BaseException):
                raise part
            if not part:
                return
            part.reverse()
            while part:  # no list keeps a frame that was used
                yield part.pop()


def _in_order(
    stretches: Sequence[_Stretch], videos: Sequence[OpenVideo], *, is_depth: bool
) -> Iterator[Pixels]:
    """Decode as many stretches at a time as there are open files; hand out frames in row order."""
    free: Queue[OpenVideo] = Queue()
    for video in videos:
        free.put(video)
    stop = Event()
    waiting, running = deque(stretches), deque[_Stretch]()
    with ThreadPoolExecutor(len(videos), "decode") as pool:
        try:
            while waiting or running:
                while waiting and len(running) < len(videos):
                    running.append(waiting.popleft())
                    pool.submit(running[-1].decode, free, stop, is_depth=is_depth)
                yield from running[0].take()
                running.popleft()
        finally:
            stop.set()
            for stretch in running:  # a thread that waits for room must see that it is over
                stretch.queue.maxsize = _NO_LIMIT
                with stretch.queue.mutex:
                    stretch.queue.not_full.notify_all()


def luma_u16(frame: VideoFrame) -> NDArray[np.uint16]:
    """The first plane as it was stored: depth units, not brightness, so no range conversion."""
    plane = frame.planes[0]
    sample: str = "<u2" if frame.format.components[0].bits > 8 else "u1"
    rows = np.frombuffer(bytes(plane), np.dtype(sample)).reshape(plane.height, -1)
    return rows[:, : plane.width].astype(np.uint16)
