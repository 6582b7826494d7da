"""The processor against what the reference's own processor and training preprocessor answered (golden/)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import GOLDEN, cases_with, foreign, needs_golden
from numpy.typing import NDArray
from PIL import Image

from molmoact_data.errors import UserError
from molmoact_data.text import tokens
from molmoact_train.families.molmoact.image_config import ImageProcessorConfig
from molmoact_train.families.molmoact.images import MolmoActImageProcessor, cut_image, select_tiling
from molmoact_train.families.molmoact.processor import MolmoActProcessor
from molmoact_train.families.molmoact.tiny import tiny_processor

# Stored as fp16: half a unit in the last place of numbers below 1.
F16 = 2.5e-4
PROCESSOR_CASES = ["one_256", "one_320x240", "one_640x480", "two_256", "two_mixed"]
SAMPLE_CASES = ["reasoning_one", "reasoning_two", "trajectory_one", "trajectory_two"]


@pytest.fixture(scope="module")
def processor() -> MolmoActProcessor:
    return MolmoActProcessor.from_pretrained(foreign("qwen2.5-tokenizer"))


@pytest.fixture(scope="module")
def tiny() -> MolmoActProcessor:
    """With a vocabulary of our own."""
    return tiny_processor()


def golden(
    folder: str, name: str
) -> tuple[dict[str, NDArray[Any]], dict[str, Any], list[Image.Image]]:
    arrays = dict(np.load(GOLDEN / folder / f"{name}.npz"))
    found = json.loads((GOLDEN / folder / "cases.json").read_text())
    cases = found["cases"] if folder == "processor" else found
    pictures = [Image.fromarray(arrays[k]) for k in sorted(arrays) if k.startswith("pixels_")]
    return arrays, next(c for c in cases if c["name"] == name), pictures


@needs_golden
@pytest.mark.parametrize("name", PROCESSOR_CASES)
def test_image_processor_equals_the_reference(name: str) -> None:
    expected, case, pictures = golden("processor", name)
    found = MolmoActImageProcessor()(pictures[0] if len(pictures) == 1 else [pictures])
    np.testing.assert_array_equal(found["pooled_patches_idx"][0], expected["pooled_patches_idx"])
    np.testing.assert_array_equal(found["image_grids"][0], expected["image_grids"])
    np.testing.assert_array_equal(found["image_masks"][0], expected["image_masks"])
    assert found["images"][0].shape == tuple(case["images_shape"])
    np.testing.assert_allclose(found["images"][0, :2], expected["images_f16"], atol=F16)
    assert found["images"].mean() == pytest.approx(case["images_mean"], abs=1e-6)
    assert found["images"].std() == pytest.approx(case["images_std"], abs=1e-6)


@needs_golden
@pytest.mark.parametrize("name", cases_with("qwen2.5-tokenizer", PROCESSOR_CASES))
def test_prompt_ids_equal_the_reference(name: str, processor: MolmoActProcessor) -> None:
    expected, _, pictures = golden("processor", name)
    question = json.loads((GOLDEN / "processor" / "cases.json").read_text())["prompt"]
    text = processor.apply_chat_template([{"role": "user", "content": question}])
    found = processor(text=text, images=[pictures], return_tensors="np")
    np.testing.assert_array_equal(found["input_ids"][0], expected["input_ids"])
    bare = processor(text=question, images=[pictures], apply_chat_template=True)
    np.testing.assert_array_equal(bare["input_ids"][0], expected["input_ids"])


@needs_golden
@pytest.mark.parametrize("name", cases_with("qwen2.5-tokenizer", SAMPLE_CASES))
def test_training_sample_equals_the_reference(name: str, processor: MolmoActProcessor) -> None:
    expected, case, pictures = golden("training_sample", name)
    if case["annotation"] is not None:
        pytest.importorskip("molmoact_data.pictures.overlay")
    found = processor.training_sample(
        images=pictures, question=case["question"], answer=case["answer"], trace=case["annotation"]
    )
    for key in (
        "input_tokens",
        "target_tokens",
        "loss_masks",
        "position_ids",
        "pooled_patches_idx",
    ):
        np.testing.assert_array_equal(found[key], expected[key], err_msg=key)
    assert found["images"].shape == tuple(case["keys"]["images"])
    np.testing.assert_allclose(found["images"][0], expected["images_first"], atol=F16)


@needs_golden
def test_vocabulary_has_the_released_ids(processor: MolmoActProcessor) -> None:
    cases = json.loads((GOLDEN / "processor" / "cases.json").read_text())
    for token, expected in (cases["special_token_ids"] | cases["depth_token_ids"]).items():
        assert processor.tokenizer.convert_tokens_to_ids(token) == expected
    assert processor.bos_id == processor.eos_id == processor.pad_id == 151643


@needs_golden
def test_depth_tokens_survive_decoding_and_image_tokens_do_not(
    tiny: MolmoActProcessor,
) -> None:
    text = tokens.encode_depth(range(100))
    ids = [tiny.image_ids.start, *tiny.encode(text), tiny.eos_id]
    assert (
        len(ids) == 104
    )  # one id per depth token, whatever the tokenizer would make of the string
    assert tiny.decode(ids) == text


@needs_golden
def test_saved_processor_is_read_back_equal(tiny: MolmoActProcessor, tmp_path: Path) -> None:
    config = ImageProcessorConfig(
        max_crops=3, base_image_input_size=(84, 84), overlap_margins=(1, 1)
    )
    MolmoActProcessor(tiny.tokenizer, MolmoActImageProcessor(config)).save_pretrained(tmp_path)
    again = MolmoActProcessor.from_pretrained(tmp_path)
    assert again.image_processor.config == config
    assert again.image_ids == tiny.image_ids
    case = golden("training_sample", "reasoning_one")[1]
    assert again.encode(case["answer"]) == tiny.encode(case["answer"])


@needs_golden
def test_a_config_with_another_patch_id_is_refused(
    processor: MolmoActProcessor, tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path)
    config = {"image_patch_id": 152000, "llm_config": {"vocab_size": 152064}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"152066, config\.json says 152000"):
        MolmoActProcessor.from_pretrained(tmp_path)


@needs_golden
def test_padding_sides_hold_the_same_rows(tiny: MolmoActProcessor) -> None:
    texts = ["User: a Assistant:", "User: a much longer question Assistant:"]
    left = tiny(text=texts, return_tensors="np")
    right = MolmoActProcessor(tiny.tokenizer, tiny.image_processor, padding_side="right")(
        text=texts, return_tensors="np"
    )
    for side, pad in ((left, np.s_[0]), (right, np.s_[-1])):
        assert side["attention_mask"][0, pad] == 0
    for row in range(2):
        np.testing.assert_array_equal(
            left["input_ids"][row][left["attention_mask"][row] == 1],
            right["input_ids"][row][right["attention_mask"][row] == 1],
        )


@needs_golden
def test_a_list_of_two_images_for_one_text_is_refused(tiny: MolmoActProcessor) -> None:
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="nest the images of one sample"):
        tiny(text="a", images=[picture, picture])


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    # Hand-derived from the rule with 7B-D numbers: window 266, margins 112 (spec: 379x379 and 640x480 give 2x2).
    [((378, 378), (1, 1)), ((100, 50), (1, 1)), ((379, 379), (2, 2)), ((480, 640), (2, 2)), ((300, 700), (1, 3))],
)  # fmt: skip
def test_tilings_of_known_sizes(size_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert select_tiling(size_hw[0] - 112, size_hw[1] - 112, 266, 8) == expected


def test_every_patch_of_a_tiled_picture_is_read_exactly_once_from_the_right_place() -> None:
    """Brute force: each tile patch carries its own coordinates as pixels; the index must restore the grid."""
    config = ImageProcessorConfig(
        base_image_input_size=(84, 84), overlap_margins=(1, 1), max_crops=6
    )
    rows, columns = 2 * 56 + 28, 3 * 56 + 28
    rgb = np.zeros((rows, columns, 3), dtype=np.uint8)
    rgb[..., 0] = np.arange(rows)[:, None] // 14
    rgb[..., 1] = np.arange(columns)[None] // 14
    done = cut_image(rgb, config, max_crops=6)
    assert done.grids_G2.tolist() == [[3, 3], [5, 7]]
    flat = np.rint((done.crops_TPC.reshape(-1, 588) + 1) * 127.5).astype(int)
    windows = done.pooled_patches_idx_M4[9:].reshape(5, 7, 4)
    for row in range(10):
        for column in range(14):
            patch = windows[row // 2, column // 2, (row % 2) * 2 + column % 2]
            assert flat[patch, :2].tolist() == [row, column]


def test_letterbox_mask_counts_padding_per_patch() -> None:
    """An image twice as wide as high fills half of the square: patches are all padding, or none."""
    config = ImageProcessorConfig(
        base_image_input_size=(56, 56), overlap_margins=(1, 1), resize_mode="default",
        normalize_mode="openai",
    )  # fmt: skip
    done = cut_image(np.full((28, 56, 3), 255, dtype=np.uint8), config, max_crops=1)
    expected = np.repeat([0, 1, 1, 0], 4)
    np.testing.assert_array_equal(done.masks_TP[0], expected)
    brightness = done.crops_TPC[0].mean(1)
    assert brightness[expected == 1].min() > 1.5
    assert brightness[expected == 0].max() < -1.5


def test_single_crop_mode_keeps_the_overview_only() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    both = MolmoActImageProcessor().sample([rgb])
    one = MolmoActImageProcessor(ImageProcessorConfig(crop_mode="resize")).sample([rgb])
    assert (both.crops_TPC.shape[0], one.crops_TPC.shape[0]) == (2, 1)
    np.testing.assert_array_equal(one.crops_TPC[0], both.crops_TPC[0])
    np.testing.assert_array_equal(
        both.crops_TPC[0], both.crops_TPC[1]
    )  # what deduplication lives on


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8), (8, 8, 4)])
def test_other_layouts_are_not_guessed(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not guessed"):
        MolmoActImageProcessor().sample([np.zeros(shape, dtype=np.uint8)])
