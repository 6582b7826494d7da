"""LoRA: which parameters train, equal start everywhere, and files that the real PEFT library reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from molmoact_train import lora
from molmoact_train.debug.tiny import tiny_config
from molmoact_train.families.molmoact.family import FAMILY
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.lora import LoraSettings
from molmoact_train.optim import released_name, trained_parameters

SETTINGS = LoraSettings(rank=4, alpha=2.0, dropout=0.0, base_bf16=False)


def base_model() -> MolmoActForActionReasoning:
    torch.manual_seed(0)
    return MolmoActForActionReasoning(tiny_config()).eval()


def adapted(settings: LoraSettings = SETTINGS, seed: int = 1) -> MolmoActForActionReasoning:
    model = base_model()
    lora.add_adapters(model, settings)
    lora.initialise(model, settings.rank, seed)
    return model.eval()


def stir(model: nn.Module) -> None:
    """Give B values, as training would."""
    generator = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        if ".lora_B." in name:
            p.data = torch.randn(p.shape, generator=generator) * 0.1


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(2, 30)[None]
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_exactly_the_adapters_train_and_every_linear_layer_has_one() -> None:
    model = adapted()
    linear = {n for n, m in base_model().named_modules() if isinstance(m, nn.Linear)}
    expected = {f"{n}.lora_{m}.default.weight" for n in linear for m in "AB"}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == expected
    assert "lm_head.lora_A.default.weight" in trained, "the head gets an adapter too, as published"
    groups = trained_parameters(model, FAMILY)
    assert {g: len(m) > 0 for g, m in groups.items()} == dict.fromkeys(groups, True)
    assert (
        FAMILY.group(
            released_name("model.vision_backbone.image_vit.patch_embedding.lora_A.default.weight")
        )
        == "vit"
    )


def test_a_fresh_adapter_changes_nothing_and_scales_by_alpha_over_rank() -> None:
    assert torch.equal(logits(adapted()), logits(base_model()))
    model = adapted()
    stir(model)
    head = model.lm_head
    x = torch.randn(2, head.in_features)
    a, b = head.lora_A["default"].weight, head.lora_B["default"].weight
    expected = x @ head.base_layer.weight.T + (2.0 / 4) * (x @ a.T @ b.T)
    assert torch.allclose(head(x), expected, atol=1e-5)


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    """Built twice with torch's own generator in different states: nothing of it may leak in."""
    one = adapted()
    torch.manual_seed(99)
    torch.randn(7)
    two, other = adapted(), adapted(seed=2)
    name = "lm_head.lora_A.default.weight"
    for n, p in one.named_parameters():
        assert torch.equal(p, dict(two.named_parameters())[n]), n
    assert not torch.equal(dict(one.named_parameters())[name], dict(other.named_parameters())[name])
    wide = adapted(LoraSettings(rank=16, alpha=8, dropout=0, base_bf16=False))
    values = torch.cat([p.flatten() for n, p in wide.named_parameters() if ".lora_A." in n])
    assert values.std().item() == pytest.approx(1 / 16, rel=0.05)


def test_the_base_in_bf16_keeps_adapters_in_float32() -> None:
    model = adapted(LoraSettings(rank=4, alpha=2, dropout=0, base_bf16=True))
    kinds = {lora.is_adapter(n): p.dtype for n, p in model.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def saved(folder: Path, model: nn.Module) -> Path:
    folder.mkdir()
    weights = {n: p.detach() for n, p in model.named_parameters() if lora.is_adapter(n)}
    lora.save_adapter(
        folder, weights, SETTINGS, lora.target_modules(base_model()),
        base="base", statistics={"debug": {}}, run={"stage": "debug"},
    )  # fmt: skip
    return folder


def test_peft_loads_what_is_saved_and_answers_the_same(tmp_path: Path) -> None:
    """The independent answer is PEFT's own loader on a fresh base model."""
    from peft import PeftModel

    model = adapted()
    stir(model)
    folder = saved(tmp_path / "adapter", model)
    loaded = PeftModel.from_pretrained(base_model(), str(folder)).eval()
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(model), logits(base_model()))
    merged = loaded.merge_and_unload()
    assert torch.allclose(logits(merged), logits(model), atol=1e-5)
    assert json.loads((folder / "dataset_statistics.json").read_text()) == {"debug": {}}
    assert json.loads((folder / "train_config.json").read_text()) == {"stage": "debug"}


def test_adapter_names_are_those_of_peft() -> None:
    names = [name for name, _ in adapted().named_parameters() if lora.is_adapter(name)]
    told = [lora.peft_name(name) for name in names]
    assert len(set(told)) == len(names) > 0
    assert all(re.fullmatch(r"base_model\.model\.\S+\.lora_[AB]\.weight", name) for name in told)
