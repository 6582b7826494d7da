from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import GOLDEN, foreign, needs_golden

from molmoact_data.errors import UserError
from molmoact_data.labels.actions import bin_centers, unnormalize_reference
from molmoact_data.labels.instructions import special_mark
from molmoact_data.text import tokens
from molmoact_data.text.prompts import answer, format_actions, parse, question

CODES = [k % 128 for k in range(100)]
TRACE = [[153, 91], [43, 17]]
BINS = [[1, 128, 255, 256, 2, 3, 4]] * 2
TASK = "pick up the black bowl next to the ramekin and place it on the plate"


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def cases() -> list[dict[str, Any]]:
    path = GOLDEN / "training_sample" / "cases.json"
    return json.loads(path.read_text()) if path.exists() else []


@needs_golden
@pytest.mark.parametrize("case", cases(), ids=lambda case: case["name"])
def test_question_and_answer_equal_the_training_samples(case: dict[str, Any]) -> None:
    """The samples use the two-image wording for one image as well, as the reference's fine-tuning does."""
    kind = case["name"].partition("_")[0]
    parsed = parse(case["answer"], action_dim=7)
    assert parsed.problems == []
    assert question(TASK, kind, 2) == case["question"]
    assert question(TASK, kind, 1, wording="reference") == case["question"]
    rendered = answer(
        kind,
        depth_codes=parsed.depth_codes[0] if parsed.depth_codes else None,
        trace=parsed.traces or None,
        action_bins=parsed.action_bins,
        num_images=2,
    )
    assert rendered == case["answer"]


@needs_golden
def test_real_generations_parse_as_the_reference_parses_them() -> None:
    rows = jsonl(foreign("generations") / "molmoact_libero_spatial.jsonl")
    stats = json.loads((foreign("generations") / "norm_stats.json").read_text())["libero_spatial"][
        "action"
    ]
    named = {}
    for index, row in enumerate(rows):
        parsed = parse(row["text"], action_dim=7)
        assert [tokens.encode_depth(codes) for codes in parsed.depth_codes] == row["depth"]
        assert parsed.traces == row["trace"]
        centres = bin_centers(np.array(parsed.action_bins))
        action = unnormalize_reference(centres, stats["q01"], stats["q99"], stats["mask"])
        np.testing.assert_allclose(action, row["action"], atol=1e-14)
        if parsed.problems:
            named[index] = parsed.problems
    assert len(rows) == 80
    assert named == {
        17: ["unknown action token 'ëĤĤ' at row 6, dimension 4: read as bin 1"],
        62: ["out-of-range action token 'ðĿķĭ' at row 5, dimension 5: read as bin 256"],
    }


@needs_golden
def test_real_generations_are_what_we_would_render() -> None:
    for row in jsonl(foreign("generations") / "molmoact_libero_spatial.jsonl"):
        parsed = parse(row["text"], action_dim=7)
        if not parsed.problems:
            rendered = answer(
                "reasoning",
                depth_codes=parsed.depth_codes[0],
                trace=parsed.traces,
                action_bins=parsed.action_bins,
                num_images=2,
            )
            assert " " + rendered == row["text"]


def test_single_image_wording_as_released() -> None:
    assert question("close the box", "reasoning", 1) == (
        "The task is close the box. What is the action that the robot should take. To figure out the action "
        "that the robot should take to close the box, let's think through it step by step. First, what is the "
        "depth map for this image? Second, what is the trajectory of the end effector? Based on the depth map "
        "of the image and the trajectory of the end effector, what is the action that the robot should take?"
    )
    assert question("close the box", "trajectory", 1) == (
        "The task is close the box. Notice that the trajectory of the end effector is annotated on the image. "
        "Based on the trajectory annotated on the image, what is the action that the robot should take?"
    )
    text = answer("reasoning", depth_codes=[5], trace=[TRACE], action_bins=[1, 2], num_images=1)
    assert text == (
        "The depth map of the image is <DEPTH_START><DEPTH_5><DEPTH_END>. The trajectory of the end effector is "
        "[[153,91],[43,17]]. Based on these information, the action that the robot should take is [â½Ĺ, âºŁ]."
    )


def test_reference_wording_writes_the_trace_twice() -> None:
    text = answer(
        "reasoning",
        depth_codes=[5],
        trace=[TRACE],
        action_bins=[[1, 2]],
        num_images=2,
        wording="reference",
    )
    assert text == (
        "The depth map of the image is <DEPTH_START><DEPTH_5><DEPTH_END>. The trajectory of the left end effector "
        "is [[153, 91], [43, 17]]. The trajectory of the right end effector is [[153, 91], [43, 17]]. Based on "
        "this information, the action that the robot should take is [[â½Ĺ, âºŁ]]."
    )


def test_two_arms_are_told_apart() -> None:
    text = answer("trace", trace=[TRACE, TRACE[:1]], num_images=1)
    assert text == (
        "The trajectory of the left end effector is [[153,91],[43,17]]. "
        "The trajectory of the right end effector is [[153,91]]."
    )


@pytest.mark.parametrize("kind", ["reasoning", "trajectory", "action", "depth", "trace"])
def test_a_missing_part_is_an_error_not_a_blank(kind: Any) -> None:
    with pytest.raises(ValueError, match="needs"):
        answer(kind, num_images=1)


def test_an_empty_trace_is_an_error_not_a_blank() -> None:
    with pytest.raises(ValueError, match="no trace"):
        answer("reasoning", depth_codes=CODES, trace=[[]], action_bins=BINS, num_images=2)


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UserError, match="reasoning"):
        question("x", "resoning", 1)  # type: ignore[arg-type]


def good_text() -> str:
    return answer("reasoning", depth_codes=CODES, trace=[TRACE], action_bins=BINS, num_images=2)


def test_answer_parses_back() -> None:
    parsed = parse(good_text(), action_dim=7)
    assert parsed.depth_codes == [CODES]
    assert parsed.traces == [TRACE]
    assert parsed.action_bins == BINS
    assert parsed.problems == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[43,17]", "[28,,109]", "malformed trace dropped: [[153,91],[28,,109]]"),
        ("[43,17]", "[43,300]", "trace leaves 0..255"),
        ("<DEPTH_7>", "", "depth span has 99 codes, expected 100"),
        ("<DEPTH_7>", "<DEPTH_128>", "depth code 128 is outside the codebook of 128"),
        ("<DEPTH_7>", "oops<DEPTH_7>", "depth span holds other text: 'oops'"),
        ("<DEPTH_END>", "", "depth span without an end"),
        ("ðŁİ¿, ", "", "action row has 6 values, expected 7: dropped"),
        ("]].", "", "unbalanced brackets"),
    ],
)
def test_every_defect_is_named(old: str, new: str, problem: str) -> None:
    parsed = parse(good_text().replace(old, new), action_dim=7)
    assert any(problem in p for p in parsed.problems), parsed.problems


def test_a_text_without_actions_says_so() -> None:
    assert parse("nothing here", action_dim=7).problems == ["no action row of 7 values"]


def test_action_strings_round_trip_as_text() -> None:
    bins = np.arange(1, 257).reshape(-1, 8)
    assert parse(format_actions(bins), action_dim=8).action_bins == bins.tolist()


@pytest.mark.parametrize(
    "mark", [*tokens.image_tokens(), tokens.DEPTH_START, tokens.depth_token(3)]
)
@pytest.mark.parametrize("kind", ["reasoning", "trajectory", "action", "depth", "trace"])
def test_no_question_carries_a_special_token_of_a_person(mark: str, kind: Any) -> None:
    with pytest.raises(UserError, match="special token"):
        question(f"pick up the cup{mark}", kind, 1)


def test_every_special_token_of_the_vocabulary_is_known_as_one() -> None:
    every = (
        *tokens.image_tokens(),
        *tokens.depth_tokens(),
        tokens.DEPTH_END,
        tokens.filler_token(7),
    )
    assert [text for text in every if special_mark(f"a{text}b") is None] == []
