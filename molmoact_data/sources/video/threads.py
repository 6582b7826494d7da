"""Several threads decode one video; its frames leave in order, in batches, in bounded memory.

A stretch of the file starts at a keyframe, so nothing is decoded twice; each thread decodes one stretch
after the other with a decoder of its own. FFmpeg works without Python's lock, so two threads are 1.8 times
as fast as one where threads inside one decoder gain a fifth (a frame of 256x256 takes 0.1 ms, about what
handing it over costs). Frames are written where they will be read: straight into the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from threading import Condition
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from molmoact_data.sources.video.file import (
    OpenVideo,
    naming_decoder_errors,
    open_video,
)

AHEAD_BYTES = 32 * 2**20
"""Decoded and not yet taken: 170 frames of 256x256. Long stretches are cheap: a seek costs some frames."""

Batch = NDArray[Any]


def iter_batches(
    video: OpenVideo,
    ticks: NDArray[np.int64],
    key_ticks: NDArray[np.int64],
    *,
    threads: int,
    batch_size: int,
    is_depth: bool,
) -> Generator[Batch, None, None]:
    """Pixels at `ticks` [T], increasing, `batch_size` rows at a time. Close it before the file.

    While the caller uses one batch, some `AHEAD_BYTES` more are decoded. Each batch is freshly
    allocated and belongs to the caller.
    """
    rows = RowBuffer.for_video(video, len(ticks), batch_size, threads=threads, is_depth=is_depth)
    rounds = max(1, round(len(ticks) / rows.window))  # as many stretches for every thread
    starts = stretch_starts(ticks, key_ticks, threads * rounds) if threads > 1 else [0]
    stretches = deque(pairwise([*starts, len(ticks)]))
    with ThreadPoolExecutor(min(threads, len(starts)), "decode") as pool:
        try:
            pool.submit(_decode_stretches, video, video, ticks, stretches, rows)
            for _ in range(min(threads, len(starts)) - 1):
                pool.submit(_decode_stretches, video, None, ticks, stretches, rows)
            for first_row in range(0, len(ticks), batch_size):
                yield rows.take(first_row)
        finally:
            rows.close()


def stretch_starts(
    ticks: NDArray[np.int64], key_ticks: NDArray[np.int64], num_stretches: int
) -> list[int]:
    """First rows of at most this many stretches, as equal as the keyframes at which they begin allow."""
    key_rows = np.unique(np.searchsorted(ticks, key_ticks))
    inner = key_rows[(key_rows > 0) & (key_rows < len(ticks))]
    equal = np.arange(1, num_stretches) * len(ticks) / num_stretches
    if not len(inner):
        return [0]
    nearest = np.abs(inner[:, None] - equal).argmin(axis=0)
    return [0, *np.unique(inner[nearest]).tolist()]


class ReaderLeft(Exception):
    """Nobody wants the frames any more; ends a decoding thread."""


class RowBuffer:
    """Rows that several threads write in any order and that leave as batches in row order.

    A batch that begins `window` or more rows ahead of what was taken is not open for writing yet.
    """

    def __init__(
        self, num_rows: int, batch_size: int, window: int, shape: tuple[int, ...], dtype: type
    ) -> None:
        self.window = window
        self._num_rows, self._batch_size = num_rows, batch_size
        self._shape, self._dtype = shape, dtype
        self._taken = 0
        self._closed = False
        self._batches: dict[int, Batch] = {}
        self._missing: dict[int, int] = {}
        self._errors: dict[int, BaseException] = {}
        self._changed = Condition()

    @classmethod
    def for_video(
        cls, video: OpenVideo, num_rows: int, batch_size: int, *, threads: int, is_depth: bool
    ) -> RowBuffer:
        """RGB [N,H,W,3] uint8, or depth [N,H,W] uint16; every thread can always have one batch open."""
        height, width = video.frame_hw
        window = max(threads * batch_size, AHEAD_BYTES // max(1, 3 * height * width))
        if is_depth:
            return cls(num_rows, batch_size, window, (height, width), np.uint16)
        return cls(num_rows, batch_size, window, (height, width, 3), np.uint8)

    def parts(self, row: int, end: int) -> Iterator[Batch]:
        """In a decoding thread: the places of these rows, cut where a batch ends, to be filled in turn.

        Waits until a place is open. Raises `ReaderLeft` after `close`.
        """
        while row < end:
            first_row = row - row % self._batch_size
            part = self._open(first_row)[row - first_row : end - first_row]
            yield part
            row += len(part)
            self._filled(first_row, len(part))

    def _open(self, first_row: int) -> Batch:
        with self._changed:
            while first_row >= self._taken + self.window and not self._closed:
                self._changed.wait()
            if self._closed:
                raise ReaderLeft
            if first_row not in self._batches:
                size = min(self._batch_size, self._num_rows - first_row)
                self._batches[first_row] = np.empty((size, *self._shape), self._dtype)
                self._missing[first_row] = size
            return self._batches[first_row]

    def _filled(self, first_row: int, num_rows: int) -> None:
        with self._changed:
            self._missing[first_row] -= num_rows
            if not self._missing[first_row]:
                self._changed.notify_all()

    def fail(self, row: int, error: BaseException) -> None:
        """In a decoding thread: this row, and those after it in its stretch, will not come."""
        with self._changed:
            self._errors[row - row % self._batch_size] = error
            self._changed.notify_all()

    def take(self, first_row: int) -> Batch:
        """In the caller's thread: the next batch, or the error that stopped one of its rows."""
        with self._changed:
            while self._missing.get(first_row) != 0:
                if first_row in self._errors:
                    raise self._errors[first_row]
                self._changed.wait()
            batch = self._batches.pop(first_row)
            self._taken = first_row + len(batch)
            self._changed.notify_all()
        return batch

    def close(self) -> None:
        """End every writer; nothing more will be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _decode_stretches(
    shared: OpenVideo,
    mine: OpenVideo | None,
    ticks: NDArray[np.int64],
    stretches: deque[tuple[int, int]],
    rows: RowBuffer,
) -> None:
    """In a thread: one stretch after the other, until none is left or one fails."""
    with ExitStack() as stack:
        while (stretch := _next(stretches)) is not None:
            row, end = stretch
            try:
                with naming_decoder_errors(shared.path):
                    mine = mine or stack.enter_context(open_video(shared.path, shared.index))
                    frames = mine.frames_at(ticks[row:end], row)
                    for part in rows.parts(row, end):
                        for out in part:
                            _write(mine, next(frames), out)
                            row += 1
            except ReaderLeft:
                return
            except BaseException as error:  # noqa: BLE001 - raised again where the frames are used
                rows.fail(row, error)
                return


def _next(stretches: deque[tuple[int, int]]) -> tuple[int, int] | None:
    """Checking and taking in one step: several threads ask."""
    try:
        return stretches.popleft()
    except IndexError:
        return None


def _write(video: OpenVideo, frame: VideoFrame, out: Batch) -> None:
    video.check(frame, out.shape[:2])
    if out.ndim == 3:
        video.write_rgb(frame, out)
    else:
        video.write_luma(frame, out)
