"""MolmoAct2 acts: against the public `predict_action`, under the grammar, and refusing what it cannot do."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_molmoact2 import (
    FOLDER,
    RELATIVE,
    THINK,
    TINY,
    arrays,
    needs_molmoact2,
    tensors,
    windows,
)

from molmoact_data.errors import UserError
from molmoact_data.policies import Observation, Policy, PredictionFailed, load_policy
from molmoact_train.families.molmoact2 import policy as policies
from molmoact_train.families.molmoact2.answers import ActionGrammar
from molmoact_train.families.molmoact2.decoding import Decoding
from molmoact_train.families.molmoact2.fast import FastTokenizer
from molmoact_train.families.molmoact2.images import CutImages
from molmoact_train.families.molmoact2.policy import MolmoAct2Policy, rollout_seed
from molmoact_train.families.molmoact2.processor import Prompt

pytestmark = needs_molmoact2
TASK = "Put the bowl on the plate."


def observation(**changes: Any) -> Observation:
    sample = arrays("training_sample.npz")
    seen = Observation(
        images={"front": sample["image_0"][0], "wrist": sample["image_1"][0]},
        instruction=TASK,
        state=arrays("sampling.npz")["predict_raw_state"],
    )
    return dataclasses.replace(seen, **changes)


def act(policy: MolmoAct2Policy, noise: np.ndarray, seen: Observation) -> np.ndarray:
    """The answer with the golden noise instead of drawn one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies.torch, "randn", lambda *_, **__: torch.from_numpy(noise))
        return policy.act(seen).actions_HD


def test_actions_in_robot_units_equal_the_original() -> None:
    golden = arrays("sampling.npz")
    policy = load_policy(TINY, statistics_key="libero", num_steps=4, device="cpu")
    assert isinstance(policy, MolmoAct2Policy)
    assert isinstance(policy, Policy)
    found = act(policy, golden["predict_noise"], observation())
    expected = golden["predict_actions"][0]
    assert found.shape == expected.shape == (policy.info.horizon, policy.info.action_dim)
    assert np.abs(found - expected).max() < RELATIVE * np.abs(expected).max()


def test_a_seed_decides_the_noise_of_an_episode() -> None:
    policy = MolmoAct2Policy.from_folder(TINY, statistics_key="libero", num_steps=2, device="cpu")

    def episode(seed: int) -> np.ndarray:
        policy.reset(seed)
        return np.stack([policy.act(observation()).actions_HD for _ in range(2)])

    first, second, again = episode(1), episode(2), episode(1)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first[0] - first[1]).max() > 1e-3, "each call draws anew"


def test_seeds_of_the_released_evaluation() -> None:
    """first = 7 + 3 * 2; 1 * 13 + 2 * 14."""
    assert rollout_seed(7, 3, 2) == 41
    assert rollout_seed(7, 3, 1) == 10


def test_greedy_tokens_equal_the_original() -> None:
    golden, given = arrays("discrete.npz"), tensors("sampling.npz")
    policy = MolmoAct2Policy.from_folder(TINY, statistics_key="libero", device="cpu")
    places = windows(given["prompt_image_token_pooling"], 2).numpy()
    pictures = CutImages(given["prompt_pixel_values_u8"].numpy(), places, ())
    prompt = Prompt(golden["prompt_input_ids"][0], pictures, "")
    decoding = Decoding(policy.model, [prompt])
    pending, found = list[int](), []
    for _ in golden["greedy_ids"]:
        found.append(int(decoding.logits(decoding.feed([pending])).argmax()))
        pending = [found[-1]]
    assert found == golden["greedy_ids"].tolist()


def test_under_the_grammar_an_answer_is_always_a_whole_chunk() -> None:
    """Random weights write nonsense freely; under the grammar they write H x D coefficients."""
    settings: dict[str, Any] = {
        "statistics_key": "libero", "mode": "discrete", "action_tokenizer": FOLDER / "fast", "device": "cpu",
    }  # fmt: skip
    policy = MolmoAct2Policy.from_folder(TINY, **settings)
    found = policy.act(observation())
    assert found.actions_HD.shape == (policy.info.horizon, 7)
    assert found.text.startswith("<action_start><action_")
    free = MolmoAct2Policy.from_folder(TINY, **settings, constrained=False)
    with pytest.raises(PredictionFailed, match=r"no_end|undecodable"):
        free.act(observation())


def test_the_grammar_counts_symbols_as_the_tokenizer_does() -> None:
    fast = FastTokenizer.from_folder(FOLDER / "fast")
    grammar = ActionGrammar.of(fast, 2048)
    for case in json.loads((FOLDER / "fast_cases.json").read_text())[:5]:
        missing, begun = case["horizon"] * case["dim"], 0
        for token in case["token_ids"]:
            assert grammar.allowed(begun, missing)[token]
            missing -= int(grammar.symbols[begun, token])
            begun = int(grammar.begun[begun, token])
        assert (missing, begun) == (0, 0)
        assert not grammar.allowed(0, 0).any(), "nothing may follow a whole chunk"


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"statistics_key": "droid"}, {}, "unknown tag 'droid'"),
    ({"statistics_key": None}, {}, "knows several robots"),
    ({"think": True}, {}, "not trained with depth"),
    ({"mode": "discrete"}, {}, "need the action tokenizer"),
    ({"num_steps": 0}, {}, "at least 1"),
    ({}, {"state": None}, "the observation has none"),
    ({}, {"state": np.zeros(7, np.float32)}, "7 numbers, but the statistics are of 8"),
    ({}, {"state": np.full(8, np.nan, np.float32)}, "NaN"),
    ({}, {"images": {"front": np.zeros((8, 8, 3), np.uint8)}}, "trained on 2 cameras"),
    ({}, {"images": {}}, "the observation has 0"),
    ({}, {"instruction": "  "}, "instruction is empty"),
    (
        {},
        {"images": {"a": np.zeros((8, 8, 3)), "b": np.zeros((8, 8, 3), np.uint8)}},
        "RGB uint8",
    ),
]


@pytest.mark.parametrize(("options", "changes", "said"), BAD)
def test_what_cannot_be_answered_is_one_line(
    options: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    settings = {"statistics_key": "libero", "device": "cpu", **options}
    with pytest.raises(UserError) as refused:
        MolmoAct2Policy.from_folder(TINY, **settings).act(observation(**changes))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_statistics_that_the_expert_cannot_act_on_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder, copy_function=shutil.copyfile)
    stats = json.loads((folder / "norm_stats.json").read_text())
    stats["metadata_by_tag"]["libero"]["action_horizon"] = 13
    (folder / "norm_stats.json").write_text(json.dumps(stats))
    with pytest.raises(UserError, match="13 steps ahead, the expert at most 12"):
        MolmoAct2Policy.from_folder(folder, statistics_key="libero", device="cpu")
    (folder / "norm_stats.json").unlink()
    with pytest.raises(UserError, match=r"norm_stats\.json is missing"):
        MolmoAct2Policy.from_folder(folder, statistics_key="libero", device="cpu")


def test_a_trace_does_not_steer_it() -> None:
    policy = MolmoAct2Policy.from_folder(TINY, statistics_key="libero", device="cpu")
    with pytest.raises(UserError, match="cannot be steered"):
        policy.act(observation(), trace=[[0, 0], [1, 1]])


def test_half_precision_weights_keep_a_full_precision_trajectory() -> None:
    """bf16 on the CPU: within the share that rounding of the weights explains."""
    exact = MolmoAct2Policy.from_folder(TINY, statistics_key="libero", device="cpu", seed=0)
    coarse = MolmoAct2Policy.from_folder(
        TINY, statistics_key="libero", device="cpu", dtype="bfloat16", seed=0
    )
    a, b = exact.act(observation()).actions_HD, coarse.act(observation()).actions_HD
    assert np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_only_the_thinking_checkpoint_thinks_by_default() -> None:
    loaded = [
        MolmoAct2Policy.from_folder(folder, statistics_key="libero", device="cpu")
        for folder in (TINY, THINK)
    ]
    assert [policy.options.think for policy in loaded] == [False, True]
