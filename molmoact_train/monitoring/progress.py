"""How far a training run is, for the person in front of it: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

LOG_FILE = "train.log"
_LOGGED = ("molmoact_data", "molmoact_train")


class Progress:
    """Counts steps; `bar` is None where nobody watches."""

    def __init__(self, step: int, duration: int, bar: Any = None) -> None:
        self._first, self._duration, self._bar = step, duration, bar
        self._started_s = time.monotonic()
        self._task = None
        if bar is not None:
            self._task = bar.add_task("train", total=duration, completed=step, words="starting")

    def advance(self, step: int, done: Mapping[str, float]) -> None:
        """A step is done, with its numbers."""
        if self._bar is None:
            return
        words = f"loss {done['train/loss']:.3f}, {self._pace(step, done)}"
        self._bar.update(self._task, completed=step, words=words)

    def line(self, step: int) -> str:
        """Elapsed and left, for a line of the log."""
        elapsed_s = time.monotonic() - self._started_s
        left_s = elapsed_s / max(1, step - self._first) * (self._duration - step)
        return f"{_clock(elapsed_s)} elapsed, {_clock(left_s)} left"

    def _pace(self, step: int, done: Mapping[str, float]) -> str:
        per_step_s = (time.monotonic() - self._started_s) / max(1, step - self._first)
        return f"{done['batch/samples'] / per_step_s:.1f} samples/s"


@contextmanager
def show_progress(step: int, duration: int, *, is_main: bool) -> Iterator[Progress]:
    """While the body trains: a bar with loss, samples/s and the time left where stderr is a terminal."""
    if not (is_main and sys.stderr.isatty()):
        yield Progress(step, duration)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress as Bar,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Bar(*columns, console=Console(stderr=True)) as bar, _lines_above():
        yield Progress(step, duration, bar)


@contextmanager
def _lines_above() -> Iterator[None]:
    """Log lines go through the stream that the bar puts in place of stderr, so that they scroll above it."""
    handlers = [h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler]
    before = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)


@contextmanager
def log_file(run: Path, *, is_main: bool) -> Iterator[None]:
    """What is logged also goes to `train.log` in the run's folder, with the time; a resumed run appends."""
    if not is_main:
        yield
        return
    handler = logging.FileHandler(run / LOG_FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in _LOGGED]
    for one in loggers:
        one.addHandler(handler)
    try:
        yield
    finally:
        for one in loggers:
            one.removeHandler(handler)
        handler.close()


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
