"""One statistics file, always exact, from any number of workers in any order, in memory or not."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from made_datasets import make_dataset

import pipelines.statistics
from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.labels.actions import observe_gripper
from molmoact_data.statistics import ActionSpec, DatasetStatistics
from pipelines.config import nested
from pipelines.preprocess import preprocess
from pipelines.statistics import OBSERVED, Numbers, NumericEpisode

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


def gathered(parts: list[list[NumericEpisode]]) -> dict:
    """The entry of the file after these parts were read by as many workers, and sent over a wire."""
    whole = Numbers()
    for part in parts:
        worker = Numbers()
        for episode in part:
            worker.add([episode])
        whole.merge(pickle.loads(pickle.dumps(worker)))
    return json.loads(whole.statistics_file(key=KEY, spec=ActionSpec.default(7)))[KEY]


def test_numbers_are_exact_and_the_same_bytes_in_any_order() -> None:
    data = episodes(9, 50)
    one, other = gathered([data]), gathered([data[6:], data[:6]])
    assert json.dumps(one) == json.dumps(other)
    values = np.concatenate([e.action_TD for e in data if e.action_TD is not None])
    statistics = DatasetStatistics.from_json({KEY: one})
    assert (statistics.num_transitions, statistics.num_trajectories) == (450, 9)
    for q, found in ((0.01, statistics.action.q01), (0.99, statistics.action.q99)):
        np.testing.assert_array_equal(found, np.quantile(values, np.float32(q), axis=0))
    assert one[OBSERVED] == {"6": observe_gripper(values).words}


def test_nothing_usable_says_why() -> None:
    bad = [NumericEpisode(i, None, None, f"action_non_finite: row {i}") for i in range(3)]
    with pytest.raises(UserError, match=r"none of the 3 episodes .*: action_non_finite \(3\)"):
        gathered([bad])


@pytest.mark.parametrize("held", [0, 1, 700, 2000])
def test_numbers_beyond_memory_give_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    data = episodes(9, 50)
    in_memory = gathered([data])
    monkeypatch.setattr(pipelines.statistics, "HELD_VALUES", held)
    numbers = Numbers()
    numbers.add(data)
    assert bool(numbers.action._files) == (held < 9 * 50 * 7), "on disk where they do not fit"
    assert json.dumps(gathered([data[6:], data[:6]])) == json.dumps(in_memory)


@pytest.mark.parametrize("runner", ["local", "FnApiRunner"])
def test_a_dataset_beyond_memory_has_the_same_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    dataset = make_dataset(tmp_path / "squares", lengths=[12, 9])
    settings = {
        "dataset_path": str(dataset), "depth": "none", "pointer": "none", "runner": runner,
    }  # fmt: skip

    def content(name: str) -> bytes:
        config = nested({**settings, "output_path": str(tmp_path / name)})
        preprocess(config, resume=False, overwrite=False)
        return (tmp_path / name / schema.STATISTICS_FILE).read_bytes()

    in_memory = content("memory")
    monkeypatch.setattr(pipelines.statistics, "HELD_VALUES", 100)
    assert content("disk") == in_memory
