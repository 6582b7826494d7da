"""Frames decoded in a child process, so that a file that kills the decoder costs one episode.

A damaged file can make a C library call abort() or run into a segmentation fault, which no exception
handler sees. Here the decoder runs in one child per source and process; when the child dies, or says
nothing for `timeout_s`, the episode is rejected with DECODER_CRASHED and the next one gets a new child.

Pixels come over in shared memory (two slots, so the child decodes ahead while the batch before is
used), everything else in a pipe. The child is a plain subprocess, not a `multiprocessing` one: it must
also start below daemonic workers, and must not import the parent's main module again.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, RejectReason
from molmoact_data.sources.base import (
    CameraBatch,
    EpisodeColumns,
    EpisodeRef,
    EpisodeSource,
    SourceInfo,
)

SLOTS = 2
SLOT_BYTES = 32 * 2**20
"""A batch of 32 frames of 640x480 is 28 MiB; what does not fit goes through the pipe."""
DEFAULT_TIMEOUT_S = 120.0
_CHILD = "from molmoact_data.sources.isolation import child_main; child_main()"


@dataclass(frozen=True)
class _InSlot:
    """Where an array is in shared memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


@dataclass
class IsolatedSource:
    """A source whose frames are decoded in a child process; everything else is the inner source."""

    inner: EpisodeSource
    timeout_s: float = DEFAULT_TIMEOUT_S
    _child: _Child | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.info: SourceInfo = self.inner.info
        self.episodes: Sequence[EpisodeRef] = self.inner.episodes

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_child": None}

    def read_columns(self, ref: EpisodeRef, extra: Sequence[str] = ()) -> EpisodeColumns:
        """As the inner source, in this process: no decoder is involved."""
        return self.inner.read_columns(ref, extra)

    def iter_frames(
        self, ref: EpisodeRef, camera_keys: Sequence[str], batch_size: int
    ) -> Iterator[dict[str, CameraBatch]]:
        """As the inner source; DECODER_CRASHED where the child dies or hangs."""
        child = self._child or _Child(self.inner)
        self._child = None  # only a child that finished its episode is used again
        finished = False
        try:
            yield from child.frames(ref, camera_keys, batch_size, self.timeout_s)
            finished = True
        except EpisodeRejected as rejected:
            finished = rejected.reason is not RejectReason.DECODER_CRASHED
            raise
        finally:
            if finished:
                self._child = child
            else:
                child.kill()


class _Child:
    """The parent's end: one subprocess, one duplex pipe, one shared mapping."""

    def __init__(self, source: EpisodeSource) -> None:
        with tempfile.TemporaryFile(dir=_shared_memory_dir()) as file:
            file.truncate(SLOTS * SLOT_BYTES)
            self._memory = mmap.mmap(file.fileno(), SLOTS * SLOT_BYTES)
            down_read, down_write = os.pipe()
            up_read, up_write = os.pipe()
            theirs = (down_read, up_write, file.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, *map(str, theirs)],
                pass_fds=theirs,
                stdin=subprocess.DEVNULL,
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            )
        os.close(down_read)
        os.close(up_write)  # so that the child's death is an end of file here
        self._up = Connection(up_read, writable=False)
        self._down = Connection(down_write, readable=False)
        self._send(source)

    def __del__(self) -> None:
        self.kill()

    def frames(
        self, ref: EpisodeRef, camera_keys: Sequence[str], batch_size: int, timeout_s: float
    ) -> Iterator[dict[str, CameraBatch]]:
        """Batches of one episode, copied out of shared memory."""
        self._send((ref, tuple(camera_keys), batch_size))
        while True:
            slot, message = self._receive(timeout_s)
            if message is None:
                return
            if isinstance(message, EpisodeRejected):
                raise message
            if isinstance(message, str):
                raise RuntimeError(f"the decoder process failed:\n{message}")
            batch = {key: self._take(slot, *parts) for key, parts in message.items()}
            self._send(slot)
            yield batch

    def kill(self) -> None:
        """End the child and give its memory back; harmless when it is dead already."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._up.close()
        self._down.close()
        self._memory.close()

    def _send(self, message: Any) -> None:
        try:
            self._down.send(message)
        except BrokenPipeError as error:
            raise self._crashed() from error

    def _receive(self, timeout_s: float) -> tuple[int, Any]:
        try:
            if self._up.poll(timeout_s):
                return self._up.recv()
        except EOFError as error:
            raise self._crashed() from error
        raise EpisodeRejected(
            RejectReason.DECODER_CRASHED, f"the decoder gave nothing for {timeout_s:g} s"
        )

    def _crashed(self) -> EpisodeRejected:
        code = self._process.wait()
        # Shells and containers report a death by signal as 128 + its number.
        number = -code if code < 0 else code - 128
        known = number in set(signal.Signals)
        how = signal.Signals(number).name if known else f"exit code {code}"
        return EpisodeRejected(RejectReason.DECODER_CRASHED, f"the decoder died with {how}")

    def _take(
        self, slot: int, pixels: _InSlot | NDArray[Any], encoded: tuple[bytes, ...] | None
    ) -> CameraBatch:
        if isinstance(pixels, _InSlot):
            return CameraBatch(_view(self._memory, slot, pixels).copy(), encoded)
        return CameraBatch(pixels, encoded)


def child_main() -> None:
    """The child's loop: read the source, then decode one episode per request until the pipe closes."""
    down_fd, up_fd, memory_fd = (int(number) for number in sys.argv[1:4])
    down, up = Connection(down_fd, writable=False), Connection(up_fd, readable=False)
    memory = mmap.mmap(memory_fd, SLOTS * SLOT_BYTES)
    try:
        source: EpisodeSource = down.recv()
        while True:
            _decode_one(source, down.recv(), memory, down, up)
    except (EOFError, BrokenPipeError):
        return  # the parent is gone or does not want more


def _decode_one(
    source: EpisodeSource,
    request: tuple[EpisodeRef, tuple[str, ...], int],
    memory: mmap.mmap,
    down: Connection,
    up: Connection,
) -> None:
    free = list(range(SLOTS))
    try:
        for batch in source.iter_frames(*request):
            if not free:
                free.append(down.recv())
            slot = free.pop()
            up.send((slot, _put(memory, slot, batch)))
        while len(free) < SLOTS:
            free.append(down.recv())
        up.send((0, None))
    except EpisodeRejected as rejected:
        _drain(down, SLOTS - len(free))
        up.send((0, rejected))
    except (EOFError, BrokenPipeError):
        raise
    except Exception:  # noqa: BLE001 - a bug in the child is told to the parent, with its traceback
        _drain(down, SLOTS - len(free))
        up.send((0, traceback.format_exc()))


def _drain(down: Connection, count: int) -> None:
    """Take back the slots that the parent still holds, so that the next episode starts with all."""
    for _ in range(count):
        down.recv()


def _put(
    memory: mmap.mmap, slot: int, batch: dict[str, CameraBatch]
) -> dict[str, tuple[_InSlot | NDArray[Any], tuple[bytes, ...] | None]]:
    """Pixels into the slot, as far as they fit; the rest stays an array."""
    message: dict[str, tuple[_InSlot | NDArray[Any], tuple[bytes, ...] | None]] = {}
    offset = 0
    for key, camera in batch.items():
        pixels: NDArray[Any] = camera.rgb_NHWC
        if offset + pixels.nbytes > SLOT_BYTES:
            message[key] = (pixels, camera.encoded)
            continue
        place = _InSlot(offset, pixels.shape, pixels.dtype.str)
        _view(memory, slot, place)[...] = pixels
        message[key] = (place, camera.encoded)
        offset += -(-pixels.nbytes // 64) * 64
    return message


def _view(memory: mmap.mmap, slot: int, place: _InSlot) -> NDArray[Any]:
    count = int(np.prod(place.shape))
    start = slot * SLOT_BYTES + place.offset
    return np.frombuffer(memory, place.dtype, count, start).reshape(place.shape)


def _shared_memory_dir() -> str | None:
    """`/dev/shm` where it has room (a container may give it 64 MiB), else the temporary folder."""
    try:
        space = os.statvfs("/dev/shm")
    except OSError:
        return None
    return "/dev/shm" if space.f_bavail * space.f_frsize > 2 * SLOTS * SLOT_BYTES else None
