"""The grammar against real generations and the prompt code; decoding against transformers' own generate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import foreign, needs_golden
from PIL import Image

from molmoact_data.errors import UserError
from molmoact_data.pictures import overlay
from molmoact_data.pictures.film import codes_picture
from molmoact_data.text import prompts, tokens
from molmoact_train.debug.tiny import tiny_processor, write_tiny_checkpoint
from molmoact_train.families.molmoact.answers import write_pictures
from molmoact_train.families.molmoact.generate import decode_constrained, decode_free
from molmoact_train.families.molmoact.grammar import AnswerShape, Grammar, build_grammar, build_trie
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.families.molmoact.predictor import (
    PredictOptions,
    Predictor,
    checked_trace,
    robot_actions,
)
from molmoact_train.families.molmoact.processor import MolmoActProcessor
from molmoact_train.weights import check_is_model

STATS = {"robot": {"action": {"q01": [-1.0, -2.0], "q99": [1.0, 2.0], "mask": [True, True]}}}
SMALL = AnswerShape(action_dim=2, chunk_size=2, depth_codes=100, num_images=1)


@pytest.fixture(scope="module")
def processor() -> MolmoActProcessor:
    return tiny_processor()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), norm_stats=STATS, seed=3)


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    return Predictor.from_pretrained(checkpoint, device="cpu")


def walk(grammar: Grammar, rng: np.random.Generator) -> list[int]:
    """A random path through the automaton."""
    state, ids = grammar.start, []
    while not grammar.is_end(state):
        successors = grammar.successors(state)
        token = rng.choice(sorted(successors))
        ids.append(int(token))
        state = successors[token]
    return ids


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@needs_golden
def test_accepts_real_generations_exactly_where_they_are_well_formed() -> None:
    """80 outputs of a released model, in its own tokens; a few have a bad token or a malformed trace."""
    qwen = MolmoActProcessor.from_pretrained(foreign("qwen2.5-tokenizer"))
    grammar = build_grammar(AnswerShape(action_dim=7), qwen.encode_many, qwen.eos_id)
    lines = (foreign("generations") / "molmoact_libero_spatial.jsonl").read_text().splitlines()
    longest, refused = 0, 0
    for line in lines:
        text = json.loads(line)["text"]
        ids = [*qwen.encode(f" {text.strip()}"), qwen.eos_id]
        problems = prompts.parse(text, action_dim=7).problems
        assert grammar.accepts(ids) == (not problems), problems
        longest, refused = max(longest, len(ids)), refused + bool(problems)
    assert 0 < refused < 10
    assert longest <= grammar.max_tokens


@pytest.mark.parametrize("wording", ["released", "reference"])
@pytest.mark.parametrize(
    "shape",
    [
        {"action_dim": 7, "min_points": 1},
        {"action_dim": 3, "chunk_size": None, "num_images": 1, "min_points": 1},
        {"action_dim": 1, "chunk_size": 2, "num_arms": 2, "min_points": 2, "max_points": 3},
        {"action_dim": 14, "kind": "trajectory"},
        {"action_dim": 1, "kind": "depth", "depth_codes": 4, "codebook_size": 8},
        {"action_dim": 1, "kind": "trace", "num_images": 1, "min_points": 1},
    ],
)
def test_every_path_is_an_answer_of_the_prompt_code(
    wording: Any, shape: dict[str, Any], processor: MolmoActProcessor
) -> None:
    """Random paths, read by the parser and written again, must give the same text and the same tokens."""
    chosen = AnswerShape(**shape, wording=wording)
    grammar = build_grammar(chosen, processor.encode_many, processor.eos_id)
    rng = np.random.default_rng(1)
    for _ in range(5):
        ids = walk(grammar, rng)
        text = processor.decode(ids)
        parsed = prompts.parse(text, action_dim=chosen.action_dim)
        arms = [[[int(v) for v in xy] for xy in trace] for trace in parsed.traces]
        if wording == "reference" and chosen.num_arms == 1 and arms:
            arms = arms[
                :1
            ]  # that wording says one arm's trace twice; paths may say two different ones
            continue
        bins = parsed.action_bins
        again = prompts.answer(
            chosen.kind,
            depth_codes=(parsed.depth_codes or [None])[0],
            trace=arms or None,
            action_bins=(bins[0] if chosen.chunk_size is None else bins) if bins else None,
            num_images=chosen.num_images,
            wording=wording,
        )
        assert text == f" {again}"
        assert ids == [*processor.encode(text), processor.eos_id]
        assert len(ids) <= grammar.max_tokens


def test_language_of_a_small_shape_is_complete(processor: MolmoActProcessor) -> None:
    """All paths of two depth codes out of three, and of one action, against the products of their strings."""
    shape = AnswerShape(action_dim=1, kind="depth", depth_codes=2, codebook_size=3, num_images=1)
    grammar = build_grammar(shape, processor.encode_many, processor.eos_id)
    expected = {
        f" The depth map of the image is {tokens.encode_depth([a, b])}."
        for a in range(3)
        for b in range(3)
    }
    assert set(map(processor.decode, all_paths(grammar))) == expected
    one = AnswerShape(action_dim=1, chunk_size=1, kind="trajectory", num_images=1)
    grammar = build_grammar(one, processor.encode_many, processor.eos_id)
    found = [
        prompts.parse(processor.decode(p), action_dim=1).action_bins for p in all_paths(grammar)
    ]
    assert sorted(found) == [[[d]] for d in range(1, 257)]


def all_paths(grammar: Grammar) -> list[list[int]]:
    paths, open_paths = [], [([], grammar.start)]
    while open_paths:
        ids, state = open_paths.pop()
        if grammar.is_end(state):
            paths.append(ids)
        open_paths += [([*ids, t], s) for t, s in grammar.successors(state).items()]
    return paths


def test_a_trace_has_the_points_asked_for(processor: MolmoActProcessor) -> None:
    rng = np.random.default_rng(0)
    for low, high in ((0, 2), (1, 1), (2, 4)):
        shape = AnswerShape(action_dim=1, kind="trace", min_points=low, max_points=high)
        grammar = build_grammar(shape, processor.encode_many, processor.eos_id)
        texts = [processor.decode(walk(grammar, rng)) for _ in range(60)]
        assert {t.count(",") - t.count("],[") for t in texts} == set(range(low, high + 1))
        assert (" is []." in " ".join(texts)) == (low == 0)


def test_budget_is_the_longest_path(processor: MolmoActProcessor) -> None:
    shape = AnswerShape(action_dim=1, chunk_size=1, kind="trajectory", num_images=1)
    grammar = build_grammar(shape, processor.encode_many, processor.eos_id)
    assert grammar.max_tokens == max(map(len, all_paths(grammar)))


def test_a_tokenizer_that_joins_across_cuts_is_refused(processor: MolmoActProcessor) -> None:
    """Words in pairs: `is [[` is then one token, which no piece holds."""

    def in_pairs(texts: Sequence[str]) -> list[list[int]]:
        return [[hash(text[i : i + 2]) for i in range(0, len(text), 2)] for text in texts]

    with pytest.raises(UserError, match="cannot be constrained"):
        build_grammar(AnswerShape(action_dim=2, kind="trajectory"), in_pairs, 0)


def test_trie_shares_prefixes_and_marks_ends() -> None:
    trie = build_trie([[1, 2], [1], [1, 3, 4]])
    assert trie.children == ({1: 1}, {2: 2, 3: 3}, {}, {4: 4}, {})
    assert (trie.final, trie.longest) == ({1, 2, 4}, 3)


def inputs_of(predictor: Predictor, seed: int = 0) -> dict[str, Any]:
    return predictor.processor(text="User: lift it Assistant:", images=[[picture(seed)]])


def test_constrained_decoding_equals_transformers_with_the_same_constraint(
    predictor: Predictor,
) -> None:
    grammar = build_grammar(SMALL, predictor.processor.encode_many, predictor.processor.eos_id)
    inputs = inputs_of(predictor)
    start = inputs["input_ids"].shape[1]

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        state = grammar.start
        for token in ids[start:].tolist():
            state = grammar.successors(state)[token]
        return list(grammar.successors(state)) or [predictor.processor.eos_id]

    expected = predictor.model.generate(
        **inputs,
        max_new_tokens=grammar.max_tokens,
        do_sample=False,
        prefix_allowed_tokens_fn=allowed,
        eos_token_id=predictor.processor.eos_id,
        pad_token_id=predictor.processor.pad_id,
    )[0, start:].tolist()
    found = decode_constrained(predictor.model, inputs, grammar)
    assert found.token_ids == expected


def test_forced_tokens_cost_no_forward_pass(predictor: Predictor) -> None:
    grammar = build_grammar(SMALL, predictor.processor.encode_many, predictor.processor.eos_id)
    inputs = inputs_of(predictor)
    together = decode_constrained(predictor.model, inputs, grammar)
    singly = decode_constrained(predictor.model, inputs, grammar, batch_forced=False)
    assert together.token_ids == singly.token_ids
    state, choices = grammar.start, 0
    for token in together.token_ids:
        choices += len(grammar.successors(state)) > 1
        state = grammar.successors(state)[token]
    assert together.forward_passes == choices
    assert singly.forward_passes == len(together.token_ids)
    assert set(together.seconds) == {"prefill", "depth", "trace", "action"}


def test_free_decoding_equals_transformers(predictor: Predictor) -> None:
    inputs = inputs_of(predictor)
    expected = predictor.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, -12:]
    found = decode_free(predictor.model, inputs, max_new_tokens=12, eos_id=-5)
    assert found.token_ids == expected.tolist()
    first = found.token_ids[0]
    stopped = decode_free(predictor.model, inputs, max_new_tokens=12, eos_id=first)
    assert stopped.token_ids == [first]


def test_batches_are_refused(predictor: Predictor) -> None:
    inputs = predictor.processor(text=["a", "b"])
    with pytest.raises(ValueError, match="one prompt at a time"):
        decode_free(predictor.model, inputs, max_new_tokens=1, eos_id=0)


def test_prediction_is_whole_and_in_robot_units(predictor: Predictor) -> None:
    options = PredictOptions(chunk_size=3)
    found = predictor.predict([picture(), picture(1)], "lift it", options=options)
    assert found.problems == []
    assert [len(codes) for codes in found.depth_codes] == [100]
    assert np.array(found.action_bins).shape == (3, 2)
    # By hand: bin d -> centre; dimension 0 scaled to -1..1; the last is raw in a released entry.
    centers = -1 + (2 * np.minimum(np.array(found.action_bins) - 1, 254) + 1) / 255
    np.testing.assert_allclose(found.actions, centers)
    assert found.num_tokens > found.forward_passes


def test_free_prediction_of_a_random_model_names_its_problems(predictor: Predictor) -> None:
    options = PredictOptions(chunk_size=1, constrained=False)
    assert predictor.predict([picture()], "lift it", options=options).problems


def test_steering_draws_the_trace_as_in_training_and_asks_for_actions_only(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    original = type(predictor.processor).__call__

    def spy(self: MolmoActProcessor, text: str, images: Any) -> dict[str, Any]:
        seen.update(text=text, images=images)
        return original(self, text=text, images=images)

    monkeypatch.setattr(type(predictor.processor), "__call__", spy)
    trace = [[10, 20], [200, 220]]
    options = PredictOptions(chunk_size=1)
    found = predictor.predict([picture(), picture(1)], "lift it", trace=trace, options=options)
    np.testing.assert_array_equal(seen["images"][0][0], overlay.draw_trace(picture(), trace))
    np.testing.assert_array_equal(seen["images"][0][1], picture(1))
    assert prompts.question("lift it", "trajectory", 2) in seen["text"]
    assert (found.depth_codes, found.traces) == ([], [])
    assert len(found.action_bins) == 1


@pytest.mark.parametrize("trace", [[[1, 2]], [[1, 2], [3, 256]], [[1, 2, 3], [1, 2, 3]]])
def test_a_trace_that_cannot_be_drawn_is_refused(trace: list[list[int]]) -> None:
    with pytest.raises(UserError, match="at least two"):
        checked_trace(trace)


def test_unnorm_keys(predictor: Predictor) -> None:
    several = Predictor(predictor.model, predictor.processor, STATS | {"other": STATS["robot"]})
    with pytest.raises(UserError, match="Keys: other, robot"):
        several.predict([picture()], "lift it")
    found = several.predict(
        [picture()], "lift it", trace=[[0, 0], [9, 9]], options=PredictOptions(unnorm_key="other")
    )
    assert found.unnorm_key == "other"
    with pytest.raises(UserError, match="no norm_stats"):
        Predictor(predictor.model, predictor.processor, {}).predict([picture()], "lift it")


def test_our_spec_undoes_the_gripper_inversion_and_a_released_entry_does_not() -> None:
    numbers = {"mean": [0.0] * 2, "std": [1.0] * 2, "min": [0.0] * 2, "max": [4.0, 1.0]}
    action = numbers | {"q01": [0.0, 0.0], "q99": [4.0, 1.0], "mask": [True, False]}
    spec = [
        {"normalize": True, "gripper": False, "invert": False},
        {"normalize": False, "gripper": True, "invert": True},
    ]
    ours = {"action": action, "spec": spec, "num_transitions": 1, "num_trajectories": 1}
    bins = [[256, 128]]  # centres 253.5/127.5 - 1 = 0.99608 and exactly 0
    np.testing.assert_allclose(robot_actions(bins, "a", ours), [[2 * (0.99607843 + 1), 1.0]])
    released = {"action": action}
    np.testing.assert_allclose(robot_actions(bins, "a", released), [[2 * (0.99607843 + 1), 0.0]])


def test_pictures_show_trace_and_depth(predictor: Predictor, tmp_path: Path) -> None:
    class Ramp:
        """A stand-in codebook: the mean code as brightness, left to right."""

        codebook_size, grid_hw = 128, (10, 10)

        def decode(self, codes: np.ndarray) -> np.ndarray:
            return np.linspace(0, codes.mean(), 40 * 30, dtype=np.float32).reshape(1, 40, 30)

    found = predictor.predict([picture()], "lift it", options=PredictOptions(chunk_size=1))
    written = write_pictures(found, picture(), "lift it", tmp_path, Ramp())
    assert {path.name for path in written} >= {"depth.png", "prediction.json", "prediction.png"}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
    depth = np.asarray(Image.open(tmp_path / "depth.png"))
    codes = next(span for span in found.depth_codes if span)
    np.testing.assert_array_equal(depth, codes_picture(codes, Ramp()))
    assert depth.min() < depth.max()


def test_folders_that_are_no_model_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"it has no config\.json"):
        check_is_model(tmp_path)
    (tmp_path / "trainer.json").write_text("{}")
    with pytest.raises(UserError, match="molmoact unshard"):
        check_is_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="molmoact merge-lora"):
        check_is_model(tmp_path)


def test_model_class_is_ours(predictor: Predictor) -> None:
    assert type(predictor.model) is MolmoActForActionReasoning
