"""`predict --data`: predicted beside recorded actions, in numbers that are counted again here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_commands import Molmoact
from PIL import Image

from molmoact_data.outputs.output import Output
from molmoact_data.outputs.recorded import choose_episodes, recorded_frames
from molmoact_data.policies import ActionChunk, Observation, PolicyInfo, PredictionFailed
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.debug.tiny import TinySize, write_tiny_checkpoint
from molmoact_train.evaluation import comparing

SIZE = TinySize(width=32, layers=1, vit_width=16, vit_layers=2, image_size=56)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_debug_dataset(
        tmp_path_factory.mktemp("data"), episodes=4, frames=5, size=56, chunk_size=2
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    stats = json.loads((data / "dataset_statistics.json").read_text())
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), SIZE, norm_stats=stats)


class Known:
    """A policy whose answers are the recorded actions plus what its test says; it fails at one step."""

    info = PolicyInfo("known", "-", "-", 1, 7, 2, None, "debug/square")

    def __init__(
        self, actions_TD: np.ndarray, off: float = 0.0, fails_at: int | None = None
    ) -> None:
        self.actions_TD, self.off, self.fails_at, self.asked = actions_TD, off, fails_at, []

    def reset(self, seed: int | None = None) -> None:
        self.asked.append("reset")

    def act(self, observation: Observation, *, trace: object = None) -> ActionChunk:
        assert list(observation.images) == ["front"], "no more cameras than it reads"
        assert observation.instruction
        self.asked.append(observation.step)
        if observation.step == self.fails_at:
            raise PredictionFailed("malformed", "no action")
        chunk = self.actions_TD[observation.step : observation.step + 2]
        return ActionChunk(np.concatenate([chunk, chunk])[:2] + np.float32(self.off))


def recorded(data: Path, episode: int) -> np.ndarray:
    """Straight from the Parquet file."""
    rows = pq.read_table(next((data / "data").glob("*.parquet"))).to_pylist()
    return np.array([r["action"] for r in rows if r["episode_index"] == episode], np.float32)


def test_chunks_follow_one_another_and_end_with_the_episode(data: Path) -> None:
    output = Output.open(data)
    (episode,) = choose_episodes(output, "2")
    frames = list(recorded_frames(output, episode, steps=2, every=2, cameras=1))
    assert [f.frame for f in frames] == [0, 2, 4]
    found = np.concatenate([f.actions_HD for f in frames])
    np.testing.assert_array_equal(found, recorded(data, 2))
    assert frames[0].observation.images["front"].shape == (56, 56, 3)


def test_errors_are_those_that_were_put_in(data: Path) -> None:
    policy = Known(recorded(data, 1), off=0.25)
    found = comparing.compare(policy, Output.open(data), "1")
    result = comparing.results(found, "c", "d")
    assert policy.asked == ["reset", 0, 2, 4]
    assert result["all"]["mean_absolute_error"] == pytest.approx([0.25] * 7)
    assert result["all"]["first_step_error"] == pytest.approx([0.25] * 7)
    spread = recorded(data, 1).std(0)
    assert result["all"]["recorded_spread"] == pytest.approx(spread, abs=1e-6)
    assert list(result["episodes"]) == ["1"]


def test_a_failed_answer_is_counted_and_is_no_action(data: Path) -> None:
    policy = Known(recorded(data, 0), fails_at=2)
    result = comparing.results(comparing.compare(policy, Output.open(data), "0"), "c", "d")
    assert result["all"]["failed_predictions"] == 1
    assert result["all"]["mean_absolute_error"] == pytest.approx([0.0] * 7)
    assert [f["predicted"] is None for f in result["frames"]] == [False, True, False]
    assert "1 answers without actions" in comparing.headline(result)


def test_distance_of_paths_does_not_depend_on_the_number_of_points() -> None:
    line = np.array([[0, 0], [100, 0]], np.float32)
    same = np.array([[0, 0], [30, 0], [100, 0]], np.float32)
    assert comparing.path_distance(line, same) == pytest.approx(0, abs=1e-5)
    assert comparing.path_distance(line, line + np.float32([0, 7])) == pytest.approx(7)


def test_the_command_shows_a_table_and_leaves_numbers_and_a_plot(
    data: Path, tiny: Path, tmp_path: Path, molmoact: Molmoact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from molmoact_train.families.molmoact.network import MolmoActForActionReasoning as Network

    loads: list[object] = []
    real = Network.from_pretrained.__func__
    monkeypatch.setattr(Network, "from_pretrained", classmethod(
        lambda cls, *a, **k: (loads.append(a), real(cls, *a, **k))[1]))  # fmt: skip
    out = tmp_path / "compared"
    words = ("predict", "--checkpoint", tiny, "--data", data, "--episodes", "0,2-3", "--every", 3)
    words = (*words, "--action-chunk-size", 2, "--device", "cpu")
    code, stdout, err = molmoact(*words, "--output-path", out)
    assert code == 0, err
    lines = stdout.splitlines()
    assert lines[1].split() == ["dimension", "spread", "error", "first", "step",
                                "episode", "0", "episode", "2", "episode", "3"]  # fmt: skip
    assert lines[8].split()[:2] == ["6", "gripper"]
    headline, after = err.splitlines()[-2:]
    assert headline.startswith("6 frames of 3 episodes; actions off by ")
    assert headline.endswith(f"see {out / 'comparison.png'}")
    assert after == f"next: molmoact serve --checkpoint {tiny}"
    assert "episode 2: 2 frames" in err
    result = json.loads((out / "comparison.json").read_text())
    assert [(f["episode"], f["frame"]) for f in result["frames"]] == [
        (0, 0), (0, 3), (2, 0), (2, 3), (3, 0), (3, 3)
    ]  # fmt: skip
    for frame in result["frames"]:
        wanted = recorded(data, frame["episode"])[frame["frame"] : frame["frame"] + 2]
        np.testing.assert_allclose(frame["recorded"], wanted, rtol=1e-6)
    assert Image.open(out / "comparison.png").size[0] > 1000
    code, _, err = molmoact(*words, "--output-path", out)
    assert (code, "comparison.json exists. Add --overwrite" in err) == (2, True)
    assert len(loads) <= 1, "the model is loaded once"


@pytest.mark.parametrize(
    ("more", "piece"),
    [
        (("--episodes", "9"), "no episode 9; the dataset has 4, numbered 0 to 3"),
        (("--episodes", "a"), "is not a number or a range"),
        (("--instruction", "x"), "--instruction means nothing here: --data brings"),
        (("--mode", "discrete"), "--mode means nothing here"),
    ],
)
def test_mistakes_with_data_are_one_line(
    more: tuple[str, ...], piece: str, data: Path, tiny: Path, molmoact: Molmoact
) -> None:
    code, out, err = molmoact("predict", "--checkpoint", tiny, "--data", data, *more)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert piece in err


def test_other_action_dimensions_are_refused(data: Path) -> None:
    policy = Known(recorded(data, 0))
    policy.info = PolicyInfo("known", "-", "-", 1, 6, 2, None, "other")
    with pytest.raises(Exception, match=r"answers 6 action dimensions .* holds 7"):
        comparing.compare(policy, Output.open(data))
