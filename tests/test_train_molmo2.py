"""Molmo2 on the second family's network: equal to transformers' own class on pictures, tiles and clips."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN, cases_with, foreign
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from molmoact_train.families.molmo2.network import Molmo2Config, load_molmo2
from molmoact_train.families.molmo2.pointing import Molmo2Pointing
from molmoact_train.families.molmo2.processor import Molmo2Processor, read_layouts
from molmoact_train.families.molmoact2.network.visibility import is_one_of

FOLDER = GOLDEN / "molmo"
TINY = FOLDER / "tiny-molmo2"
needs_molmo = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no golden answers at {FOLDER}; set MOLMOACT_GOLDEN"
)
RELATIVE = 1e-4
PIXELS = 1e-3  # exact halves are rounded by other kernels the other way
CPU = torch.device("cpu")
SAMPLES = ("image", "tiled", "video")


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / name) as file:
        return dict(file)


@cache
def cases() -> list[dict[str, Any]]:
    path = FOLDER / "molmo2_processor.json"
    return json.loads(path.read_text())["cases"] if path.is_file() else []


def pooling(stored: dict[str, np.ndarray], name: str) -> np.ndarray:
    kind = "video" if f"{name}_video_token_pooling" in stored else "image"
    return stored[f"{name}_{kind}_token_pooling"].astype(np.int64)


def network_inputs(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    stored = arrays("molmo2_network.npz")
    return (
        torch.from_numpy(stored[f"{name}_input_ids"]),
        torch.from_numpy(stored[f"{name}_u8"]),
        torch.from_numpy(pooling(stored, name)),
    )


@needs_molmo
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_logits_equal_the_original(name: str, attention: Any) -> None:
    model = load_molmo2(TINY)
    model.model.image_attention = attention
    stored = arrays("molmo2_network.npz")
    with torch.inference_mode():
        logits = model.lm_head(model.model(*network_inputs(name)).hidden_BSL)[0].numpy()
    expected = stored[f"{name}_logits" + ("_causal" if attention == "causal" else "")]
    found = logits[stored[f"{name}_rows"]]
    assert np.abs(found - expected).max() <= RELATIVE * np.abs(expected).max()


@needs_molmo
@pytest.mark.parametrize("name", SAMPLES)
def test_which_tokens_see_each_other(name: str) -> None:
    stored = arrays("molmo2_network.npz")
    ids = torch.from_numpy(stored[f"{name}_input_ids"])
    seen = is_one_of(ids, Molmo2Config.from_folder(TINY).image_token_ids)
    assert seen.long().tolist() == (stored[f"{name}_mm_token_type_ids"] != 0).astype(int).tolist()


@needs_molmo
def test_greedy_answers_equal_the_original_from_pixels_on() -> None:
    """The clip through the whole chain: frames and times in, the original's ids out."""
    stored = arrays("molmo2_network.npz")
    model = Molmo2Pointing.from_folder(TINY, device=CPU, dtype=torch.float32)
    frames = list(stored["frames"])
    asked = {"is_complete": lambda _: False, "max_new_tokens": len(stored["video_greedy"])}
    times = [0.0, 0.5, 1.0, 1.5]
    question = video_question(stored["video_input_ids"][0], model.processor)
    prompt = model.processor.clip(frames, times, question)
    assert prompt.input_ids.tolist() == stored["video_input_ids"][0].tolist()
    answer = model.answer_clip(frames, times, question, **asked)
    assert answer.ids == stored["video_greedy"].tolist()


def video_question(ids: np.ndarray, processor: Molmo2Processor) -> str:
    text = processor.decode(ids.tolist())
    return text.partition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Molmo2Processor:
    """Qwen's real vocabulary with the image tokens of the release, from 151936 on."""
    folder = tmp_path_factory.mktemp("molmo2")
    vocab = json.loads((foreign("qwen2.5-tokenizer") / "vocab.json").read_text())
    lines = (foreign("qwen2.5-tokenizer") / "merges.txt").read_text().splitlines()
    merges = [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens(specials)
    fillers = [f"<extra_{i}>" for i in range(151936 - tokenizer.get_vocab_size())]
    images = [
        "<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>", "<im_low>",
        "<frame_start>", "<frame_end>", "<|video|>",
    ]  # fmt: skip
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in [*fillers, *images]])
    config = json.loads((TINY / "config.json").read_text())
    shift = 151936 - config["image_start_token_id"]
    config |= {
        key: value + shift
        for key, value in config.items()
        if key.startswith(("image_", "low_res", "frame_")) and isinstance(value, int)
    }
    config |= {"bos_token_id": 151645, "eos_token_id": 151645, "pad_token_id": 151643}
    (folder / "config.json").write_text(json.dumps(config))
    return Molmo2Processor(tokenizer, Molmo2Config.from_folder(folder), *read_layouts(TINY))


@needs_molmo
@pytest.mark.parametrize("case", cases_with("qwen2.5-tokenizer", range(len(cases()))))
def test_the_processor_equals_the_original(case: int, processor: Molmo2Processor) -> None:
    """Ids with the real vocabulary; every window pools the same pixels, wherever its crop is stored."""
    told, stored = cases()[case], arrays("molmo2_processor.npz")
    name = str(told["case"])
    question = told["text"].partition("user\n")[2].partition("<|im_end|>")[0]
    if name == "video":
        times = [i / told["fps"] for i in told["frames_indices"]]
        prompt = processor.clip(list(arrays("molmo2_network.npz")["frames"]), times, question)
    else:
        names = [told["picture"]] if "picture" in told else []
        images = [np.asarray(Image.open(FOLDER / n).convert("RGB")) for n in names]
        images = images or [stored["two_picture_0"], stored["two_picture_1"]]
        prompt = processor.pictures(images, question)
    assert prompt.input_ids.tolist() == stored[f"{name}_input_ids"][0].tolist()
    crops = prompt.images.to_released()
    ramp = np.linspace(-1, 1, 588, dtype=np.float32)
    for found, expected in (
        (crops.mean(-1), stored[f"{name}_patch_mean"]),
        (crops @ ramp / 588, stored[f"{name}_patch_ramp"]),
    ):
        assert_pools_alike(found, prompt.images.windows_V4, expected, pooling(stored, name))


def assert_pools_alike(
    found_UP: np.ndarray, windows: np.ndarray, expected_UP: np.ndarray, expected_windows: np.ndarray
) -> None:
    np.testing.assert_array_equal(windows < 0, expected_windows < 0)
    ours = np.where(windows < 0, 0, found_UP.reshape(-1)[windows])
    theirs = np.where(expected_windows < 0, 0, expected_UP.reshape(-1)[expected_windows])
    np.testing.assert_allclose(ours, theirs, atol=PIXELS)
