"""Video decoded once, in order, in bounded memory: the frames of one episode out of one file.

The presentation times of a file are read first, without decoding (demuxing costs about 3 us per
packet), so every row is matched to its frame, and a video that is too short, too long or out of
step is rejected, before the first pixel is computed. Random access (`LeRobotDataset[i]`: open, seek,
decode, close per frame) lost by a factor of 30 and more; see docs/sources.md.

Colour conversion is PyAV's default (libswscale, bilinear), the one LeRobot's `pyav` backend uses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from molmoact_data.episodes.storage import is_git_lfs_pointer
from molmoact_data.errors import EpisodeRejected, RejectReason

TOLERANCE_FRAMES = 0.5
"""A row takes the frame nearest to its time if that is at most this many frame periods away.

Half a period is the largest distance at which the nearest frame is unambiguous. LeRobot takes the
nearest frame too, and raises beyond `tolerance_s` = 1e-4: where it answers, we give the same frame;
where its stricter limit stops at clock jitter, we go on.
"""
_ROUNDING_FRAMES = 1e-3
"""Slack for float32 row times: at 1,000 s one unit in the last place is 6e-5 s."""

_LARGEST_POINTER_BYTES = 1024  # by the Git LFS specification


@dataclass(frozen=True)
class VideoClip:
    """The part of a video file that belongs to one episode."""

    path: Path
    start_s: float = 0.0
    """Presentation time of the episode's first row (`from_timestamp`); 0 where the file is the episode."""
    end_s: float | None = None
    """`to_timestamp`; None where the whole file is the episode."""


def iter_video(
    clip: VideoClip,
    timestamp_s: NDArray[np.floating],
    *,
    fps: float,
    batch_size: int,
    is_depth: bool = False,
    threads: int | None = None,
) -> Iterator[NDArray[np.generic]]:
    """Frames at `clip.start_s + timestamp_s` ([T], increasing), `batch_size` at a time.

    Yields uint8 [N,H,W,3] RGB, or uint16 [N,H,W] raw luma for recorded depth; T frames in all.
    `threads` is FFmpeg's decoder thread count; None chooses by codec. Raises `EpisodeRejected`.
    """
    refuse_unreadable(clip.path)
    wanted_s = clip.start_s + timestamp_s.astype(np.float64)
    _check_declared_span(clip, len(wanted_s), fps)
    with _open_video(clip.path, threads) as (container, stream):
        chosen = _choose_presentation_times(container, stream, clip, wanted_s, fps)
        yield from _batches(container, stream, clip.path, chosen, batch_size, is_depth=is_depth)


def match_frames(
    presentation_s: NDArray[np.float64], wanted_s: NDArray[np.float64], tolerance_s: float
) -> NDArray[np.int64]:
    """Index of the nearest presentation time (sorted, [P]) for each wanted time ([T]).

    The earlier frame wins a tie, as in LeRobot. Raises `EpisodeRejected` where the nearest is
    farther than `tolerance_s`: past the last frame the video is too short, elsewhere it has a gap.
    """
    if not len(presentation_s):
        raise EpisodeRejected(RejectReason.VIDEO_SHORTER_THAN_ROWS, "no frame at the rows' times")
    right = np.clip(np.searchsorted(presentation_s, wanted_s), 0, len(presentation_s) - 1)
    left = np.maximum(right - 1, 0)
    left_is_nearer = np.abs(presentation_s[left] - wanted_s) <= np.abs(
        presentation_s[right] - wanted_s
    )
    nearest = np.where(left_is_nearer, left, right)
    distance = np.abs(presentation_s[nearest] - wanted_s)
    too_far = np.flatnonzero(distance > tolerance_s)
    if len(too_far):
        row = int(too_far[0])
        detail = f"row {row} at {wanted_s[row]:.4f} s, nearest frame {distance[row]:.4f} s away"
        past_end = wanted_s[row] > presentation_s[-1]
        raise EpisodeRejected(
            RejectReason.VIDEO_SHORTER_THAN_ROWS
            if past_end
            else RejectReason.FRAME_TIMESTAMP_MISMATCH,
            f"{detail} (limit {tolerance_s:.4f} s)",
        )
    return nearest


def refuse_unreadable(path: Path) -> None:
    """Reject what is not a media file at all, with the reason a person can act on."""
    if not path.is_file():
        raise EpisodeRejected(RejectReason.VIDEO_MISSING, f"no such file: {path}")
    size = path.stat().st_size
    if size == 0:
        raise EpisodeRejected(RejectReason.VIDEO_EMPTY, f"0 bytes: {path}")
    if size < _LARGEST_POINTER_BYTES and is_git_lfs_pointer(path):
        raise EpisodeRejected(
            RejectReason.VIDEO_GIT_LFS_POINTER,
            f"{path} is a Git LFS pointer, not a video; run `git lfs pull` in the dataset",
        )


@contextmanager
def _open_video(path: Path, threads: int | None) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its first video stream; whatever FFmpeg refuses becomes VIDEO_UNDECODABLE."""
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            if not container.streams.video:
                raise EpisodeRejected(
                    RejectReason.VIDEO_UNDECODABLE, f"no video stream in {path.name}"
                )
            stream = container.streams.video[0]
            count = threads or _default_threads(stream)
            stream.thread_type = "NONE" if count == 1 else "AUTO"
            stream.codec_context.thread_count = count
            yield container, stream
    except av.FFmpegError as error:
        raise EpisodeRejected(
            RejectReason.VIDEO_UNDECODABLE, f"{path.name}: {error.strerror}"
        ) from error


def _default_threads(stream: VideoStream) -> int:
    """Two threads where decoding is the work (AV1: 1.1 ms per 640x480 frame), one where it is not.

    More would only compete with other cameras and workers; H.264 at 256x256 gains nothing from a
    second one. docs/sources.md has the numbers.
    """
    heavy = stream.codec_context.name in ("libdav1d", "av1", "hevc", "vp9")
    return min(2, os.cpu_count() or 1) if heavy else 1


def _check_declared_span(clip: VideoClip, num_rows: int, fps: float) -> None:
    """A file shared by episodes has no end of its own: beyond `end_s` lies the next episode."""
    if clip.end_s is None:
        return
    declared = (clip.end_s - clip.start_s) * fps
    if abs(declared - num_rows) < 1 - _ROUNDING_FRAMES:
        return
    reason = (
        RejectReason.VIDEO_SHORTER_THAN_ROWS
        if declared < num_rows
        else RejectReason.VIDEO_LONGER_THAN_ROWS
    )
    raise EpisodeRejected(
        reason,
        f"{clip.path.name} gives the episode {clip.start_s:.4f}..{clip.end_s:.4f} s "
        f"= {declared:.1f} frames at {fps:g} fps, but it has {num_rows} rows",
    )


def _choose_presentation_times(
    container: InputContainer,
    stream: VideoStream,
    clip: VideoClip,
    wanted_s: NDArray[np.float64],
    fps: float,
) -> NDArray[np.int64]:
    """The presentation time, in stream ticks, of the frame for each row [T]."""
    tolerance_s = (TOLERANCE_FRAMES + _ROUNDING_FRAMES) / fps
    tick_s = float(stream.time_base or 0)
    ticks = _presentation_ticks(container, stream, wanted_s, tolerance_s)
    try:
        nearest = match_frames(ticks.astype(np.float64) * tick_s, wanted_s, tolerance_s)
    except EpisodeRejected as rejected:
        promised = rejected.reason is RejectReason.VIDEO_SHORTER_THAN_ROWS and (
            stream.frames > len(ticks) and clip.end_s is None
        )
        if promised:  # the header knows more frames than the file holds: cut off, not short
            raise EpisodeRejected(
                RejectReason.VIDEO_UNDECODABLE,
                f"{clip.path.name} is truncated: {len(ticks)} of {stream.frames} frames are left",
            ) from rejected
        raise EpisodeRejected(rejected.reason, f"{clip.path.name}: {rejected.detail}") from rejected
    if clip.end_s is None and ticks[-1] * tick_s > wanted_s[-1] + tolerance_s:
        raise EpisodeRejected(
            RejectReason.VIDEO_LONGER_THAN_ROWS,
            f"{clip.path.name} goes on to {ticks[-1] * tick_s:.4f} s, "
            f"the last of {len(wanted_s)} rows is at {wanted_s[-1]:.4f} s",
        )
    return ticks[nearest]


def _presentation_ticks(
    container: InputContainer,
    stream: VideoStream,
    wanted_s: NDArray[np.float64],
    tolerance_s: float,
) -> NDArray[np.int64]:
    """Sorted presentation times from the keyframe before the first row to just past the last."""
    tick_s = float(stream.time_base or 0)
    past_end = (wanted_s[-1] + 2 * tolerance_s) / tick_s
    _seek(container, stream, wanted_s[0])
    ticks = []
    for packet in container.demux(stream):
        if packet.pts is None or packet.is_discard:
            continue
        ticks.append(packet.pts)
        # A frame is never shown before it is decoded, so all later packets are past the end too.
        if packet.dts is not None and packet.dts > past_end:
            break
    _seek(container, stream, wanted_s[0])
    return np.sort(np.asarray(ticks, dtype=np.int64))


def _seek(container: InputContainer, stream: VideoStream, time_s: float) -> None:
    """Go to the keyframe at or before `time_s`."""
    tick_s = float(stream.time_base or 0)
    # Half a tick up: from_timestamp is a rounded decimal and must not miss its own keyframe.
    container.seek(int(time_s / tick_s + 0.5), stream=stream)


def _batches(
    container: InputContainer,
    stream: VideoStream,
    path: Path,
    chosen_ticks: NDArray[np.int64],
    batch_size: int,
    *,
    is_depth: bool,
) -> Iterator[NDArray[np.generic]]:
    """Decode from here on and stack the chosen frames; each batch is freshly allocated."""
    frames = _frames_at(container, stream, path, chosen_ticks)
    to_rgb = VideoReformatter()  # one for all frames: a frame's own would be set up each time
    batch: NDArray[np.generic] | None = None
    for row, frame in enumerate(frames):
        pixels = (
            _luma_u16(frame) if is_depth else to_rgb.reformat(frame, format="rgb24").to_ndarray()
        )
        position = row % batch_size
        if batch is None:
            size = min(batch_size, len(chosen_ticks) - row)
            shape = (size, *pixels.shape)
            batch = np.empty(shape, dtype=pixels.dtype)
        if pixels.shape != batch.shape[1:]:
            raise EpisodeRejected(
                RejectReason.VIDEO_SIZE_CHANGED,
                f"{path.name}: {batch.shape[1:]} until frame {row - 1}, {pixels.shape} at frame {row}",
            )
        batch[position] = pixels
        if position == len(batch) - 1:
            yield batch
            batch = None


def _frames_at(
    container: InputContainer, stream: VideoStream, path: Path, chosen_ticks: NDArray[np.int64]
) -> Iterator[VideoFrame]:
    """Decoded frames at the chosen times; frames in between are decoded, as they must, and dropped."""
    row = 0
    for frame in container.decode(stream):
        while row < len(chosen_ticks) and frame.pts == chosen_ticks[row]:
            if frame.is_corrupt:
                raise EpisodeRejected(
                    RejectReason.VIDEO_UNDECODABLE, f"{path.name}: frame {row} is damaged"
                )
            yield frame
            row += 1
        if row == len(chosen_ticks):
            return
    raise EpisodeRejected(
        RejectReason.VIDEO_UNDECODABLE,
        f"{path.name}: {row} of {len(chosen_ticks)} frames could be decoded",
    )


def _luma_u16(frame: VideoFrame) -> NDArray[np.uint16]:
    """The first plane as it was stored: depth units, not brightness, so no range conversion."""
    plane = frame.planes[0]
    sample: str = "<u2" if frame.format.components[0].bits > 8 else "u1"
    rows = np.frombuffer(bytes(plane), np.dtype(sample)).reshape(plane.height, -1)
    return rows[:, : plane.width].astype(np.uint16)
