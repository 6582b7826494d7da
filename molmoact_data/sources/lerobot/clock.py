"""Is the rows' `timestamp` what LeRobot means by it: seconds from the episode's start?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UNITS = {1e3: "milliseconds", 1e6: "microseconds", 1e9: "nanoseconds"}
FAR_OFF = 100.0
"""A clock that differs from the frame rate by this factor has another unit, not another rate."""
EPOCH_S = 1e7
"""No episode is recorded for four months; a clock that starts there counts from 1970."""
SLOWEST_STEP_S = 10.0


def clock_problem(timestamps: NDArray[np.floating], fps: float | None) -> str | None:
    """Why these timestamps [T] are not seconds from the start, with the step that was expected; else None."""
    steps = np.diff(timestamps.astype(np.float64))
    if not len(timestamps) or not np.isfinite(timestamps).all():
        return None
    step = float(np.median(steps)) if len(steps) else 0.0
    found = (
        f"the column 'timestamp' is not in seconds from the episode's start: its step is {step:.6g}"
    )
    if fps and step > 0 and not 1 / FAR_OFF < step * fps < FAR_OFF:
        unit = min(UNITS, key=lambda unit: abs(np.log(step * fps / unit)))
        named = f" ({UNITS[unit]}?)" if 1 / 3 < step * fps / unit < 3 else ""
        return f"{found}{named}, at {fps:g} fps it is {1 / fps:.6g} s"
    counts = len(steps) > 0 and np.array_equal(timestamps, np.round(timestamps))
    if counts and step > 0 and (not fps or fps > 1):
        expected = (
            f"at {fps:g} fps it is {1 / fps:.6g} s" if fps else "nothing else tells the frame rate"
        )
        return f"{found} and all are whole numbers (do they count frames?), {expected}"
    if not fps and step > SLOWEST_STEP_S:
        return f"{found}, and nothing else tells the frame rate"
    if abs(timestamps[0]) > EPOCH_S:
        return f"{found}, but it starts at {timestamps[0]:.10g} (seconds since 1970?) instead of 0"
    return None
