"""Video decoded once, in order, in bounded memory: the frames of one episode out of one file.

The presentation times of a file are read first, without decoding (`VideoIndex`), so every row is matched
to its frame, and a video that is too short, too long or out of step is rejected, before the first pixel
is computed. What random access and
other readers take is measured in docs/sources.md.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, RejectReason
from molmoact_data.files.inputs import is_git_lfs_pointer
from molmoact_data.sources.video.file import OpenVideo, open_video, read_picture_hw
from molmoact_data.sources.video.spans import SharedFile
from molmoact_data.sources.video.threads import iter_batches

logger = logging.getLogger(__name__)

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
    episode: int = 0
    shared: SharedFile | None = None
    """The table's stretches of all episodes in the file; None where the whole file is the episode."""


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
        batches = iter_batches(
            video,
            _choose_presentation_times(video, clip, wanted_s, fps),
            video.index.key_ticks,
            threads=threads or default_threads(),
            batch_size=batch_size,
            is_depth=is_depth,
        )
        # A caller that leaves early: the decoding threads end before their file is closed.
        with closing(batches):
            yield from batches


def picture_hw(path: Path) -> tuple[int, int]:
    """Height and width of what a player shows, from the file's beginning. Raises `EpisodeRejected`."""
    refuse_unreadable(path)
    return read_picture_hw(path)


def count_frames(clip: VideoClip, fps: float) -> int:
    """Pictures that a player would show of the clip, without decoding. Raises `EpisodeRejected`."""
    refuse_unreadable(clip.path)
    with open_video(clip.path) as video:
        first, last = _own_frames(video.index.presentation_s, clip, fps)
    return last - first


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
) -> NDArray[np.int64]:
    """Presentation times in stream ticks of the frame for each row [T]."""
    tolerance_s = (TOLERANCE_FRAMES + _ROUNDING_FRAMES) / fps
    _refuse_contradicted(video, clip, fps)
    presentation_s = video.index.presentation_s
    first, last = _own_frames(presentation_s, clip, fps)
    try:
        nearest = match_frames(presentation_s[first:last], wanted_s, tolerance_s)
    except EpisodeRejected as rejected:
        raise _explained(rejected, video, clip) from rejected
    if clip.end_s is None and presentation_s[-1] > wanted_s[-1] + tolerance_s:
        raise EpisodeRejected(
            RejectReason.VIDEO_LONGER_THAN_ROWS,
            f"{clip.path.name} goes on to {presentation_s[-1]:.4f} s, "
            f"the last of {len(wanted_s)} rows is at {wanted_s[-1]:.4f} s",
        )
    return video.index.ticks[first:last][one_frame_each(nearest, last - first, clip.path.name)]


def one_frame_each(nearest: NDArray[np.int64], num_frames: int, name: str) -> NDArray[np.int64]:
    """[T] frames of an episode that has `num_frames`, every one used once at most.

    Rows whose clock drifts against a video of constant rate take some frames twice and skip others; where
    there are as many frames as rows, the recorder wrote one per row, and the row's number counts.
    Otherwise nobody can tell: raises `EpisodeRejected`.
    """
    twice = len(nearest) - len(np.unique(nearest))
    if not twice:
        return nearest
    if num_frames == len(nearest):
        logger.warning(
            "%s: the rows' clock drifts against the video (%d frames would be used twice); there are as "
            "many frames as rows, so row i takes frame i",
            name,
            twice,
        )
        return np.arange(num_frames)
    raise EpisodeRejected(
        RejectReason.FRAME_TIMESTAMP_MISMATCH,
        f"{name}: {len(nearest)} rows, {num_frames} frames, of which {twice} would be used twice",
    )


def _own_frames(
    presentation_s: NDArray[np.float64], clip: VideoClip, fps: float
) -> tuple[int, int]:
    """First and last + 1 frame that may belong to the episode: its neighbours' never do."""
    if clip.end_s is None:
        return 0, len(presentation_s)
    half_s = TOLERANCE_FRAMES / fps
    first, last = np.searchsorted(presentation_s, [clip.start_s - half_s, clip.end_s - half_s])
    return int(first), int(last)


def _refuse_contradicted(video: OpenVideo, clip: VideoClip, fps: float) -> None:
    if clip.shared is None:
        return
    problem = clip.shared.problem(clip.episode, video.index, fps)
    if problem is not None:
        raise EpisodeRejected(RejectReason.VIDEO_SPAN_CONTRADICTED, f"{clip.path.name}: {problem}")


def _explained(rejected: EpisodeRejected, video: OpenVideo, clip: VideoClip) -> EpisodeRejected:
    """A file whose header promises more frames than it holds was cut off, it is not short."""
    short = rejected.reason is RejectReason.VIDEO_SHORTER_THAN_ROWS
    index = video.index
    if short and index.is_cut_off:
        return EpisodeRejected(
            RejectReason.VIDEO_UNDECODABLE,
            f"{clip.path.name} is truncated: {index.stored} of {index.promised} frames are left",
        )
    return EpisodeRejected(rejected.reason, f"{clip.path.name}: {rejected.detail}")
