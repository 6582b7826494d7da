"""MolmoAct2's words and numbers against the public implementation: action tokens, statistics, prompts, pictures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import foreign
from golden_molmoact2 import FOLDER, TINY, arrays, needs_molmoact2
from transformers import AutoTokenizer

from molmoact_data.errors import UserError
from molmoact_data.statistics import feature_statistics
from molmoact_train.families.molmoact2 import images, prompts, vocabulary
from molmoact_train.families.molmoact2.fast import FastTokenizer, Undecodable, read_answer
from molmoact_train.families.molmoact2.network import MolmoAct2Config
from molmoact_train.families.molmoact2.processor import MolmoAct2Processor
from molmoact_train.families.molmoact2.statistics import (
    MODES,
    NormStats,
    Tag,
    TagStatistics,
    default_mask,
)

pytestmark = needs_molmoact2


def answers(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


# Action tokens


def test_action_tokens_equal_the_original() -> None:
    tokenizer, golden = FastTokenizer.from_folder(FOLDER / "fast"), arrays("fast.npz")
    for case in answers("fast_cases.json"):
        number, ids = case["case"], case["token_ids"]
        if number == "batch":
            assert [tokenizer.encode(chunk) for chunk in golden["batch"]] == ids
        elif number != "bad":
            chunk = golden[f"actions_{number}"]
            assert tokenizer.encode(chunk) == ids
            if tokenizer.survives(chunk):
                found = tokenizer.decode(ids, *chunk.shape)
                np.testing.assert_allclose(found, golden[f"decoded_{number}"], atol=1e-6)


def test_what_the_original_decodes_to_zeros_is_an_error() -> None:
    """Symbols outside the fitted alphabet (case 5) and one id too few (case bad)."""
    tokenizer, golden = FastTokenizer.from_folder(FOLDER / "fast"), arrays("fast.npz")
    cases = {case["case"]: case["token_ids"] for case in answers("fast_cases.json")}
    assert not golden["decoded_5"].any()
    assert not tokenizer.survives(golden["actions_5"])
    for ids, size in ((cases[5], (30, 14)), (cases["bad"], (10, 7))):
        with pytest.raises(Undecodable, match="coefficients instead of"):
            tokenizer.decode(ids, *size)
    with pytest.raises(Undecodable, match="no action token"):
        tokenizer.decode([], 1, 1)


def test_an_answer_is_read_as_in_the_original() -> None:
    tokenizer, golden = FastTokenizer.from_folder(FOLDER / "fast"), arrays("discrete.npz")
    actions = MolmoAct2Config.from_folder(TINY).action_tokens
    assert actions is not None
    for stream, answer in (
        ("stream", "actions"),
        ("stream_with_junk", "actions_with_junk"),
        ("stream_without_start", "actions_without_start"),
    ):
        ids = read_answer(
            golden[stream].tolist(),
            start=actions.start,
            end=actions.end,
            first=actions.first,
            count=actions.count,
        )
        found = tokenizer.decode(ids, *golden[answer].shape[1:])
        np.testing.assert_allclose(found, golden[answer][0], atol=1e-6)


def test_a_tokenizer_of_our_own_loses_no_symbol_and_is_read_by_the_original(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chunks = [rng.normal(size=(8, 5)).cumsum(0).clip(-1, 1) for _ in range(60)]
    fitted = FastTokenizer.fit(chunks, num_ids=600)
    assert all(fitted.survives(chunk) for chunk in chunks)
    fitted.save(tmp_path)
    again = FastTokenizer.from_folder(tmp_path)
    assert [again.encode(c) for c in chunks] == [fitted.encode(c) for c in chunks]
    theirs = pytest.importorskip(
        "lerobot.policies.molmoact2.molmoact2_hf_model.action_tokenizer"
    ).UniversalActionProcessor.from_pretrained(str(tmp_path))
    assert theirs(np.stack(chunks)) == [fitted.encode(c) for c in chunks]
    assert b"".join(fitted.token_bytes()[i] for i in fitted.encode(chunks[0])).decode()


def test_too_fine_a_scale_is_refused() -> None:
    with pytest.raises(UserError, match="do not fit into 50 ids"):
        FastTokenizer.fit([np.linspace(-1, 1, 12)[:, None]], num_ids=50, scale=1000)


# Statistics


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tag", ["libero", "yam_dual_molmoact2", "all_normalised"])
def test_normalising_equals_the_original(tag: str, mode: Any) -> None:
    golden = arrays("normalisation.npz")
    stats = NormStats.read(TINY / "norm_stats.json").tag(tag).action
    found = stats.normalise(golden[f"{tag}_x"], mode)
    np.testing.assert_array_equal(found, golden[f"{tag}_{mode}_normalize"])
    found = stats.unnormalise(golden[f"{tag}_y"], mode)
    np.testing.assert_array_equal(found, golden[f"{tag}_{mode}_unnormalize"])


def test_a_constant_dimension_is_0_here_and_an_extreme_in_lerobot() -> None:
    golden = arrays("normalisation.npz")
    theirs = golden["yam_dual_molmoact2_lerobot_normalize"][:, 3]
    stats = NormStats.read(TINY / "norm_stats.json").tag("yam_dual_molmoact2").action
    assert (np.abs(theirs) == 1).all()  # whatever it is exactly, LeRobot clamps it to an end
    assert not stats.normalise(golden["yam_dual_molmoact2_x"])[:, 3].any()


def test_default_masks_equal_the_original() -> None:
    for case in answers("gripper_masks.json"):
        low = np.zeros(len(case["names"])) + case["last_min"]
        high = np.zeros(len(case["names"])) + case["last_max"]
        settings = {"normalize_gripper": case["normalize_gripper"]}
        if isinstance(case["mask"], str):
            with pytest.raises(UserError, match="--normalize-gripper"):
                default_mask(case["names"], low, high, **settings)
        else:
            assert default_mask(case["names"], low, high, **settings).tolist() == case["mask"]


def test_statistics_are_written_as_they_were_read() -> None:
    fields = json.loads((TINY / "norm_stats.json").read_text())
    assert NormStats.read(TINY / "norm_stats.json").to_json() == fields


def test_a_tag_of_our_own_data_reads_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    numbers = TagStatistics.of(
        feature_statistics(values), ["x", "y", "gripper"], 50, normalize_gripper=False
    )
    tag = Tag.new(
        "mine", setup_type="arm", control_mode="pose", camera_keys=["observation.images.top"],
        action_horizon=8, action_dim=32, normalize_gripper=False, action=numbers, state=None,
    )  # fmt: skip
    stats = NormStats.read(TINY / "norm_stats.json").with_tags({"mine": tag})
    (tmp_path / "norm_stats.json").write_text(json.dumps(stats.to_json()))
    again = NormStats.read(tmp_path / "norm_stats.json")
    assert set(again.tags) == {"libero", "yam_dual_molmoact2", "all_normalised", "mine"}
    assert again.tag("mine").action.mask.tolist() == [True, True, False]
    back = again.tag("mine").action.unnormalise(again.tag("mine").action.normalise(values))
    inside = (values >= np.quantile(values, 0.01, axis=0)) & (
        values <= np.quantile(values, 0.99, axis=0)
    )
    np.testing.assert_allclose(back[inside], values[inside], atol=1e-6)


def test_statistics_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    stats = NormStats.read(TINY / "norm_stats.json")
    for wrong, said in (
        (lambda: stats.tag("libro"), "libero"),
        (lambda: stats.tag(None), "knows several robots"),
        (lambda: stats.tag("libero").action.normalise(np.zeros(6)), "statistics are of 7"),
        (lambda: NormStats.read(tmp_path / "none.json"), "is missing"),
        (lambda: NormStats.from_json({"format": "other"}), "not statistics of MolmoAct2"),
    ):
        with pytest.raises(UserError) as refused:
            wrong()
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_state_outside_the_training_range_is_named() -> None:
    state = NormStats.read(TINY / "norm_stats.json").tag("libero").state
    assert state is not None
    middle = (state.values["min"] + state.values["max"]) / 2
    assert state.outside(middle) == []
    middle[2] += 10
    assert state.outside(middle) == [state.names[2]]


# Prompts, vocabulary and pictures, with the real geometry and vocabulary


@cache
def real_processor() -> MolmoAct2Processor:
    tokenizer = AutoTokenizer.from_pretrained(str(foreign("qwen2.5-tokenizer"))).backend_tokenizer
    tokenizer.add_tokens(["<tool_response>", "</tool_response>", "<think>", "</think>"])
    assert vocabulary.extend(tokenizer) == answers("processor.json")["vocabulary"]["<im_start>"]
    end = tokenizer.token_to_id(prompts.TURN_END)
    config = dataclasses.replace(MolmoAct2Config.from_folder(TINY), bos_id=end, eos_id=end)
    layout = images.ImageLayout.from_folder(TINY)
    cut = dataclasses.replace(layout.cut, base_image_input_size=(378, 378), overlap_margins=(4, 4))
    stats = NormStats.read(TINY / "norm_stats.json")
    return MolmoAct2Processor(tokenizer, dataclasses.replace(layout, cut=cut), config, stats)


def test_the_vocabulary_equals_the_original() -> None:
    golden, tokenizer = answers("processor.json"), real_processor().tokenizer
    found = {token: tokenizer.token_to_id(token) for token in golden["vocabulary"]}
    assert found == golden["vocabulary"]
    assert tokenizer.get_vocab_size() == golden["vocabulary_size"]
    for token in vocabulary.robot_tokens():
        assert len(vocabulary.encode(tokenizer, token)) == 1


@pytest.mark.parametrize("number", range(5))
def test_prompts_equal_the_original(number: int) -> None:
    golden, processor = arrays("processor.npz"), real_processor()
    case = answers("processor.json")["cases"][number]
    given = [golden[f"{number}_image_{j}"] for j in range(len(case["sizes"]))]
    tag = processor.stats.tag(case["tag"])
    assert tag.state is not None
    state = golden[f"{number}_state_raw"]
    np.testing.assert_array_equal(tag.state.normalise(state), golden[f"{number}_state_normalised"])
    found = processor.prompt(case["style"], case["task"], tag, given, state)
    assert found.text == case["prompt"]
    np.testing.assert_array_equal(found.input_ids, golden[f"{number}_input_ids"][0])
    np.testing.assert_array_equal(
        found.images.crops_UPC[0, :150], golden[f"{number}_pixel_values_u8_first_patches"]
    )
    sums = found.images.to_released().astype(np.float64).sum(axis=(1, 2))
    np.testing.assert_allclose(sums, golden[f"{number}_pixel_sums"], rtol=1e-5)
    pooling = golden[f"{number}_image_token_pooling"].astype(np.int64).reshape(len(given), -1, 4)
    for place, windows in enumerate(found.images.windows_V4.reshape(len(given), -1, 4)):
        own = np.where(windows >= 0, windows - place * 729, -1)
        np.testing.assert_array_equal(own, pooling[place])


def test_overlapping_crops_equal_the_original() -> None:
    golden, processor = arrays("processor.npz"), real_processor()
    cut = dataclasses.replace(processor.layout.cut, crop_mode="overlap-and-resize-c2")
    layout = dataclasses.replace(processor.layout, cut=cut)
    found = images.cut([golden["overlap_image"]], layout)
    ids = [processor.tokenizer.token_to_id(token) for token in found.blocks[0]]
    assert ids == golden["overlap_input_ids"][0][1 : 1 + len(ids)].tolist()
    # The overview and the only tile are equal here: kept once, read by both halves of the windows.
    assert len(found.crops_UPC) == 1 < golden["overlap_num_crops"][0]
    np.testing.assert_array_equal(
        found.crops_UPC[0, :150], golden["overlap_last_crop_u8_first_patches"]
    )
    pooling = golden["overlap_pooling"].astype(np.int64)
    np.testing.assert_array_equal(found.windows_V4, np.where(pooling >= 0, pooling % 729, -1))


def test_tasks_are_normalised_as_in_the_original() -> None:
    for case in answers("processor.json")["question_texts"]:
        assert prompts.normalise_task(case["raw"]) == case["normalised"]


def test_the_length_rule_equals_lerobots() -> None:
    for case in answers("processor.json")["sequence_budget"]:
        found = prompts.sequence_budget(
            case["num_images"], case["state_dim"], case["action_dim"], case["action_horizon"],
            with_action_tokens=case["include_discrete_action"],
        )  # fmt: skip
        assert found == case["max_sequence_length"]


def test_a_state_that_is_not_finite_has_no_bin() -> None:
    with pytest.raises(ValueError, match="not finite"):
        prompts.state_bins(np.array([0.0, np.nan]))


def test_a_tokenizer_of_another_release_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text())
    config["depth_token_start_id"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="not of the same release"):
        MolmoAct2Processor.from_folder(folder)
