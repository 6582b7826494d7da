"""MolmoAct2's network against the public implementation's answers, and the strictness of its folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from golden_molmoact2 import (
    RELATIVE,
    THINK,
    TINY,
    fresh,
    needs_molmoact2,
    relative,
    tensors,
    windows,
)
from safetensors.torch import load_file, save, save_file

from molmoact_data.errors import UserError
from molmoact_train.families.molmoact2.network import MolmoAct2, MolmoAct2Config
from molmoact_train.families.molmoact2.network.folder import load, released_tensors

pytestmark = needs_molmoact2


@pytest.mark.parametrize("folder", [TINY, THINK], ids=lambda folder: folder.name)
def test_a_released_folder_is_written_back_bit_for_bit(folder: Path) -> None:
    model = load(folder)
    written = save(
        {name: tensor.contiguous() for name, tensor in released_tensors(model)},
        metadata={"format": "pt"},
    )
    assert written == (folder / "model.safetensors").read_bytes()
    assert model.config.to_json() == json.loads((folder / "config.json").read_text())


def test_image_features_equal_the_original() -> None:
    golden = tensors("network.npz")
    with torch.no_grad():
        found = fresh(TINY).model.image_features(
            golden["pixel_values_u8"], windows(golden["image_token_pooling"], 4)
        )
    assert relative(found, golden["image_features"]) < RELATIVE


@pytest.mark.parametrize(
    ("answer", "attention", "counted"),
    [
        ("logits_bidirectional", "bidirectional", False),
        ("logits_causal", "causal", False),
        ("logits_causal_official_positions", "causal", True),
    ],
)
def test_logits_equal_the_original(answer: str, attention: str, *, counted: bool) -> None:
    """Left-padded rows; positions count real tokens, or physical places as LeRobot 0.6.1 does."""
    golden = tensors("network.npz")
    model = fresh(TINY)
    model.model.image_attention = attention
    ids, real = golden["input_ids"], golden["attention_mask"].bool()
    places = None if counted else torch.arange(ids.shape[1]).expand_as(ids)
    with torch.no_grad():
        encoded = model.model(
            ids,
            golden["pixel_values_u8"],
            windows(golden["image_token_pooling"], 4),
            real_BK=real,
            position_ids_BS=places,
        )
        logits = model.lm_head(encoded.hidden_BSL[:, -6:])
    assert relative(logits, golden[answer]) < RELATIVE
    if counted:
        difference = (encoded.hidden_BSL - golden["last_hidden_official"])[real]
        assert difference.abs().max() < RELATIVE * golden["last_hidden_official"].abs().max()


def test_the_two_image_attentions_differ() -> None:
    golden = tensors("network.npz")
    assert relative(golden["logits_bidirectional"], golden["logits_causal"]) > 0.05


def edited(tmp_path: Path, **changes: object) -> Path:
    """A copy of the tiny folder with other fields in config.json; `text_config__x` is nested."""
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        section, _, inner = name.partition("__")
        target = config[section] if inner else config
        if value is None:
            del target[inner or section]
        else:
            target[inner or section] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_both_spellings_of_the_rotary_base_are_read(tmp_path: Path) -> None:
    folder = edited(
        tmp_path,
        text_config__rope_theta=None,
        text_config__rope_scaling="gone",
        text_config__rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["rope_scaling"]
    found = MolmoAct2Config.from_json(config)
    assert found.llm.rope_theta == 1e6
    assert found.to_json()["text_config"]["rope_theta"] == 1e6
    assert "rope_parameters" not in found.to_json()["text_config"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "molmoact"}, "not 'molmoact2'"),
        ({"action_mode": "fluent"}, "action_mode is 'fluent'"),
        ({"image_patch_id": None}, "'image_patch_id' is missing"),
        ({"text_config__rope_theta": None}, "rope_theta"),
        ({"text_config__tie_word_embeddings": True}, "tied"),
        ({"add_action_expert": False}, "needs an action expert"),
        ({"text_config__num_hidden_layers": 4}, "tensors missing"),
        ({"text_config__rope_theta": 5e6}, "rope_theta 5e+06"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError) as refused:
        load(edited(tmp_path, **changes))
    assert said in str(refused.value)


def test_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    folder = edited(tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.surprise": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="1 unknown"):
        load(folder)


def test_a_checkpoint_without_expert_is_the_language_model_alone(tmp_path: Path) -> None:
    """As `MolmoAct2-Pretrain`: discrete answers only, no expert key."""
    fields = json.loads((TINY / "config.json").read_text())
    fields |= {"add_action_expert": False, "action_expert_config": None, "action_mode": "discrete"}
    with torch.device("meta"):
        model = MolmoAct2(MolmoAct2Config.from_json(fields))
    assert not [name for name, _ in model.named_parameters() if "action_expert" in name]
    with pytest.raises(ValueError, match="no action expert"):
        _ = model.expert
