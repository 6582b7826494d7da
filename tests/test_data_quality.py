from __future__ import annotations

import json

import numpy as np
import pytest

from molmoact_data.labels.labels import EpisodeLabels
from molmoact_data.labels.pointing import GripperPoints, Spent, TrackedPoints
from molmoact_data.labels.quality import QualitySums, episode_sums, merge, summarise
from molmoact_data.labels.traces import TraceConfig, episode_traces


def labels_of(xy_T2: list[list[float]], codes_TG: list[list[int]] | None = None) -> EpisodeLabels:
    xy = np.array(xy_T2, dtype=np.float32)[:, None]
    points = GripperPoints(xy, (~np.isnan(xy[..., 0])).astype(np.float32))
    return EpisodeLabels(
        depth_codes=None if codes_TG is None else np.array(codes_TG, dtype=np.uint8),
        points=points,
        traces=episode_traces(points, TraceConfig(filter=False)),
    )


def test_motion_is_counted_by_hand() -> None:
    nan = float("nan")
    # Steps: 0.05 right, 0.05 left (a reversal), 0.25 down (a jump), missing, missing, rest.
    xy = [[0.5, 0.5], [0.55, 0.5], [0.5, 0.5], [0.5, 0.75], [nan, nan], [0.5, 0.75], [0.5, 0.75]]
    sums = episode_sums(labels_of(xy), num_frames=7, codebook_size=4)
    assert (sums.steps, sums.jumps, sums.turns, sums.reversals) == (4, 1, 2, 1)
    assert (sums.arm_frames, sums.found, sums.kept, sums.usable) == (7, 6, 6, 7)
    summary = summarise(sums)
    assert summary.point_coverage == pytest.approx(6 / 7)
    assert summary.jump_rate == pytest.approx(1 / 4)
    assert summary.reversal_rate == pytest.approx(1 / 2)
    assert summary.code_perplexity is None


def test_code_numbers_are_counted_by_hand() -> None:
    codes = [[0, 0, 1, 1], [0, 0, 1, 2]]
    summary = summarise(
        episode_sums(labels_of([[0.5, 0.5]] * 2, codes), num_frames=2, codebook_size=8)
    )
    assert summary.codes_used == 3
    assert summary.codebook_size == 8
    assert summary.code_change_rate == pytest.approx(1 / 4)
    entropy = -(4 / 8 * np.log(4 / 8) + 3 / 8 * np.log(3 / 8) + 1 / 8 * np.log(1 / 8))
    assert summary.code_perplexity == pytest.approx(np.exp(entropy))


def test_tracking_agreement_ignores_keyframes() -> None:
    disagreement = np.array([[np.nan], [0.01], [0.05], [0.0]], dtype=np.float32)
    labels = labels_of([[0.5, 0.5]] * 4)
    assert labels.points is not None
    summary = summarise(
        episode_sums(
            labels,
            num_frames=4,
            codebook_size=2,
            tracked=TrackedPoints(labels.points, np.ones(4, bool), disagreement),
        )
    )
    assert summary.forward_backward_agreement == pytest.approx(2 / 3)
    assert summary.forward_backward_mean == pytest.approx(0.02, abs=1e-6)


def test_what_the_pointer_cost_is_counted_per_frame_of_the_dataset() -> None:
    """Two episodes of four frames: three and one were asked about, one of them in vain."""
    nan = float("nan")
    labels = labels_of([[0.5, 0.5]] * 3 + [[nan, nan]])
    assert labels.points is not None
    asked = np.array([True, True, False, True])
    first = TrackedPoints(labels.points, asked, None, Spent(2, 5, 2, 1000, 60))
    second = TrackedPoints(
        labels.points, asked & [True, False, False, False], None, Spent(1, 1, 1, 400, 20)
    )
    sums = [episode_sums(labels, num_frames=4, codebook_size=2, tracked=t) for t in (first, second)]
    summary = summarise(merge(sums))
    assert (summary.asked, summary.unanswered) == (4 / 8, 1 / 4)
    assert (summary.calls_per_frame, summary.pictures_per_frame) == (3 / 8, 6 / 8)
    assert (summary.read_tokens_per_frame, summary.written_tokens_per_frame) == (175, 10)
    untold = TrackedPoints(labels.points, asked, None, Spent(3, 3))
    partly = [*sums, episode_sums(labels, num_frames=4, codebook_size=2, tracked=untold)]
    summary = summarise(merge(partly))
    assert summary.calls_per_frame == 6 / 12
    assert summary.read_tokens_per_frame is None
    recorded = TrackedPoints(labels.points, np.ones(4, bool), None)
    summary = summarise(episode_sums(labels, num_frames=4, codebook_size=2, tracked=recorded))
    assert summary.asked is None
    assert summary.calls_per_frame is None


def test_rejected_frames_are_shares_by_reason() -> None:
    nan = float("nan")
    xy = [[0.5, 0.5]] * 9 + [[nan, nan]]
    summary = summarise(episode_sums(labels_of(xy), num_frames=10, codebook_size=2))
    assert summary.rejected_frames == {"no_point_left": 0.1}
    assert summary.trace_coverage == pytest.approx(0.9)
    assert sum(summary.quality_histogram) == 10
    assert summary.quality_histogram[0] == 1


def test_sums_of_parts_equal_the_sums_of_all_in_any_order() -> None:
    rng = np.random.default_rng(0)
    parts = []
    for num_frames in (5, 1, 12):
        xy = rng.random((num_frames, 2)).tolist()
        codes = rng.integers(0, 16, (num_frames, 9)).tolist()
        parts.append(episode_sums(labels_of(xy, codes), num_frames=num_frames, codebook_size=16))
    forward, backward = merge(parts), merge(parts[::-1])
    assert forward.frames == 18
    assert forward.episodes == 3
    assert forward.code_counts == tuple(sum(p.code_counts[i] for p in parts) for i in range(16))
    assert forward.rejected_frames == backward.rejected_frames
    assert forward.quality_sum == pytest.approx(backward.quality_sum)
    assert QualitySums.from_json(json.loads(json.dumps(forward.to_json()))) == forward


def test_nothing_measured_is_none_not_zero() -> None:
    summary = summarise(episode_sums(EpisodeLabels(), num_frames=3, codebook_size=128))
    assert summary.trace_coverage is None
    assert summary.codes_used is None
    assert json.loads(json.dumps(summary.to_json()))["jump_rate"] is None
