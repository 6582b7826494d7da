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
    loose_factor: float = 3.0
    """For the votes, the speed limit is this x the median speed of all found points."""
    speed_quantile: float = 0.9
    """For the chain, a usual step is this quantile of the speed between supported points."""
    impossible_ratio: float = 3.0
    """A step this x faster than usual costs the full `switch_cost`, a usual one nothing."""
    straight_frames: int = 5
    """A gripper keeps its direction for this many frames; beyond, distance grows with the square root of the gap."""
    min_speed: float = 0.005
    """No estimated speed is lower, per frame."""
    max_speed: float = 0.15
    """No estimated speed is higher, per frame."""
    neighbours: int = 3
    """Votes are asked of so many found points on either side."""
    switch_cost: float = 0.25
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
    agreement_N = _agreement(xy_N2, frame_N, _loose_speed(xy_N2, frame_N, config), config)
    verdict_N = np.full(len(xy_N2), Verdict.JUMP, dtype=np.int8)
    supported = np.flatnonzero(agreement_N >= 0.5)
    if len(supported):
        on_chain = _best_chain(xy_N2[supported], frame_N[supported], len(xy_N2), config)
        verdict_N[supported] = np.where(on_chain, Verdict.KEPT, Verdict.OTHER_TRACK)
    kept = np.count_nonzero(verdict_N == Verdict.KEPT)
    if kept < config.min_share * len(xy_N2):
        verdict_N[:] = Verdict.NO_CONSISTENT_PATH
    return Judged(verdict_N, agreement_N)


def _loose_speed(
    xy_N2: NDArray[np.float32], frame_N: NDArray[np.int64], config: OutlierConfig
) -> float:
    """A limit per frame that wild points (a fifth of them spoils a third of the steps) move little."""
    if len(xy_N2) < 2:
        return config.min_speed
    median = np.median(_distances(xy_N2, 1) / np.diff(frame_N))
    return float(np.clip(config.loose_factor * median, config.min_speed, config.max_speed))


def _effective(gap: NDArray[np.int64], config: OutlierConfig) -> NDArray[np.float64]:
    """Frames of straight travel in a gap: all of a short one, the square-root law beyond."""
    return np.minimum(gap, np.sqrt(gap * config.straight_frames))


def _distances(xy_N2: NDArray[np.float32], k: int) -> NDArray[np.float64]:
    """[N - k] how far each point lies from the k-th before it."""
    dx, dy = (xy_N2[k:] - xy_N2[:-k]).T
    return np.sqrt(dx * dx + dy * dy)


def _agreement(
    xy_N2: NDArray[np.float32], frame_N: NDArray[np.int64], speed: float, config: OutlierConfig
) -> NDArray[np.float64]:
    """Share of the nearest found neighbours (both sides) within reach; 0 for a lone point."""
    votes = np.zeros(len(xy_N2))
    asked = np.zeros(len(xy_N2))
    for k in range(1, min(config.neighbours, len(xy_N2) - 1) + 1):
        agree = _distances(xy_N2, k) <= config.noise + speed * (frame_N[k:] - frame_N[:-k])
        votes[k:] += agree
        votes[:-k] += agree
        asked[k:] += 1
        asked[:-k] += 1
    return votes / np.maximum(asked, 1)


def _best_chain(
    xy_N2: NDArray[np.float32], frame_N: NDArray[np.int64], num_found: int, config: OutlierConfig
) -> NDArray[np.bool_]:
    """Which supported points lie on the best chain of tracklets."""
    if len(xy_N2) == 1:
        return np.ones(1, dtype=bool)
    step, gap = _distances(xy_N2, 1), np.diff(frame_N)
    speed = float(
        np.clip(np.quantile(step / gap, config.speed_quantile), config.min_speed, config.max_speed)
    )
    broken = np.flatnonzero(step > config.noise + speed * _effective(gap, config)) + 1
    first = np.concatenate([[0], broken])
    last = np.concatenate([broken, [len(xy_N2)]]) - 1
    score = (last - first + 1).astype(float)
    previous = np.full(len(first), -1)
    for j in range(1, len(first)):
        dx, dy = (xy_N2[first[j]] - xy_N2[last[:j]]).T
        excess = np.sqrt(dx * dx + dy * dy) - config.noise
        ratio = excess / (speed * _effective(frame_N[first[j]] - frame_N[last[:j]], config))
        cost = np.clip((ratio - 1) / (config.impossible_ratio - 1), 0, 1) ** 2
        gain = score[:j] - config.switch_cost * num_found * cost
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
