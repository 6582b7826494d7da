"""How much one broken input may cost: a hang or gigabytes of memory are failures like a traceback."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SECONDS = 60
"""Of this process's own time, so that a busy machine changes nothing; a thousand times what a sound input takes."""
BYTES = 3 * 2**30


class TooMuch(BaseException):
    """An input that is not done after `SECONDS`; no `except Exception` swallows it."""


@contextmanager
def bounded() -> Iterator[None]:
    """While inside, `SECONDS` of work raise `TooMuch`, and `BYTES` more of memory a MemoryError."""

    def stop(_: int, __: FrameType | None) -> None:
        raise TooMuch(f"not done after {SECONDS} s of work")

    before = signal.signal(signal.SIGVTALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_limit(hard), hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


def _limit(hard: int) -> int:
    """`BYTES` above what is mapped now, where the system says how much that is."""
    sizes = Path("/proc/self/statm")
    if not sizes.exists():
        return hard
    wanted = int(sizes.read_text().split()[0]) * resource.getpagesize() + BYTES
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
