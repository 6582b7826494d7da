from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from golden import GOLDEN
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.labels.actions import (
    bin_actions,
    bin_centers,
    chunk,
    normalize,
    observe_gripper,
    spec_warnings,
    unnormalize,
    unnormalize_reference,
)
from molmoact_data.statistics import (
    FEATURE_FIELDS,
    ActionSpec,
    DatasetStatistics,
    DimensionSpec,
    feature_statistics,
    resolve_key,
)
from molmoact_data.text import tokens


def statistics_of(
    action_ND: NDArray[np.floating], spec: ActionSpec | None = None
) -> DatasetStatistics:
    return DatasetStatistics(
        key="robot",
        action=feature_statistics(action_ND),
        spec=spec or ActionSpec.default(action_ND.shape[1]),
        state=None,
        num_transitions=len(action_ND),
        num_trajectories=1,
    )


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    arrays = np.load(GOLDEN / "preprocess" / "actions.npz")
    return {
        **json.loads((GOLDEN / "preprocess" / "actions.json").read_text()),
        **{name: arrays[name] for name in arrays.files},
    }


def test_statistics_equal_the_reference(golden: dict[str, Any]) -> None:
    ours, theirs = feature_statistics(golden["actions"]), golden["statistics"]["action"]
    for name in ("min", "max", "q01", "q99"):
        assert getattr(ours, name).tolist() == np.float32(theirs[name]).tolist(), name
    for name in ("mean", "std"):  # the reference sums in float32, in arrival order
        np.testing.assert_allclose(getattr(ours, name), theirs[name], rtol=3e-6, atol=1e-7)


def test_normalised_values_and_bins_equal_the_reference(golden: dict[str, Any]) -> None:
    x = normalize(golden["actions"], statistics_of(golden["actions"]))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, golden["normalized"])
    np.testing.assert_array_equal(bin_actions(x), golden["bins"])


def test_token_strings_and_chunks_equal_the_reference(golden: dict[str, Any]) -> None:
    from molmoact_data.text.prompts import format_actions

    bins = bin_actions(normalize(golden["actions"], statistics_of(golden["actions"])))
    ends = np.cumsum(golden["episode_lengths"])
    assert [format_actions(row) for row in bins] == golden["tokenized_action"]
    episodes = [
        chunk(bins[end - length : end], 8)
        for end, length in zip(ends, golden["episode_lengths"], strict=True)
    ]
    chunks = [format_actions(c) for bins_THD, _ in episodes for c in bins_THD]
    assert chunks == golden["chunked_action"]
    assert episodes[1][1].tolist() == [5, 4, 3, 2, 1]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_statistics_do_not_depend_on_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rng.integers(1, 300), 3)).astype(np.float32)
    values[rng.random(values.shape) < 0.2] = 0.0
    values[rng.random(values.shape) < 0.2] *= -1  # -0.0 and 0.0 must not tell the order
    shuffled = rng.permutation(values)
    first, second = statistics_of(values), statistics_of(shuffled)
    assert first.sha256() == second.sha256()
    np.testing.assert_allclose(
        first.action.q99, np.quantile(values.astype(np.float64), 0.99, axis=0), atol=1e-5
    )
    np.testing.assert_allclose(
        first.action.std, values.std(axis=0, dtype=np.float64), rtol=1e-5, atol=1e-7
    )


def test_statistics_file_round_trip_and_released_format() -> None:
    values = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    one = DatasetStatistics(
        key="robot",
        action=feature_statistics(values),
        spec=ActionSpec.default(7),
        state=feature_statistics(values[:, :3]),
        num_transitions=50,
        num_trajectories=4,
    )
    obj = json.loads(json.dumps(one.to_json()))
    entry = obj["robot"]
    assert entry["action"]["mask"] == [True] * 6 + [False]
    assert entry["num_transitions"] == 50
    assert entry["num_trajectories"] == 4
    assert set(entry["proprio"]) == set(FEATURE_FIELDS)
    back = DatasetStatistics.from_json(obj)
    assert back.sha256() == one.sha256()
    np.testing.assert_array_equal(back.action.q01, one.action.q01)
    assert back.spec == one.spec


def test_released_statistics_without_spec_read_as_the_reference_encodes() -> None:
    obj = statistics_of(np.random.default_rng(0).normal(size=(50, 7))).to_json()
    del obj["robot"]["spec"]
    assert DatasetStatistics.from_json(obj).spec == ActionSpec.default(7)
    obj["robot"]["action"]["mask"] = [True] * 7
    assert DatasetStatistics.from_json(obj).spec.dimensions == (DimensionSpec(normalize=True),) * 7


@pytest.mark.parametrize("action_dim", [6, 7, 8, 14, 26])
def test_default_spec_decodes_what_it_encodes(action_dim: int) -> None:
    rng = np.random.default_rng(action_dim)
    action = rng.normal(size=(400, action_dim)).astype(np.float32)
    action[:, -1] = rng.integers(0, 2, 400)
    statistics = statistics_of(action)
    x = normalize(action, statistics)
    decoded = unnormalize(bin_centers(bin_actions(x)), statistics)
    inside = (action >= statistics.action.q01) & (action <= statistics.action.q99)
    step = np.maximum(statistics.action.q99 - statistics.action.q01, 1) / 255
    assert (
        np.abs(decoded - action)[inside] <= np.broadcast_to(step, action.shape)[inside] * 1.01
    ).all()
    assert ((decoded[:, -1] > 0.5) == (action[:, -1] == 1)).all()


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("invert", [True, False])
def test_gripper_convention_is_honoured_both_ways(normalized: bool, invert: bool) -> None:  # noqa: FBT001
    action = np.stack([np.linspace(-1, 1, 100), np.arange(100) % 2], axis=1).astype(np.float32)
    spec = ActionSpec.with_grippers(2, (1,), invert=invert, normalize=normalized)
    statistics = statistics_of(action, spec)
    x = normalize(action, statistics)
    closed = {(True, True): 1, (True, False): -1, (False, True): 1, (False, False): 0}
    assert x[0, 1] == closed[normalized, invert]
    np.testing.assert_allclose(unnormalize(x, statistics)[2:-2], action[2:-2], atol=1e-6)


def test_seven_dimensions_default_to_the_reference_and_others_guess_no_gripper() -> None:
    assert ActionSpec.default(7).dimensions[6] == DimensionSpec(
        normalize=False, gripper=True, invert=True
    )
    assert not any(d.gripper or d.invert for d in ActionSpec.default(14).dimensions)
    with pytest.raises(UserError, match=r"0\.\.6"):
        ActionSpec.with_grippers(7, (7,), invert=True)


@given(num_bins=st.integers(2, 1024), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_bins_equal_digitize_and_centres_lie_in_their_bin(num_bins: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = -1 + 2 * np.arange(num_bins) / (num_bins - 1)
    x = np.concatenate([rng.uniform(-1.2, 1.2, 50), edges[:20] + 1e-9, [-1.0, 1.0]])
    bins = bin_actions(x, num_bins)
    np.testing.assert_array_equal(bins, np.digitize(np.clip(x, -1, 1), edges))
    assert bins.min() >= 1
    assert bins.max() == num_bins
    assert (
        np.abs(bin_centers(bins, num_bins) - np.clip(x, -1, 1)) <= 1 / (num_bins - 1) + 1e-12
    ).all()


def test_centres_of_the_specification() -> None:
    centres = bin_centers(np.array([1, 128, 255, 256]))
    np.testing.assert_allclose(centres, [-1 + 1 / 255, 0.0, 0.99607843, 0.99607843], atol=1e-8)


def test_a_row_of_the_specification_decodes_to_its_numbers() -> None:
    row = ["áĴĮ", "ìĿ¿", "ï¤ħ", "Ôĳ", "áģ¼", "ï¨Ĥ", "ðŁİĳ"]
    q01 = np.array([-0.7454732, -0.66160715, -0.9375, -0.10714286, -0.20678571, -0.18428572, 0])
    q99 = np.array([0.9375, 0.87589288, 0.93214285, 0.10392857, 0.17678571, 0.14571427, 1])
    bins = np.array([tokens.action_bin(token) for token in row])
    decoded = unnormalize_reference(bin_centers(bins), q01, q99, [True] * 7)
    expected = [
        -0.0029850532,
        0.5292016957,
        0.1366281493,
        0.0000483198,
        -0.0270336137,
        0.0001260402,
        0.9960784314,
    ]
    np.testing.assert_allclose(decoded, expected, atol=2e-8)


@pytest.mark.parametrize("num_bins", [1, 1025])
def test_impossible_bin_counts_are_named(num_bins: int) -> None:
    with pytest.raises(UserError, match=r"2\.\.1024"):
        bin_actions(np.zeros(1), num_bins)


def test_chunk_repeats_the_last_step_and_says_how_many_are_real() -> None:
    bins = np.arange(1, 4, dtype=np.int16)[:, None]
    chunks, valid = chunk(bins, 2)
    assert chunks[:, :, 0].tolist() == [[1, 2], [2, 3], [3, 3]]
    assert valid.tolist() == [2, 2, 1]
    assert chunks.dtype == np.int16


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 1, 1, 1], "{0, 1}: 75 % at 1"),
        ([-1, 1, -1, 1], "{-1, 1}: 50 % at 1"),
        ([0, 0.04, 0.08, 0.05], "continuous 0..0.08, 50 % at the two ends"),
        ([1, 1, 1, 1], "constant 1"),
    ],
)
def test_gripper_convention_is_described_in_words(values: list[float], words: str) -> None:
    action = np.zeros((4, 7), dtype=np.float32)
    action[:, 6] = values
    observed = observe_gripper(action)
    assert observed.words == words
    assert observed.dimension == 6


def test_a_spec_that_loses_information_is_named() -> None:
    action = np.random.default_rng(0).normal(size=(1000, 7)).astype(np.float32)
    action[:, 6] = np.where(np.arange(1000) % 2, 1, -1)
    assert any("dimension 6" in w and "clipped" in w for w in spec_warnings(statistics_of(action)))
    action[:, 6] = np.arange(1000) < 5
    normalized = ActionSpec.with_grippers(7, (6,), invert=False, normalize=True)
    warnings = spec_warnings(statistics_of(action, normalized))
    assert any("dimension 6" in w and "fewer than 1 %" in w for w in warnings)
    assert spec_warnings(statistics_of(action)) == []


def test_key_resolution_names_the_keys() -> None:
    assert resolve_key(["a"], None) == "a"
    assert resolve_key(["a", "b"], "b") == "b"
    with pytest.raises(UserError, match="a, b"):
        resolve_key(["b", "a"], None)
    with pytest.raises(UserError, match=r"'c'.*a, b"):
        resolve_key(["a", "b"], "c")


def test_negative_zero_does_not_tell_the_order_of_arrival() -> None:
    zeros = np.array([[0.0], [-0.0], [-0.0], [0.0]], dtype=np.float32)
    hashes = {statistics_of(zeros[list(order)]).sha256() for order in ((0, 1, 2, 3), (1, 0, 3, 2))}
    assert len(hashes) == 1
    assert not np.signbit(feature_statistics(zeros).min).any()
