"""How good labels are, in numbers that need no ground truth.

Each episode gives sums, sums add up over shards in any order, and the sums of a whole dataset give the
summary. Nothing here decides what is kept; `traces` does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data.labels.depth import perplexity
from molmoact_data.labels.labels import EpisodeLabels
from molmoact_data.labels.pointing import GripperPoints, TrackedPoints
from molmoact_data.labels.traces import EpisodeTraces

JUMP_DISTANCE = 0.1
"""A step between neighbouring frames longer than this share of the frame is a jump."""
MOVING_DISTANCE = 0.01
"""Steps shorter than this say nothing about direction (2.5 px of 256)."""
DISAGREEMENT_LIMIT = 0.02
"""Forward and backward tracking further apart than this share of the diagonal disagree."""
QUALITY_BINS = 20


@dataclass(frozen=True)
class QualitySums:
    """Counts that add up; all zero = nothing measured."""

    episodes: int = 0
    frames: int = 0
    arm_frames: int = 0
    """Frames times arms, where points were asked for."""
    found: int = 0
    """Points that the pointer found."""
    kept: int = 0
    """Points that the filter kept."""
    usable: int = 0
    """Frames with a trace for every arm."""
    steps: int = 0
    """Pairs of found points in neighbouring frames."""
    jumps: int = 0
    """Of those, longer than `JUMP_DISTANCE`."""
    turns: int = 0
    """Pairs of consecutive steps that both move more than `MOVING_DISTANCE`."""
    reversals: int = 0
    """Of those, with more than 90 degrees between them."""
    tracked: int = 0
    """Points that optical flow followed both ways."""
    disagreement_sum: float = 0.0
    """Sum of forward-backward distances, share of the diagonal."""
    disagreeing: int = 0
    """Of the tracked, further apart than `DISAGREEMENT_LIMIT`."""
    quality_sum: float = 0.0
    """Sum of trace quality over frames."""
    code_pairs: int = 0
    """Codes compared with the same place in the frame before."""
    code_changes: int = 0
    """Of those, different."""
    code_counts: tuple[int, ...] = ()
    """How often each code occurs."""
    quality_histogram: tuple[int, ...] = ()
    """Frames per bin of trace quality, `QUALITY_BINS` equal bins over 0..1."""
    trace_lengths: tuple[int, ...] = ()
    """Frame-arms with 0, 1, 2, ... trace points."""
    rejected_frames: Mapping[str, int] = field(default_factory=dict)
    """Frames without a trace, by reason."""
    asked: int = 0
    """Frames that the pointer was asked about."""
    unanswered: int = 0
    """Of those, without a point of every arm."""
    calls: int = 0
    """Questions, of one picture or one clip each, those that a cache answered included."""
    pictures: int = 0
    """Seen in them; a frame of two clips counts twice."""
    counted_calls: int = 0
    """Of the questions, those whose tokens are known."""
    read_tokens: int = 0
    """By the pointer, in those."""
    written_tokens: int = 0
    """By the pointer, in those."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            numbers = value.values() if isinstance(value, Mapping) else np.atleast_1d(value)
            if not all(0 <= number < math.inf for number in numbers):
                raise ValueError(f"{name} is a sum of counts, found {value}")

    def to_json(self) -> dict[str, Any]:
        """Plain data; the inverse of `from_json`."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> QualitySums:
        """Sums read back from a shard's record; what a later version measures is left out."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in obj.items()
            if name in cls.__dataclass_fields__
        }
        return cls(**values)


@dataclass(frozen=True)
class LabelQuality:
    """The summary of a dataset; None = that kind of label was not made."""

    episodes: int
    frames: int
    point_coverage: float | None
    """Share of frame-arms where the pointer found the gripper."""
    trace_coverage: float | None
    """Share of frames with a usable trace."""
    filtered_share: float | None
    """Share of the found points that the filter removed."""
    jump_rate: float | None
    """Share of steps between neighbouring frames longer than a tenth of the frame."""
    reversal_rate: float | None
    """Share of moving steps that turn by more than 90 degrees."""
    forward_backward_mean: float | None
    """Mean distance between forward and backward tracking, share of the diagonal."""
    forward_backward_agreement: float | None
    """Share of tracked points where the two agree within 2 % of the diagonal."""
    mean_trace_quality: float | None
    rejected_frames: Mapping[str, float]
    """Share of all frames without a trace, by reason."""
    codebook_size: int | None
    codes_used: int | None
    code_perplexity: float | None
    """exp(entropy) of code usage: how many codes are used as if evenly."""
    code_change_rate: float | None
    """Share of codes that differ from the frame before; flicker raises it."""
    quality_histogram: tuple[int, ...]
    asked: float | None = None
    """Share of frames that the pointer was asked about; None = nothing was asked (recorded points)."""
    unanswered: float | None = None
    """Share of those without a point of every arm."""
    calls_per_frame: float | None = None
    """Questions per frame of the dataset, of one picture or one clip each; answers of a cache included."""
    pictures_per_frame: float | None = None
    read_tokens_per_frame: float | None = None
    """Of the pointer; None = not all of its answers tell."""
    written_tokens_per_frame: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {**asdict(self), "quality_histogram": list(self.quality_histogram)}


def episode_sums(
    labels: EpisodeLabels,
    *,
    num_frames: int,
    codebook_size: int,
    tracked: TrackedPoints | None = None,
) -> QualitySums:
    """The sums of one episode's labels. `tracked`: the points, and what they cost."""
    values: dict[str, Any] = {"episodes": 1, "frames": num_frames}
    if labels.points is not None and labels.traces is not None:
        values |= _trace_sums(labels.points, labels.traces)
    if tracked is not None:
        values |= _asked_sums(tracked)
    if tracked is not None and (apart_TA := tracked.disagreement_TA) is not None:
        measured = apart_TA[np.isfinite(apart_TA)].astype(np.float64)
        values["tracked"] = len(measured)
        values["disagreement_sum"] = float(measured.sum())
        values["disagreeing"] = int(np.count_nonzero(measured > DISAGREEMENT_LIMIT))
    if labels.depth_codes is not None:
        codes_TG = labels.depth_codes
        values["code_counts"] = _counts(codes_TG.reshape(-1), codebook_size)
        values["code_pairs"] = codes_TG[1:].size
        values["code_changes"] = int(np.count_nonzero(codes_TG[1:] != codes_TG[:-1]))
    return QualitySums(**values)


def merge(sums: Iterable[QualitySums]) -> QualitySums:
    """Add up; the order changes nothing but the last bits of the two floating-point sums."""
    total = QualitySums()
    for part in sums:
        total = QualitySums(
            **{
                name: _added(getattr(total, name), getattr(part, name))
                for name in QualitySums.__dataclass_fields__
            }
        )
    return total


def summarise(sums: QualitySums) -> LabelQuality:
    """Sums of a whole dataset -> shares and means."""
    pointed = sums.frames if sums.arm_frames else 0
    counts = np.array(sums.code_counts, dtype=np.float64)
    return LabelQuality(
        episodes=sums.episodes,
        frames=sums.frames,
        point_coverage=_share(sums.found, sums.arm_frames),
        trace_coverage=_share(sums.usable, pointed),
        filtered_share=_share(sums.found - sums.kept, sums.found),
        jump_rate=_share(sums.jumps, sums.steps),
        reversal_rate=_share(sums.reversals, sums.turns),
        forward_backward_mean=_share(sums.disagreement_sum, sums.tracked),
        forward_backward_agreement=_share(sums.tracked - sums.disagreeing, sums.tracked),
        mean_trace_quality=_share(sums.quality_sum, pointed),
        rejected_frames={k: n / sums.frames for k, n in sorted(sums.rejected_frames.items())},
        codebook_size=len(counts) or None,
        codes_used=int(np.count_nonzero(counts)) if len(counts) else None,
        code_perplexity=perplexity(counts) if counts.any() else None,
        code_change_rate=_share(sums.code_changes, sums.code_pairs),
        quality_histogram=sums.quality_histogram,
        **_cost(sums),
    )


def _cost(sums: QualitySums) -> dict[str, float | None]:
    """What the pointer's answers cost, per frame of the dataset."""
    asked_frames = sums.frames if sums.calls else 0
    counted_frames = asked_frames if sums.counted_calls == sums.calls else 0
    return {
        "asked": _share(sums.asked, asked_frames),
        "unanswered": _share(sums.unanswered, sums.asked),
        "calls_per_frame": _share(sums.calls, asked_frames),
        "pictures_per_frame": _share(sums.pictures, asked_frames),
        "read_tokens_per_frame": _share(sums.read_tokens, counted_frames),
        "written_tokens_per_frame": _share(sums.written_tokens, counted_frames),
    }


def _asked_sums(tracked: TrackedPoints) -> dict[str, int]:
    if not tracked.spent.calls:
        return {}
    found_T = ~np.isnan(tracked.points.xy_NA2).any(axis=(1, 2))
    return {
        "asked": int(np.count_nonzero(tracked.from_pointer_T)),
        "unanswered": int(np.count_nonzero(tracked.from_pointer_T & ~found_T)),
        **asdict(tracked.spent),
    }


def _trace_sums(points: GripperPoints, traces: EpisodeTraces) -> dict[str, Any]:
    found_TA = ~np.isnan(points.xy_NA2).any(axis=2)
    quality_T = traces.quality_T
    bins = np.minimum((quality_T * QUALITY_BINS).astype(np.int64), QUALITY_BINS - 1)
    reasons = Counter(reason for reason in traces.reject_reason_T if reason is not None)
    return {
        "arm_frames": found_TA.size,
        "found": int(np.count_nonzero(found_TA)),
        "kept": int(np.count_nonzero(traces.kept_TA)),
        "usable": int(np.count_nonzero(traces.frame_reason_code_T == 0)),
        "quality_sum": float(quality_T.sum(dtype=np.float64)),
        "quality_histogram": _counts(bins, QUALITY_BINS),
        "trace_lengths": _counts(np.diff(traces.offsets), 1),
        "rejected_frames": dict(sorted(reasons.items())),
        **_motion_sums(points),
    }


def _motion_sums(points: GripperPoints) -> dict[str, int]:
    """Comparisons with NaN are false, so pairs with a missing point count nowhere."""
    step_TA2 = np.diff(points.xy_NA2, axis=0)
    length_TA = np.sqrt(np.square(step_TA2).sum(axis=2))
    moving_TA = length_TA > MOVING_DISTANCE
    turn_TA = moving_TA[1:] & moving_TA[:-1]
    backwards_TA = (step_TA2[1:] * step_TA2[:-1]).sum(axis=2) < 0
    return {
        "steps": int(np.count_nonzero(np.isfinite(length_TA))),
        "jumps": int(np.count_nonzero(length_TA > JUMP_DISTANCE)),
        "turns": int(np.count_nonzero(turn_TA)),
        "reversals": int(np.count_nonzero(turn_TA & backwards_TA)),
    }


def _counts(values: NDArray[np.integer], at_least: int) -> tuple[int, ...]:
    return tuple(np.bincount(values, minlength=at_least).tolist())


def _added(a: Any, b: Any) -> Any:
    if isinstance(a, tuple):
        return tuple(x + y for x, y in zip_longest(a, b, fillvalue=0))
    if isinstance(a, Mapping):
        return {key: a.get(key, 0) + b.get(key, 0) for key in sorted({*a, *b})}
    return a + b


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
