"""How far a run is: workers count frames into small files, the launcher adds them up and shows them.

Works whichever process or runner does the work, as long as the state folder is on a shared disk; on an
object store progress is known per shard only.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS_BETWEEN_LINES = 10.0


class FrameCounter:
    """One process's count of labelled frames, kept in a file of its own."""

    def __init__(self, folder: Path | None) -> None:
        self._frames = 0
        self._path: Path | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / f"{os.getpid()}-{threading.get_ident()}"

    def add(self, frames: int) -> None:
        """Frames just labelled."""
        self._frames += frames
        if self._path is not None:
            self._path.write_text(str(self._frames))


def frames_counted(folder: Path) -> int:
    """Sum over the files of all workers; one being rewritten counts at the next look."""
    counts = [path.read_text() for path in sorted(folder.glob("*"))] if folder.is_dir() else []
    return sum(int(text) for text in counts if text)


@contextmanager
def show_progress(total_frames: int, frames_done: Callable[[], int]) -> Iterator[None]:
    """While the body runs: a bar with frames/s and time left on a terminal, plain lines otherwise."""
    stop = threading.Event()
    watch = _watch_bar if sys.stderr.isatty() else _watch_lines
    thread = threading.Thread(target=watch, args=(total_frames, frames_done, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _watch_bar(total: int, frames_done: Callable[[], int], stop: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} frames"),
        BarColumn(),
        TextColumn("{task.fields[rate]:.1f} frames/s"),
        TimeRemainingColumn(),
    )
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("frames", total=total, rate=0.0)
        finished = False
        while not finished:
            finished = stop.wait(0.3)
            done = min(total, frames_done())  # what a lost worker had labelled is labelled again
            bar.update(task, completed=done, rate=done / (time.monotonic() - start))


def _watch_lines(total: int, frames_done: Callable[[], int], stop: threading.Event) -> None:
    start = time.monotonic()
    while not stop.wait(SECONDS_BETWEEN_LINES):
        done, elapsed = min(total, frames_done()), time.monotonic() - start
        left = f", {elapsed / done * (total - done):.0f} s left" if done else ""
        sys.stderr.write(f"{done}/{total} frames, {done / elapsed:.1f} frames/s{left}\n")
