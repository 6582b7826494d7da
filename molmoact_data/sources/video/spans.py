"""A video file that several episodes share: does the file agree with the table that divides it?

The table gives every episode a stretch of seconds. Each may be right by itself and wrong for the file: a
picture that was lost, or one too many, moves everything behind it. The stretches are therefore added up,
in the order of the episodes, and held against what the file really holds (`VideoIndex`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact_data.sources.video.index import VideoIndex

HALF = 0.5
"""Frame periods: farther away, it is another picture."""


@dataclass(frozen=True)
class SharedFile:
    """What the metadata says about the E episodes of one file, in the order of their numbers."""

    episodes: NDArray[np.int64]
    start_s: NDArray[np.float64]
    """[E]; NaN where the metadata does not say."""
    end_s: NDArray[np.float64]
    lengths: NDArray[np.float64]
    """[E] declared rows; NaN where the metadata does not say."""
    gap_before: NDArray[np.bool_]
    """[E] true where no file is known of the number before (an episode that was taken out of the table, or
    has no place in it): its pictures may be here."""
    gap_after: bool
    """The same behind the last episode."""

    def problem(self, episode: int, index: VideoIndex, fps: float) -> str | None:
        """Why the pictures of this episode cannot be proved; None where they are.

        Proved is an episode that starts where the episodes before it end, in a file that ends where the
        last one does.
        """
        period_s = frame_period_s(index, 1 / fps)
        file_frames = _slots(index, period_s)
        for frames in self._frames_of_each(period_s, fps):
            starts, total = self._add_up(frames, period_s)
            if self._is_explained(total, file_frames, index):
                return self._misplaced(episode, starts, period_s)
        declared = "unknown" if not np.isfinite(total) else f"{total:.0f}"
        return (
            f"the {len(self.episodes)} episodes of the file are {declared} frames by the metadata, the file "
            f"holds {file_frames}: it cannot be told where one is too many or missing"
        )

    def _frames_of_each(self, period_s: float, fps: float) -> list[NDArray[np.float64]]:
        """[E] frames by the declared lengths, and by the stretches; each stands in for the other."""
        by_span = np.round((self.end_s - self.start_s) / period_s)
        by_length = np.round(self.lengths / fps / period_s)
        return [
            np.where(np.isnan(by_length), by_span, by_length),
            np.where(np.isnan(by_span), by_length, by_span),
        ]

    def _add_up(
        self, frames: NDArray[np.float64], period_s: float
    ) -> tuple[NDArray[np.float64], float]:
        """[E] frame numbers where the episodes start, and where the last one ends."""
        starts = np.cumsum(frames) - frames
        for gap in np.flatnonzero(self.gap_before):
            shift = np.round(self.start_s[gap] / period_s) - starts[gap]
            if shift > 0:
                starts[gap:] += shift
        return starts, float(starts[-1] + frames[-1])

    def _is_explained(self, total: float, file_frames: int, index: VideoIndex) -> bool:
        cut_off = index.is_cut_off and index.promised == total
        return total == file_frames or cut_off or (self.gap_after and total < file_frames)

    def _misplaced(self, episode: int, starts: NDArray[np.float64], period_s: float) -> str | None:
        at = int(np.searchsorted(self.episodes, episode))
        found = self.start_s[at] / period_s
        if abs(found - starts[at]) <= HALF:
            return None
        return (
            f"the metadata lets the episode start at {self.start_s[at]:.4f} s = frame {found:.1f} of the "
            f"file, the episodes before it end at frame {starts[at]:.0f}"
        )


def frame_period_s(index: VideoIndex, default_s: float) -> float:
    """Seconds from picture to picture: exact over the whole file where some are missing, too."""
    times = index.presentation_s
    steps = np.diff(times)
    usual = float(np.median(steps)) if len(steps) else 0.0
    if usual <= 0:
        return default_s
    return float((times[-1] - times[0]) / max(1, round((times[-1] - times[0]) / usual)))


def _slots(index: VideoIndex, period_s: float) -> int:
    """Pictures from second 0 to the file's end, as if none were missing between them."""
    return round(float(index.presentation_s[-1]) / period_s) + 1 if len(index.ticks) else 0
