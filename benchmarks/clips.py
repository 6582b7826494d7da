"""What a pointer costs: questions and tokens per frame, for Molmo's pictures and Molmo2's pictures and clips.

    PYTHONPATH=. MUJOCO_GL=egl python benchmarks/clips.py FOLDER [--episodes 3] [--seed 4201]

The episodes of `keyframes.py`, rendered into FOLDER. No weights: a stand-in knows the truth and tells it in the words
of either model, a tenth of a per cent and a thousandth of the side, which are read as a run reads them. So the errors
are those of rounding and flow alone, and the tokens those of the released layouts: pictures and frames as the
processors lay them out, and answers as Qwen's splitter counts digits, blanks and signs.
"""

from __future__ import annotations

import argparse
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from keyframes import BATCH, Seen, episodes

from molmoact_data.label_quality.metrics import point_error_px
from molmoact_data.labels.pointing import (
    DEFAULT_PROMPT,
    ClipConfig,
    GripperPoints,
    Spent,
    TrackedPoints,
)
from molmoact_data.labels.tracking import PointTracker
from molmoact_data.teachers.answers import arms_from_percent, parse_points, unit_from_percent
from molmoact_data.teachers.timed_answers import (
    TimedPoint,
    format_timed_points,
    points_of_clip,
    points_of_picture,
)

PICTURE_TOKENS = {"molmo": 316, "molmo2": 424}
"""Of a 256x256 picture: overview and one tile."""
FRAME_TOKENS = 81 + 2
"""Of a frame of a clip, between its two marks; its time in digits comes on top."""
TURN_TOKENS = {"molmo": 5, "molmo2": 9}
"""BOS and the words around a question."""
SPLIT = re.compile(r"\d|[^\r\n\w]?[^\W\d]+| ?[^\s\w]+|\s+")


LONG = re.compile("gripper|coords")
"""Two tokens each in Qwen's vocabulary."""


def tokens(text: str) -> int:
    """As Qwen counts the words of these questions and answers."""
    return len(SPLIT.findall(text)) + len(LONG.findall(text))


@dataclass
class Pictures:
    """A `FramePointer` that tells the truth in the words of one model."""

    seen: Seen
    family: str
    num_arms: int = 1

    def point_frames(
        self, rgb_NHWC: np.ndarray, prompt: str, frame_index_N: Sequence[int]
    ) -> GripperPoints:
        image_hw = rgb_NHWC.shape[1:3]
        read = PICTURE_TOKENS[self.family] + TURN_TOKENS[self.family] + tokens(prompt)
        texts = [self.words(percent(self.seen, frame)) for frame in frame_index_N]
        points = parse_points if self.family == "molmo" else points_of_picture
        xy_NA2 = np.stack([arms_from_percent(points(text), 1, image_hw) for text in texts])
        found = (~np.isnan(xy_NA2[..., 0])).astype(np.float32)
        return GripperPoints(xy_NA2, found, np.array([[read, tokens(text)] for text in texts]))

    def words(self, xy: tuple[float, float] | None) -> str:
        if xy is None:
            return "There are none."
        if self.family == "molmo":
            return f' <point x="{xy[0]:.1f}" y="{xy[1]:.1f}"'
        return format_timed_points([TimedPoint(1, 1, *xy)], "").partition(">")[0]


@dataclass
class Clips(Pictures):
    """The same as a `ClipPointer`; it knows a frame by its pixels."""

    clips: ClipConfig = field(default_factory=lambda: ClipConfig(frames=64))

    def __post_init__(self) -> None:
        self.frame_of = {zlib.crc32(rgb.tobytes()): i for i, rgb in enumerate(self.seen.rgb_THWC)}

    def point_clip(self, rgb_NHWC: np.ndarray, prompt: str) -> GripperPoints:
        times = [i / self.clips.fps for i in range(len(rgb_NHWC))]
        xy = [percent(self.seen, self.frame_of[zlib.crc32(rgb.tobytes())]) for rgb in rgb_NHWC]
        told = [TimedPoint(t, 1, *at) for t, at in zip(times, xy, strict=True) if at is not None]
        text = format_timed_points(told, "", unit="seconds", tag="tracks").partition(">")[0] + ">"
        nothing = (np.nan, np.nan)
        rows = [
            [(p.x, p.y) if p else nothing for p in row] for row in points_of_clip(text, times, 1)
        ]
        xy_NA2 = unit_from_percent(np.array(rows), rgb_NHWC.shape[1:3])
        read = TURN_TOKENS["molmo2"] + tokens(prompt) + len(times) * FRAME_TOKENS
        read += sum(tokens(f" {time:.1f} ") for time in times)
        found = (~np.isnan(xy_NA2[..., 0])).astype(np.float32)
        return GripperPoints(xy_NA2, found, np.array([[read, tokens(text)]]))


def percent(seen: Seen, frame: int) -> tuple[float, float] | None:
    """Where the grip point is, in per cent of the sides; None = out of the picture."""
    height, width = seen.rgb_THWC.shape[1:3]
    x, y = seen.true_xy_T2[frame]
    if not (0 <= x <= 1 and 0 <= y <= 1):
        return None
    return 100 * x * (width - 1) / width, 100 * y * (height - 1) / height


def clips(frames: int, seen: Seen) -> Clips:
    return Clips(seen, "molmo2", clips=ClipConfig(frames))


WAYS: tuple[tuple[str, Callable[[Seen], Pictures], int, bool], ...] = (
    ("molmo, every frame", lambda seen: Pictures(seen, "molmo"), 1, False),
    ("molmo, K = 10", lambda seen: Pictures(seen, "molmo"), 10, False),
    ("molmo, motion, K <= 100", lambda seen: Pictures(seen, "molmo"), 100, True),
    ("molmo2, every frame", lambda seen: Pictures(seen, "molmo2"), 1, False),
    ("molmo2, K = 10", lambda seen: Pictures(seen, "molmo2"), 10, False),
    ("molmo2, clips of 64, every frame", partial(clips, 64), 1, False),
    ("molmo2, clips of 64, K = 10", partial(clips, 64), 10, False),
    ("molmo2, clips of 16, K = 10", partial(clips, 16), 10, False),
    ("molmo2, clips of 16, motion", partial(clips, 16), 100, True),
)


def track(seen: Seen, pointer: Pictures, every: int, *, by_motion: bool) -> TrackedPoints:
    tracker = PointTracker(pointer, DEFAULT_PROMPT, every, by_motion=by_motion)
    for first in range(0, len(seen.rgb_THWC), BATCH):
        tracker.push(seen.rgb_THWC[first : first + BATCH])
    return tracker.finish()


def line(name: str, tracked: Sequence[tuple[Seen, TrackedPoints]]) -> str:
    frames = sum(len(seen.rgb_THWC) for seen, _ in tracked)
    spent = sum((one.spent for _, one in tracked), Spent())
    asked = sum(int(one.from_pointer_T.sum()) for _, one in tracked)
    errors = [
        point_error_px(one.points.xy_NA2[:, 0], seen.true_xy_T2, seen.rgb_THWC.shape[1:3])
        for seen, one in tracked
    ]
    found = np.concatenate(errors)
    found = found[~np.isnan(found)]
    return (
        f"{name:>34}   {asked / frames:6.3f}   {spent.calls / frames:6.3f}   {spent.read_tokens / frames:7.1f}   "
        f"{spent.written_tokens / frames:7.2f}   {np.median(found):6.2f}   {np.percentile(found, 95):6.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=4201)
    args = parser.parse_args()
    seen = list(episodes(args.folder, args.episodes, args.seed))
    print(f"{len(seen)} episodes, {sum(len(one.rgb_THWC) for one in seen)} frames; per frame:")
    print(" " * 36 + "asked    calls      read   written   median px  95th px")
    for name, pointer, every, by_motion in WAYS:
        print(
            line(
                name, [(one, track(one, pointer(one), every, by_motion=by_motion)) for one in seen]
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
