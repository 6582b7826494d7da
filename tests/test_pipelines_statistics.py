"""One statistics file, exact or sketched, from any number of workers in any order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_datasets import make_dataset

import pipelines.sketched_statistics
from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.statistics import DatasetStatistics
from pipelines.options import nested
from pipelines.preprocess import preprocess
from pipelines.sketched_statistics import RANK_ERROR, SketchedNumbers
from pipelines.statistics import OBSERVED, ExactNumbers, NumericEpisode

KEY = "arm"


def episodes(count: int, frames: int) -> list[NumericEpisode]:
    """Normal arm dimensions, the second one skewed; a gripper that is 0 or 1; no state in one of five."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(count):
        action = rng.normal(size=(frames, 7)).astype(np.float32)
        action[:, 1] = np.exp(action[:, 1])
        action[:, 6] = rng.random(frames) < 0.3
        made.append(NumericEpisode(index, action, action[:, :3] * 2, None))
    return [*made, NumericEpisode(count, None, None, "action_non_finite: row 3")]


def gathered(kind: type, parts: list[list[NumericEpisode]]) -> dict:
    """The entry of the file after these parts were read by as many workers."""
    whole = kind()
    for part in parts:
        worker = kind()
        worker.add(part)
        whole.merge(worker)
    return json.loads(whole.statistics_file(key=KEY, gripper={}))[KEY]


def test_a_sketch_keeps_counts_and_extremes_exact_and_quantiles_within_its_stated_error() -> None:
    data = episodes(60, 2000)
    values = np.concatenate([e.action_TD for e in data if e.action_TD is not None]).astype(
        np.float64
    )

    entry = gathered(SketchedNumbers, [data[40:], data[:25], data[25:40]])

    statistics = DatasetStatistics.from_json({KEY: entry})
    assert (statistics.num_transitions, statistics.num_trajectories) == (120_000, 60)
    np.testing.assert_array_equal(statistics.action.min, values.min(axis=0))
    np.testing.assert_array_equal(statistics.action.max, values.max(axis=0))
    np.testing.assert_allclose(statistics.action.mean, values.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(statistics.action.std, values.std(axis=0), rtol=1e-5)
    assert 0 < entry[RANK_ERROR] < 0.003
    for q, found in ((0.01, statistics.action.q01), (0.99, statistics.action.q99)):
        ranks = (values[:, :6] <= found[:6]).mean(axis=0)
        assert np.abs(ranks - q).max() <= entry[RANK_ERROR]
    assert entry[OBSERVED] == {"6": "{0, 1}: 30 % at 1"}
    assert statistics.state is not None
    np.testing.assert_allclose(statistics.state.max, values[:, :3].max(axis=0) * 2)


def test_exact_numbers_give_the_same_bytes_in_any_order() -> None:
    data = episodes(9, 50)
    one, other = gathered(ExactNumbers, [data]), gathered(ExactNumbers, [data[6:], data[:6]])
    assert json.dumps(one) == json.dumps(other)
    assert RANK_ERROR not in one


@pytest.mark.parametrize("kind", [ExactNumbers, SketchedNumbers])
def test_nothing_usable_says_why(kind: type) -> None:
    bad = [NumericEpisode(i, None, None, f"action_non_finite: row {i}") for i in range(3)]
    with pytest.raises(UserError, match=r"none of the 3 episodes .*: action_non_finite \(3\)"):
        gathered(kind, [bad])


@pytest.mark.parametrize("runner", ["local", "FnApiRunner"])
def test_a_dataset_beyond_memory_is_sketched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    dataset = make_dataset(tmp_path / "squares", lengths=[12, 9])
    settings = {
        "dataset_path": str(dataset), "depth": "none", "pointer": "none", "runner": runner,
    }  # fmt: skip

    def entry(name: str) -> dict:
        config = nested({**settings, "output_path": str(tmp_path / name)})
        preprocess(config, resume=False, overwrite=False)
        (found,) = json.loads((tmp_path / name / schema.STATISTICS_FILE).read_text()).values()
        return found

    exact = entry("exact")
    monkeypatch.setattr(pipelines.sketched_statistics, "EXACT_VALUES", 100)
    sketched = entry("sketched")

    assert RANK_ERROR in sketched
    assert RANK_ERROR not in exact
    for name in ("min", "max", "mean"):
        np.testing.assert_allclose(sketched["action"][name], exact["action"][name], rtol=1e-6)
    assert sketched[OBSERVED] == exact[OBSERVED]
