"""The training configuration: published settings, precedence, and every combination that is refused."""

from __future__ import annotations

import json

import pytest

from molmoact_data.errors import UserError
from molmoact_train.config import (
    TrainConfig,
    changes_on_resume,
    from_json,
    resolve,
    to_json,
)
from molmoact_train.families import registry

GIVEN = {"checkpoint": "ckpt", "data": ["demo"], "output_path": "run"}

# molmoact-training.md 6.1: steps, batch, (connector, vit, llm), lora, augmentation, images, save, keep.
PUBLISHED = {
    "pretrain": (100_000, 512, (1e-5, 1e-5, 2e-5), False, False, 1, 20_000, 5),
    "midtrain": (50_000, 256, (5e-6, 5e-6, 1e-5), False, False, 2, 10_000, 5),
    "libero-spatial": (50_000, 128, (5e-4, 5e-4, 5e-4), True, True, 2, 10_000, 5),
    "libero-object": (50_000, 128, (5e-4, 5e-4, 5e-4), True, True, 2, 10_000, 5),
    "libero-goal": (40_000, 128, (5e-4, 5e-4, 5e-4), True, True, 2, 10_000, 5),
    "libero-long": (80_000, 128, (5e-4, 5e-4, 5e-4), True, True, 2, 10_000, 5),
    "finetune": (10_000, 16, (5e-4, 5e-4, 5e-4), True, True, 2, 2_000, 5),
}


def test_presets_are_the_published_commands() -> None:
    assert set(registry.stages("molmoact")) == {*PUBLISHED, "debug", "tabletop"}
    for stage, expected in PUBLISHED.items():
        c = resolve(stage, GIVEN)
        own = c.settings
        rates = (own.lr_connector, own.lr_vit, own.lr_llm)
        found = (
            c.duration, c.global_batch_size, rates, c.lora, c.img_aug, c.max_images,
            c.save_interval, c.keep,
        )  # fmt: skip
        assert found == expected, stage
        assert (c.seq_len, c.warmup, own.z_loss, c.max_grad_norm) == (2304, 200, 1e-4, 1.0)
        assert (own.residual_dropout, c.seed, c.data_seed) == (0.1, 6198, 50189)
        assert own.ft_embedding == (None if c.lora else "all")
        if c.lora:
            assert (c.lora_rank, c.lora_alpha, c.lora_dropout) == (32, 16.0, 0.0)


def test_later_layers_win_and_none_means_not_given() -> None:
    yaml, flags = {"lr_llm": 3e-5, "seq_len": 1024}, {"lr_llm": 4e-5, "seq_len": None}
    c = resolve("pretrain", GIVEN, yaml, flags)
    assert (c.settings.lr_llm, c.seq_len, c.settings.lr_vit) == (4e-5, 1024, 1e-5)


def test_switching_lora_on_or_off_takes_the_embedding_choice_with_it() -> None:
    assert resolve("pretrain", GIVEN, {"lora": True}).settings.ft_embedding is None
    assert resolve("finetune", GIVEN, {"lora": False}).settings.ft_embedding == "lm_head"


def test_misspelt_names_get_the_nearest_match() -> None:
    with pytest.raises(UserError, match="'libero-spatial'"):
        resolve("libero_spatial", GIVEN)
    with pytest.raises(UserError, match="Did you mean 'global_batch_size'"):
        resolve("debug", GIVEN, {"global_batchsize": 8})
    with pytest.raises(UserError, match="Did you mean 'lm_head'"):
        resolve("pretrain", GIVEN, {"ft_embedding": "lmhead"})


@pytest.mark.parametrize(
    ("stage", "values", "message"),
    [
        ("finetune", {"ft_embedding": "all"}, "no effect with LoRA"),
        ("pretrain", {"lora_base_bf16": True}, "needs --lora"),
        ("finetune", {"lora_rank": 0}, "lora_rank"),
        ("pretrain", {"device_batch_size": 3}, "not a multiple"),
        ("pretrain", {"duration": 0}, "at least 1 step"),
        ("pretrain", {"duration": 100}, "warm-up of 200 steps"),
        ("pretrain", {"img_aug_crop_depth": True}, "needs img_aug"),
        ("finetune", {"kind_reasoning": 0.0, "kind_trajectory": 0.0}, "nothing is trained"),
        ("finetune", {"eval_fraction": 1.0}, "eval_fraction"),
        ("finetune", {"keep": 0}, "at least 1"),
        ("finetune", {"wandb_entity": "lab"}, "wandb_project"),
        ("finetune", {"data": []}, "--data must be given"),
    ],
)
def test_impossible_combinations_are_refused(stage: str, values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(stage, GIVEN, values)


def test_missing_required_fields_are_named_as_flags() -> None:
    with pytest.raises(UserError, match="--output-path must be given"):
        resolve("debug", {"checkpoint": "c", "data": ["d"]})


def test_json_round_trip() -> None:
    c = resolve("finetune", GIVEN, {"eval_data": ["held-out"]})
    assert from_json(json.loads(json.dumps(to_json(c)))) == c


def test_a_resumed_run_may_change_how_but_not_what() -> None:
    saved = resolve("debug", GIVEN)
    same = resolve("debug", GIVEN, {"num_workers": 3, "keep": 7, "output_path": "moved"})
    other = resolve("debug", GIVEN, {"lr_llm": 1e-9, "duration": 60})
    assert changes_on_resume(saved, same) == []
    assert changes_on_resume(saved, other) == ["duration", "lr_llm"]
    assert isinstance(saved, TrainConfig)
