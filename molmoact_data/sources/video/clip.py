"""Video decoded once, in order, in bounded memory: the frames of one episode out of one file.

The presentation times of a file are read first, without decoding (demuxing costs about 3 us per
packet), so every row is matched to its frame, and a video that is too short, too long or out of
step is rejected, before the first pixel is computed. Random access (`LeRobotDataset[i]`: open, seek,
decode, close per frame) lost by a factor of 30 and more; see docs/sources.md.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, RejectReason
from molmoact_data.files.inputs import is_git_lfs_pointer
from molmoact_data.sources.video.file import OpenVideo, open_video
from molmoact_data.sources.video.threads import iter_batches

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
) -> Generator[NDArray[np.generic], None, None]:
    """Frames at `clip.start_s + timestamp_s` ([T], increasing), `batch_size` at a time.

    Yields uint8 [N,H,W,3] RGB, or uint16 [N,H,W] raw luma for recorded depth; T frames in all.
    `threads` decode at a time; None = two where there are two cores. Raises `EpisodeRejected`.
    """
    refuse_unreadable(clip.path)
    wanted_s = clip.start_s + timestamp_s.astype(np.float64)
    _check_declared_span(clip, len(wanted_s), fps)
    with open_video(clip.path) as video:
        ticks, key_ticks = _choose_presentation_times(video, clip, wanted_s, fps)
        batches = iter_batches(
            video,
            ticks,
            key_ticks,
            threads=threads or default_threads(),
            batch_size=batch_size,
            is_depth=is_depth,
        )
        # A caller that leaves early: the decoding threads end before their file is closed.
        with closing(batches):
            yield from batches


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


def default_threads() -> int:
    """Two stretches at a time where there are two cores; more would compete with other workers."""
    return min(2, os.cpu_count() or 1)


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
    video: OpenVideo, clip: VideoClip, wanted_s: NDArray[np.float64], fps: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Presentation times in stream ticks: of the frame for each row [T], and of the keyframes."""
    tolerance_s = (TOLERANCE_FRAMES + _ROUNDING_FRAMES) / fps
    tick_s = float(video.stream.time_base or 0)
    ticks, key_ticks = _presentation_ticks(video, wanted_s, tolerance_s)
    try:
        nearest = match_frames(ticks.astype(np.float64) * tick_s, wanted_s, tolerance_s)
    except EpisodeRejected as rejected:
        from_the_start = clip.end_s is None and wanted_s[0] <= tolerance_s
        promised = video.stream.frames if from_the_start else 0
        raise _explained(rejected, promised, len(ticks), clip) from rejected
    if clip.end_s is None and ticks[-1] * tick_s > wanted_s[-1] + tolerance_s:
        raise EpisodeRejected(
            RejectReason.VIDEO_LONGER_THAN_ROWS,
            f"{clip.path.name} goes on to {ticks[-1] * tick_s:.4f} s, "
            f"the last of {len(wanted_s)} rows is at {wanted_s[-1]:.4f} s",
        )
    return ticks[nearest], key_ticks


def _explained(
    rejected: EpisodeRejected, promised: int, found: int, clip: VideoClip
) -> EpisodeRejected:
    """A file whose header promises more frames than it holds was cut off, it is not short."""
    short = rejected.reason is RejectReason.VIDEO_SHORTER_THAN_ROWS
    if short and promised > found:
        return EpisodeRejected(
            RejectReason.VIDEO_UNDECODABLE,
            f"{clip.path.name} is truncated: {found} of {promised} frames are left",
        )
    return EpisodeRejected(rejected.reason, f"{clip.path.name}: {rejected.detail}")


def _presentation_ticks(
    video: OpenVideo, wanted_s: NDArray[np.float64], tolerance_s: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted times of all frames and of the keyframes, from the keyframe before the first row on."""
    tick_s = float(video.stream.time_base or 0)
    past_end = (wanted_s[-1] + 2 * tolerance_s) / tick_s
    # Half a tick up: from_timestamp is a rounded decimal and must not miss its own keyframe.
    video.seek(int(wanted_s[0] / tick_s + 0.5))
    ticks, key_ticks = [], []
    for packet in video.container.demux(video.stream):
        if packet.pts is None or packet.is_discard:
            continue
        ticks.append(packet.pts)
        if packet.is_keyframe:
            key_ticks.append(packet.pts)
        # A frame is never shown before it is decoded, so all later packets are past the end too.
        if packet.dts is not None and packet.dts > past_end:
            break
    return np.sort(np.asarray(ticks, np.int64)), np.sort(np.asarray(key_ticks, np.int64))
