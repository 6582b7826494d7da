"""The scheduling of this process, as it was when it started."""

from __future__ import annotations

import os


def be_ordinary() -> None:
    """Undo what SVT-AV1 (3.0, as root) does to the thread that encodes: SCHED_FIFO 99, for good.

    Children inherit it, and on two cores nothing else runs then, browsers and servers included.
    """
    if hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
