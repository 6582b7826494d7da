"""The small MolmoAct of the table-top world: its tokenizer says what every MolmoAct says, in fewer tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from molmoact_data.text import prompts, tokens
from molmoact_train.config import resolve
from molmoact_train.data.rendering import Rendered
from molmoact_train.families.molmoact.grammar import AnswerShape, build_grammar, random_answer
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.families.molmoact.processor import MolmoActProcessor
from molmoact_train.families.molmoact.samples import build_sample, collate
from molmoact_train.families.molmoact.tabletop import (
    ordered_tokens,
    tabletop_processor,
    tabletop_tokenizer,
    write_tabletop_checkpoint,
)


@pytest.fixture(scope="module")
def processor() -> MolmoActProcessor:
    return tabletop_processor()


def encode(processor: MolmoActProcessor, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["reasoning", "trajectory", "depth", "trace"])
@pytest.mark.parametrize("num_images", [1, 2])
def test_every_answer_comes_back_from_its_tokens(processor, kind, num_images) -> None:
    shape = AnswerShape(action_dim=7, kind=kind, num_images=num_images)
    for number in range(4):
        text = f" {random_answer(shape, np.random.default_rng(number), num_points=5 - number)}"
        assert processor.tokenizer.decode(encode(processor, text)) == text


def test_each_action_string_is_one_token_wherever_it_stands_in_a_step(processor) -> None:
    for bins in np.arange(1, 257).reshape(-1, 8, 1).repeat(7, axis=2).tolist():
        text = f" {prompts.format_actions(bins)}."
        # 7 values of 8 steps, what closes 7 steps, what closes the chunk
        assert len(encode(processor, text)) == 7 * 8 + 7 + 1
        assert processor.tokenizer.decode(encode(processor, text)) == text


def test_words_of_no_training_are_spelled_and_come_back(processor) -> None:
    text = "User: The task is pick up the teal 54 gr\u00fc\u00f6\u00dfe, \u6377 [[ <DEPTH_7>. Assistant:"
    assert processor.tokenizer.decode(encode(processor, text)) == text
    assert tokens.depth_token(7) in processor.tokenizer.convert_ids_to_tokens(
        encode(processor, text)
    )


@pytest.mark.parametrize("kind", ["reasoning", "trajectory"])
def test_the_grammar_takes_its_answers_and_no_others(processor, kind) -> None:
    def ids(texts):
        return [encode(processor, text) for text in texts]

    shape = AnswerShape(action_dim=7, kind=kind)
    eos = processor.tokenizer.eos_token_id
    grammar = build_grammar(shape, ids, eos)
    answer = [
        *encode(processor, f" {random_answer(shape, np.random.default_rng(9), num_points=3)}"),
        eos,
    ]
    assert grammar.accepts(answer)
    assert not grammar.accepts(answer[:-1])
    assert not grammar.accepts(answer[:-3] + answer[-2:])
    assert grammar.max_tokens <= 200


def test_the_same_seed_writes_the_same_checkpoint_and_it_loads(tmp_path) -> None:
    first, again = (write_tabletop_checkpoint(tmp_path / name, seed=3) for name in ("a", "b"))
    other = write_tabletop_checkpoint(tmp_path / "c", seed=4)
    weights = [(f / "model.safetensors").read_bytes() for f in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]
    model = MolmoActForActionReasoning.from_pretrained(first)
    assert 500_000 < sum(p.numel() for p in model.parameters()) < 5_000_000
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert json.loads((first / "config.json").read_text())["model_type"] == "molmoact"
    sample = MolmoActProcessor.from_pretrained(first).training_sample(
        [np.zeros((128, 128, 3), np.uint8)] * 2, "what?", "nothing"
    )
    assert len(sample["images"]) == 2, "one crop per camera"


def test_pictures_reach_the_decoder_of_a_fresh_checkpoint(tmp_path) -> None:
    """Drawn with the published deviation of 0.02 the encoder's gradient is a millionth of the decoder's."""
    folder = write_tabletop_checkpoint(tmp_path / "fresh")
    model = MolmoActForActionReasoning.from_pretrained(folder)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(p) for p in rng.integers(0, 256, (2, 128, 128, 3), np.uint8)]
    answer = random_answer(AnswerShape(action_dim=7), rng, num_points=5)
    rendered = Rendered("here", "reasoning", pictures, "what?", answer, None)
    batch = collate([build_sample(0, rendered, MolmoActProcessor.from_pretrained(folder))])
    model(**batch.inputs, loss_divisor=batch.weights["loss_tokens"]).loss.backward()

    def gradient(part: str) -> float:
        found = [p.grad for name, p in model.named_parameters() if part in name]
        return float(torch.stack([g.norm() for g in found if g is not None]).norm())

    assert gradient("image_vit") > 0.01 * gradient("model.transformer.blocks") > 0


def test_the_stage_trains_everything_from_both_cameras() -> None:
    config = resolve("tabletop", {"data": ("d",), "checkpoint": "c", "output_path": "o"})
    assert (config.lora, config.settings.ft_embedding, config.max_images) == (False, "all", 2)


def test_values_and_patches_start_in_order(tmp_path) -> None:
    """Rows of the head of near values are near, whatever the family; patches of one row share half their position."""
    model = MolmoActForActionReasoning.from_pretrained(write_tabletop_checkpoint(tmp_path / "a"))
    for family in ordered_tokens(tabletop_tokenizer()):
        for rows in (model.lm_head.weight[family], model.model.transformer.wte.embedding[family]):
            apart = torch.cdist(rows, rows)
            near, far = apart.diagonal(1), apart.diagonal(64)
            assert near.max() < 0.6 * far.min()
            assert near.min() > 0, "every value has a row of its own"
    positions = model.model.vision_backbone.image_vit.positional_embedding.view(9, 9, -1)
    half = positions.shape[-1] // 2
    assert torch.equal(positions[4, 0, :half], positions[4, 8, :half])
    assert torch.equal(positions[0, 4, half:], positions[8, 4, half:])
    assert len(torch.unique(positions.flatten(0, 1), dim=0)) == 81
