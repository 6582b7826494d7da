"""One open video file: frames at known presentation times, in order, as pixels.

Colour conversion is PyAV's default (libswscale, bilinear), the one LeRobot's `pyav` backend uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, RejectReason
from molmoact_data.sources.video.index import (
    UPRIGHT,
    VideoIndex,
    first_orientation,
    index_of,
    orientation_of,
)


@dataclass(frozen=True)
class OpenVideo:
    """A file, its first video stream, and the converter that all its frames share."""

    path: Path
    container: InputContainer
    stream: VideoStream
    index: VideoIndex
    to_rgb: VideoReformatter = field(default_factory=VideoReformatter)

    @property
    def frame_hw(self) -> tuple[int, int]:
        """Height and width in pixels as a player shows it, by the stream's header."""
        return self.index.orientation.size_hw(self.stream.height, self.stream.width)

    def frames_at(self, ticks: NDArray[np.int64], first_row: int) -> Iterator[VideoFrame]:
        """Frames at these times [T]; frames in between are decoded, as they must, and dropped."""
        wanted = ticks.tolist()
        row, num_rows = 0, len(wanted)
        for frame in self._decoded(wanted):
            while frame.pts == wanted[row]:
                if frame.is_corrupt:
                    raise self.undecodable(f"frame {first_row + row} is damaged")
                yield frame
                row += 1
                if row == num_rows:
                    return
        raise self.undecodable(f"frame {first_row + row} could not be decoded")

    def _decoded(self, wanted: list[int]) -> Iterator[VideoFrame]:
        """From the keyframe that the first wanted frame needs; nothing is decoded beyond the last."""
        not_read = set(wanted)
        key_tick, before = self.index.start_for(wanted[0])
        self.container.seek(key_tick, stream=self.stream)  # arrives there, but for some containers
        packets = self.container.demux(self.stream)
        first = next(packets, None)
        if first is None or self.index.is_behind(first.pts, key_tick):
            self.container.seek(before, stream=self.stream)
            packets, first = self.container.demux(self.stream), None
        for packet in chain([] if first is None else [first], packets):
            not_read.discard(packet.pts)
            yield from self.stream.codec_context.decode(packet)
            if not not_read:  # a frame never refers to one that is stored after it
                yield from self.stream.codec_context.decode(None)
                return

    def write_rgb(self, frame: VideoFrame, out_HWC: NDArray[np.uint8]) -> None:
        """Convert to RGB, into `out_HWC`."""
        plane = self.to_rgb.reformat(frame, format="rgb24").planes[0]
        rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(plane.height, plane.line_size)
        pixels = rows[:, : 3 * plane.width]
        if self.index.orientation == UPRIGHT:
            np.copyto(out_HWC.reshape(plane.height, -1), pixels)
        else:
            turned = self.index.orientation.turned(pixels.reshape(plane.height, plane.width, 3))
            np.copyto(out_HWC, turned)

    def write_luma(self, frame: VideoFrame, out_HW: NDArray[np.uint16]) -> None:
        """The first plane as it was stored: depth units, not brightness, so no range conversion."""
        plane = frame.planes[0]
        sample: str = "<u2" if frame.format.components[0].bits > 8 else "u1"
        rows = np.frombuffer(cast(Any, plane), np.dtype(sample)).reshape(plane.height, -1)
        np.copyto(out_HW, self.index.orientation.turned(rows[:, : plane.width]))

    def check(self, frame: VideoFrame, shape_HW: tuple[int, ...]) -> None:
        """Every frame is as large as the first, and turned as it is. Raises `EpisodeRejected`."""
        upright = self.index.orientation == UPRIGHT
        if upright and not frame.rotation and (frame.height, frame.width) == shape_HW:
            return  # without a look at the side data of every frame
        found_hw = (frame.height, frame.width)
        if found_hw[:: -1 if self.index.orientation.swap else 1] != shape_HW:
            expected, found = "x".join(map(str, shape_HW)), "x".join(map(str, found_hw))
            raise EpisodeRejected(
                RejectReason.VIDEO_SIZE_CHANGED,
                f"{self.path.name} begins with frames of {expected} and has one of {found}",
            )
        if orientation_of(frame) != self.index.orientation:
            raise self.undecodable("its frames are not all turned alike by whole quarter turns")

    def undecodable(self, what: str) -> EpisodeRejected:
        """The reject that names this file."""
        return EpisodeRejected(RejectReason.VIDEO_UNDECODABLE, f"{self.path.name}: {what}")


@contextmanager
def open_video(path: Path, index: VideoIndex | None = None) -> Iterator[OpenVideo]:
    """The file and its one video stream; whatever FFmpeg refuses becomes VIDEO_UNDECODABLE.

    `index` is the file's, where it is known.
    """
    with naming_decoder_errors(path), av.open(str(path), metadata_errors="ignore") as container:
        stream = _camera_stream(path, container)
        yield OpenVideo(path, container, stream, index or index_of(path, container, stream))


def read_picture_hw(path: Path) -> tuple[int, int]:
    """Height and width as a player shows them, without looking at more than the first frame."""
    with naming_decoder_errors(path), av.open(str(path), metadata_errors="ignore") as container:
        stream = _camera_stream(path, container)
        orientation = first_orientation(container, stream)
        height, width = stream.height, stream.width
    return orientation.size_hw(height, width)


def _camera_stream(path: Path, container: InputContainer) -> VideoStream:
    """The one stream that is a film, decoded by one thread; a cover picture is none. Raises `EpisodeRejected`."""
    films = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not films:
        raise EpisodeRejected(RejectReason.VIDEO_UNDECODABLE, f"no video stream in {path.name}")
    if len(films) > 1:
        raise EpisodeRejected(
            RejectReason.VIDEO_STREAMS_AMBIGUOUS,
            f"{path.name} has {len(films)} video streams, and nothing tells which is the camera's",
        )
    (stream,) = films
    # Threads inside one decoder gain little on small frames (see `video_threads`), and cost more than the first one.
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


@contextmanager
def naming_decoder_errors(path: Path) -> Iterator[None]:
    """Whatever FFmpeg raises inside becomes VIDEO_UNDECODABLE."""
    try:
        yield
    except av.FFmpegError as error:
        raise EpisodeRejected(
            RejectReason.VIDEO_UNDECODABLE, f"{path.name}: {error.strerror}"
        ) from error
