"""Molmo (0924) on our network: equal to the released files' own answers, strict about what it is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN, ROOT, cases_with, foreign
from made_molmo import SAID, config_fields, write_molmo
from PIL import Image
from safetensors.torch import load_file, save_file

from molmoact_data.errors import UserError
from molmoact_train.families.molmo.config import network_config
from molmoact_train.families.molmo.folder import load_molmo, molmo_name
from molmoact_train.families.molmo.pointing import MolmoPointing
from molmoact_train.families.molmo.processor import MolmoProcessor, released_masks
from molmoact_train.families.molmoact.image_scaling import CLIP_MEAN, CLIP_STD
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning

FOLDER = GOLDEN / "molmo"
needs_molmo = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"no golden answers at {FOLDER}; set MOLMOACT_GOLDEN"
)
RELATIVE = 1e-4  # of the largest logit, fp32
PIXELS = 1e-3  # normalised units
WINDOWS, PATCHES = 144, 576  # of one crop
CPU = torch.device("cpu")


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / name) as file:
        return dict(file)


@cache
def cases() -> list[dict[str, Any]]:
    """The processor's cases; empty where there are no golden answers."""
    path = FOLDER / "processor.json"
    return json.loads(path.read_text())["cases"] if path.is_file() else []


def picture(name: str) -> np.ndarray:
    return np.asarray(Image.open(FOLDER / name).convert("RGB"))


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def patches_of_windows(image_input_idx_TW: np.ndarray) -> np.ndarray:
    """Their place of each 2x2 window in the text (-100 = dropped) -> our four patches per window, in text order."""
    in_crop = np.arange(PATCHES).reshape(12, 2, 12, 2).transpose(0, 2, 1, 3).reshape(WINDOWS, 4)
    places = image_input_idx_TW.reshape(-1)
    kept = np.flatnonzero(places >= 0)
    kept = kept[np.argsort(places[kept])]
    return in_crop[kept % WINDOWS] + (kept // WINDOWS)[:, None] * PATCHES


def network_inputs(stored: dict[str, np.ndarray], name: str) -> dict[str, torch.Tensor]:
    """The stored input of the original as ours; its -1 (the last mask row) reads as partly padding, like 0.5."""
    mean, std = np.float32(CLIP_MEAN), np.float32(CLIP_STD)
    pixels = stored[f"{name}_u8"].reshape(-1, PATCHES, 196, 3).astype(np.float32) / np.float32(255)
    crops = ((pixels - mean) / std).reshape(-1, PATCHES, 588)
    masks = stored[f"{name}_image_masks"].copy()
    masks[masks == -1] = 0.5
    arrays = {
        "input_ids": stored[f"{name}_input_ids"],
        "images": crops,
        "image_masks": masks,
        "pooled_patches_idx": patches_of_windows(stored[f"{name}_image_input_idx"]),
    }
    return {key: torch.from_numpy(value)[None] for key, value in arrays.items()}


@needs_molmo
@pytest.mark.parametrize(
    ("variant", "name"), [("d", "square"), ("d", "wide"), ("d", "text"), ("o", "square"), ("o", "text")]
)  # fmt: skip
def test_logits_equal_the_released_network(variant: str, name: str) -> None:
    stored = arrays(f"network_{variant}.npz")
    model = load_molmo(FOLDER / f"tiny-molmo-{variant}")
    if name == "text":
        inputs = {"input_ids": torch.from_numpy(stored["text_input_ids"])[None]}
        rows = np.arange(len(stored["text_input_ids"]))
    else:
        inputs, rows = network_inputs(stored, name), stored[f"{name}_rows"]
    with torch.inference_mode():
        logits = model(**inputs).logits[0].numpy()[rows]
    assert relative(logits, stored[f"{name}_logits"]) <= RELATIVE


@needs_molmo
def test_image_features_equal_and_the_masks_matter() -> None:
    """The stored features are of every fourth window of every crop; ours come in reading order of the picture."""
    stored = arrays("network_d.npz")
    model = load_molmo(FOLDER / "tiny-molmo-d")
    inputs = network_inputs(stored, "wide")
    del inputs["input_ids"]
    with torch.inference_mode():
        found = model.model.image_features(**inputs).numpy()
        without = model.model.image_features(**(inputs | {"image_masks": None})).numpy()
    places = stored["wide_image_input_idx"].reshape(-1)
    order = np.argsort(np.argsort(places[places >= 0]))  # the rank of a kept window in the text
    rank = np.full(len(places), -1)
    rank[places >= 0] = order
    told = np.arange(0, len(places), 4)
    told_and_kept = told[rank[told] >= 0]
    expected = stored["wide_image_features"].reshape(-1, found.shape[1])[rank[told] >= 0]
    assert relative(found[rank[told_and_kept]], expected) <= RELATIVE
    assert relative(without[rank[told_and_kept]], expected) > 100 * RELATIVE


@pytest.fixture(scope="module")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_molmo(tmp_path_factory.mktemp("hub") / "molmo", qwen2=foreign("qwen2.5-tokenizer"))


@needs_molmo
@pytest.mark.parametrize("case", cases_with("qwen2.5-tokenizer", range(len(cases()))))
def test_the_processor_equals_the_released_one(case: int, real_folder: Path) -> None:
    """Ids with the real vocabulary, windows, shifted masks; pixels within the tolerance of another resize."""
    told, stored = cases()[case], arrays("processor.npz")
    processor = MolmoProcessor.from_pretrained(real_folder)
    made = {
        k: v[0].numpy() for k, v in processor([picture(told["picture"])], told["prompt"]).items()
    }
    assert made["input_ids"].tolist() == stored[f"{case}_input_ids"].tolist()
    assert len(made["images"]) == told["crops"]
    expected_windows = patches_of_windows(stored[f"{case}_image_input_idx"])
    np.testing.assert_array_equal(made["pooled_patches_idx"], expected_windows)
    masks = stored[f"{case}_image_masks"]
    np.testing.assert_allclose(made["image_masks"][:-1], masks[:-1], atol=1e-6)
    assert (masks[-1] == -1).all()
    assert (made["image_masks"][-1] == 0.5).all()
    pixels = made["images"]
    np.testing.assert_allclose(pixels[:, ::97], stored[f"{case}_some_patches"], atol=PIXELS)
    np.testing.assert_allclose(pixels.mean(-1), stored[f"{case}_patch_mean"], atol=PIXELS)
    ramp = pixels @ np.linspace(-1, 1, 588, dtype=np.float32) / 588
    np.testing.assert_allclose(ramp, stored[f"{case}_patch_ramp"], atol=PIXELS)


@needs_molmo
def test_ids_of_strings_with_the_real_vocabulary(real_folder: Path) -> None:
    processor = MolmoProcessor.from_pretrained(real_folder)
    for text, ids in json.loads((FOLDER / "processor.json").read_text())["tokens"].items():
        assert processor.encode(text) == ids, text


def generations() -> list[Path]:
    return sorted(FOLDER.glob("generate_*.png"))


@needs_molmo
@pytest.mark.parametrize("how", ["one by one", "together"])
def test_greedy_ids_and_log_probabilities_equal_the_released_generation(how: str) -> None:
    """Frames of three sizes, one by one and in one batch padded on the left."""
    stored = arrays("generation.npz")
    model = MolmoPointing.from_folder(FOLDER / "tiny-molmo-d", device=CPU, dtype=torch.float32)
    frames, prompt = [picture(path.name) for path in generations()], str(stored["prompt"])
    assert len({frame.shape for frame in frames}) > 1

    def ask(batch: list[np.ndarray]) -> list[Any]:
        return model.answer(batch, prompt, is_complete=lambda _: False, max_new_tokens=24)

    answers = ask(frames) if how == "together" else [ask([frame])[0] for frame in frames]
    for case, answer in enumerate(answers):
        prompt_ids = model.processor([frames[case]], prompt)["input_ids"][0].tolist()
        assert prompt_ids == stored[f"{case}_prompt_ids"].tolist()
        assert answer.ids == stored[f"{case}_ids"].tolist()
        np.testing.assert_allclose(answer.logprobs, stored[f"{case}_logprobs"], atol=5e-4)
        assert not answer.complete


# What a checkpoint folder may be


def test_a_made_folder_says_its_point_and_stops(tmp_path: Path) -> None:
    """In one file or in three; the answer ends with the point, not with the label behind it."""
    frames = [np.full((40, 60, 3), level, np.uint8) for level in (0, 200)]
    for num_files in (1, 3):
        folder = write_molmo(tmp_path / str(num_files), num_files=num_files)
        model = MolmoPointing.from_folder(folder, device=CPU, dtype=torch.float32)
        answers = model.answer(
            frames, "where?", is_complete=lambda t: t.count('"') == 2, max_new_tokens=64
        )
        assert [(a.text, a.complete) for a in answers] == [(SAID, True)] * 2
        assert min(answers[0].logprobs) > np.log(0.9)


def test_half_precision_says_the_same(tmp_path: Path) -> None:
    folder = write_molmo(tmp_path / "molmo")
    model = MolmoPointing.from_folder(folder, device=CPU, dtype=torch.bfloat16)
    (answer,) = model.answer(
        [np.zeros((40, 60, 3), np.uint8)], "where?", is_complete=lambda _: False, max_new_tokens=len(SAID)
    )  # fmt: skip
    assert answer.text.startswith(SAID)


def test_an_answer_that_is_cut_off_is_not_complete(tmp_path: Path) -> None:
    model = MolmoPointing.from_folder(write_molmo(tmp_path / "m"), device=CPU, dtype=torch.float32)
    (answer,) = model.answer(
        [np.zeros((40, 60, 3), np.uint8)], "where?", is_complete=lambda _: False, max_new_tokens=5
    )
    assert (len(answer.ids), answer.complete) == (5, False)


@pytest.mark.parametrize("variant", ["D", "O"])
def test_every_parameter_has_a_name_of_its_own_in_the_files(variant: str) -> None:
    with torch.device("meta"):
        model = MolmoActForActionReasoning(network_config(config_fields(320, olmo=variant == "O")))
    names = [molmo_name(name) for name, _ in model.named_parameters()]
    assert len(set(names)) == len(names)
    assert not [n for n in names if "self_attn" in n or ".mlp." in n or "lm_head" in n]


def test_the_released_size_follows_from_the_released_config() -> None:
    """Spec 3.1: 8,021,025,280 stored values, one image block of which is never run."""
    fields = config_fields(152064) | {
        "hidden_size": 3584, "intermediate_size": 37888, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4,
    }  # fmt: skip
    del fields["vision_backbone"]
    with torch.device("meta"):
        model = MolmoActForActionReasoning(network_config(fields))
    one_block = sum(
        p.numel() for n, p in model.named_parameters() if ".image_vit.transformer.resblocks.0." in n
    )
    assert sum(p.numel() for p in model.parameters()) + one_block == 8_021_025_280


def test_masks_are_one_crop_early() -> None:
    masks = np.arange(3, dtype=np.float32)[:, None] / 4
    assert released_masks(masks).tolist() == [[0.25], [0.5], [0.5]]


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.vision_backbone.pad_embed"]
    save_file(tensors, folder / "model.safetensors")


def poison(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.transformer.ln_f.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def without_image_tokens(folder: Path) -> None:
    for path in folder.glob("tokenizer*.json"):
        path.write_text(path.read_text().replace("<im_patch>", "<something>"))


def pointer_file(name: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / name).write_bytes(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        )

    return replace


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (edit_config(model_type="llama"), "type 'llama', not 'molmo'"),
        (edit_config(clip_qkv=8.0), "clip_qkv is 8.0"),
        (edit_config(layer_norm_type="low_precision"), "layer_norm_type is 'low_precision'"),
        (edit_config(weight_tying=True), "weight_tying is True"),
        (edit_config(moe_num_experts=64), "moe_num_experts is 64"),
        (edit_config(num_hidden_layers=3), "tensors missing"),
        (edit_config(hidden_size=32), "config.json implies"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "Invalid JSON"),
        (lambda f: (f / "config.json").write_text('{"model_type": "molmo"}'), "does not say hidden_size"),
        (drop_tensor, "pad_embed"),
        (poison, "ln_f.weight holds NaN"),
        (truncate, "missing or damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "holds neither model.safetensors"),
        (without_image_tokens, "has no '<im_patch>'"),
        (edit_json("preprocessor_config.json", image_mean=[0.5, 0.5, 0.5]), "image_mean"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json is missing"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*.json")], "holds no tokenizer"),
        (pointer_file("model.safetensors"), "is a Git LFS pointer"),
        (pointer_file("tokenizer.json"), "is a Git LFS pointer"),
        (pointer_file("config.json"), "is a Git LFS pointer"),
        (pointer_file("preprocessor_config.json"), "is a Git LFS pointer"),
    ],
)  # fmt: skip
def test_a_wrong_folder_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    folder = write_molmo(tmp_path / "molmo")
    spoil(folder)
    with pytest.raises(UserError, match=said) as caught:
        MolmoPointing.from_folder(folder, device=CPU, dtype=torch.float32)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    """The ids of the image tokens must be those of the embedding table's second part."""
    folder = write_molmo(tmp_path / "molmo")
    model = load_molmo(folder)
    model.config.image_patch_id += 1
    with pytest.raises(UserError, match="belong to another checkpoint"):
        MolmoPointing(model, MolmoProcessor.from_pretrained(folder))


def test_no_python_of_a_checkpoint_is_ever_run() -> None:
    """Nothing in the repository asks transformers to run code that came with weights."""
    word = "trust_remote" + "_code"
    files = [
        p
        for pattern in ("*.py", "*.md", "*.toml", "*.yaml", "*.sh", "Makefile")
        for p in ROOT.rglob(pattern)
        if ".venv" not in p.parts and p.is_file()
    ]
    assert len(files) > 100
    assert not [p.relative_to(ROOT) for p in files if word in p.read_text(errors="replace")]
