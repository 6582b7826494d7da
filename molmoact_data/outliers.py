"""Which points of a track to believe: numpy only, no images, nothing is moved or interpolated.

What goes wrong in the field: single wild points, short bursts of them, a background object that attracts
the pointer again and again, and a stretch of frames on a second robot. Two tests, both against a speed
limit estimated from the track itself:

1. Vote: a point is supported when at least half of its (up to six) nearest found neighbours in time can be
   reached from it. Isolated wild points and scattered background points fail: `jump`.
2. Chain: supported points fall into tracklets without impossible steps. The best chain of tracklets (most
   points, minus `switch_cost` of all found points per impossible step) is believed; the rest is
   `other_track`. So a second robot must hold the pointer for more than that share to be believed.

When the chain holds less than `min_share` of the found points, none is believed: `no_consistent_path`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class Verdict(enum.IntEnum):
    """What became of one found point."""

    KEPT = 0
    JUMP = 1
    OTHER_TRACK = 2
    NO_CONSISTENT_PATH = 3


@dataclass(frozen=True)
class OutlierConfig:
    """Distances are unit coordinates (0..1 over the frame)."""

    noise: float = 0.02
    """How far apart two pointings of a resting gripper may lie (5 px of 256)."""
    speed_factor: float = 3.0
    """Speed limit = this x the median speed of the track."""
    min_speed: float = 0.01
    """The speed limit is never lower, per frame."""
    max_speed: float = 0.12
    """The speed limit is never higher, per frame."""
    max_reach: float = 0.25
    """However long the gap, no step is longer."""
    neighbours: int = 3
    """Votes are asked of so many found points on either side."""
    switch_cost: float = 0.2
    """What an impossible step costs, as a share of the found points."""
    min_share: float = 0.3
    """A chain with a smaller share of the found points is no path."""


@dataclass(frozen=True)
class Judged:
    """Per found point: the verdict, and the share 0..1 of its neighbours that agree with it."""

    verdict_N: NDArray[np.int8]
    agreement_N: NDArray[np.float64]

    @property
    def kept_N(self) -> NDArray[np.bool_]:
        """Which points are believed."""
        return self.verdict_N == Verdict.KEPT


def judge_points(
    xy_N2: NDArray[np.float32], frame_N: NDArray[np.int64], config: OutlierConfig
) -> Judged:
    """Judge the N found points of one arm, in frame order."""
    speed = speed_limit(xy_N2, frame_N, config)
    agreement_N = _agreement(xy_N2, frame_N, speed, config)
    verdict_N = np.full(len(xy_N2), Verdict.JUMP, dtype=np.int8)
    supported = np.flatnonzero(agreement_N >= 0.5)
    if len(supported):
        on_chain = _best_chain(
            xy_N2[supported], frame_N[supported], speed, config.switch_cost * len(xy_N2), config
        )
        verdict_N[supported] = np.where(on_chain, Verdict.KEPT, Verdict.OTHER_TRACK)
    kept = np.count_nonzero(verdict_N == Verdict.KEPT)
    if kept < config.min_share * len(xy_N2):
        verdict_N[:] = Verdict.NO_CONSISTENT_PATH
    return Judged(verdict_N, agreement_N)


def speed_limit(
    xy_N2: NDArray[np.float32], frame_N: NDArray[np.int64], config: OutlierConfig
) -> float:
    """Unit distance per frame that this track's gripper plausibly moves."""
    if len(xy_N2) < 2:
        return config.min_speed
    steps = np.hypot(*np.diff(xy_N2, axis=0).T) / np.diff(frame_N)
    return float(
        np.clip(config.speed_factor * np.median(steps), config.min_speed, config.max_speed)
    )


def _reach(gap: NDArray[np.int64], speed: float, config: OutlierConfig) -> NDArray[np.float64]:
    return config.noise + np.minimum(speed * gap, config.max_reach)


def _agreement(
    xy_N2: NDArray[np.float32], frame_N: NDArray[np.int64], speed: float, config: OutlierConfig
) -> NDArray[np.float64]:
    """Share of the nearest found neighbours (both sides) within reach; 0 for a lone point."""
    votes = np.zeros(len(xy_N2))
    asked = np.zeros(len(xy_N2))
    for k in range(1, min(config.neighbours, len(xy_N2) - 1) + 1):
        distance = np.hypot(*(xy_N2[k:] - xy_N2[:-k]).T)
        agree = distance <= _reach(frame_N[k:] - frame_N[:-k], speed, config)
        votes[k:] += agree
        votes[:-k] += agree
        asked[k:] += 1
        asked[:-k] += 1
    return votes / np.maximum(asked, 1)


def _best_chain(
    xy_N2: NDArray[np.float32],
    frame_N: NDArray[np.int64],
    speed: float,
    switch_cost: float,
    config: OutlierConfig,
) -> NDArray[np.bool_]:
    """Which points lie on the best chain of tracklets."""
    step = np.hypot(*np.diff(xy_N2, axis=0).T)
    broken = np.flatnonzero(step > _reach(np.diff(frame_N), speed, config)) + 1
    first = np.concatenate([[0], broken])
    last = np.concatenate([broken, [len(xy_N2)]]) - 1
    size = last - first + 1
    score = size.astype(float)
    previous = np.full(len(first), -1)
    for j in range(1, len(first)):
        distance = np.hypot(*(xy_N2[first[j]] - xy_N2[last[:j]]).T)
        reachable = distance <= _reach(frame_N[first[j]] - frame_N[last[:j]], speed, config)
        gain = score[:j] - np.where(reachable, 0.0, switch_cost)
        best = int(np.argmax(gain))
        if gain[best] > 0:
            score[j] += gain[best]
            previous[j] = best
    on_chain = np.zeros(len(xy_N2), dtype=bool)
    j = int(np.argmax(score))
    while j >= 0:
        on_chain[first[j] : last[j] + 1] = True
        j = int(previous[j])
    return on_chain
