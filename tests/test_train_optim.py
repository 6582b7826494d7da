"""Parameter groups, rates and clipping, against the written facts and torch's own functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from molmoact_train.config import resolve
from molmoact_train.families.molmoact.family import FAMILY
from molmoact_train.families.molmoact.groups import GROUPS, decays, parameter_group
from molmoact_train.families.molmoact.settings import FtEmbedding
from molmoact_train.optim import (
    Schedule,
    build_optimizer,
    clip_by_group,
    freeze_for_full,
    released_name,
    set_rates,
    trained_parameters,
)

# Names of the released checkpoints (molmoact-model.md section 2), one of each sort, with their group and
# whether weight decay would apply.
NAMES = {
    "lm_head.weight": ("llm", True),
    "model.transformer.wte.embedding": ("llm", False),
    "model.transformer.wte.new_embedding": ("connector", False),
    "model.transformer.ln_f.weight": ("llm", False),
    "model.transformer.blocks.0.attn_norm.weight": ("llm", False),
    "model.transformer.blocks.0.self_attn.att_proj.weight": ("llm", True),
    "model.transformer.blocks.0.self_attn.q_norm.weight": ("llm", False),
    "model.transformer.blocks.0.mlp.ff_out.weight": ("llm", True),
    "model.vision_backbone.image_vit.positional_embedding": ("vit", False),
    "model.vision_backbone.image_vit.class_embedding": ("vit", False),
    "model.vision_backbone.image_vit.pre_ln.weight": ("vit", False),
    "model.vision_backbone.image_vit.patch_embedding.weight": ("vit", True),
    "model.vision_backbone.image_vit.transformer.resblocks.0.ffn_norm.bias": ("vit", False),
    "model.vision_backbone.image_vit.transformer.resblocks.0.attention.wq.weight": ("vit", True),
    "model.vision_backbone.image_pooling_2d.wq.weight": ("connector", True),
    "model.vision_backbone.image_projector.w1.weight": ("connector", True),
    "model.vision_backbone.pad_embed": ("connector", False),
}


class Named(nn.Module):
    """A model whose parameters have exactly the given names."""

    def __init__(self, names: dict[str, int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, size in names.items():
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            owner.register_parameter(leaf, nn.Parameter(torch.randn(size)))


def named() -> Named:
    return Named({name: 3 + i for i, name in enumerate(NAMES)})


def test_every_released_name_has_its_published_group() -> None:
    assert {name: (parameter_group(name), decays(name)) for name in NAMES} == NAMES
    with pytest.raises(ValueError, match="belongs to no group"):
        parameter_group("model.audio_backbone.weight")


def test_wrappers_do_not_change_names() -> None:
    lora = "base_model.model.model.transformer.blocks.0.mlp.ff_out.base_layer.weight"
    assert released_name(lora) == "model.transformer.blocks.0.mlp.ff_out.weight"
    wrapped = "model.vision_backbone.image_vit.resblocks.0._checkpoint_wrapped_module.ffn_norm.bias"
    assert parameter_group(released_name(wrapped)) == "vit"


@pytest.mark.parametrize(
    ("choice", "frozen"),
    [
        ("all", set()),
        ("lm_head", {"model.transformer.wte.embedding"}),
        ("ln_f", {"model.transformer.wte.embedding", "lm_head.weight"}),
        ("wte", {"model.transformer.ln_f.weight", "lm_head.weight"}),
    ],
)
def test_exactly_these_parameters_are_frozen(choice: FtEmbedding, frozen: set[str]) -> None:
    model = named()
    given = {"checkpoint": "c", "data": ["d"], "output_path": "s", "ft_embedding": choice}
    freeze_for_full(model, FAMILY, resolve("debug", given))
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen


def test_optimizer_groups_rates_and_decay() -> None:
    model = named()
    rates = {"lr_llm": 1e-4, "lr_connector": 2e-4, "lr_vit": 3e-4, "weight_decay": 0.1}
    given = {"checkpoint": "c", "data": ["d"], "output_path": "s"}
    optimizer = build_optimizer(model, FAMILY, resolve("debug", given, rates))
    by_id = {id(p): n for n, p in model.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.9, 0.95), 1e-6)
        for p in group["params"]:
            name = by_id[id(p)]
            assert group["base_lr"] == rates[f"lr_{group['group']}"]
            seen[name] = (group["group"], group["weight_decay"] > 0)
    assert seen == NAMES
    assert set_rates(optimizer, Schedule("constant", 200, 1000), 1) == {
        "llm": 1e-4, "connector": 2e-4, "vit": 3e-4,
    }  # fmt: skip


def test_schedule_is_the_published_formula() -> None:
    s = Schedule("cosine_with_warmup", warmup=200, duration=10_000)
    base = 5e-4
    assert s.rate(1, base) == pytest.approx(base / 200)
    assert s.rate(199, base) == pytest.approx(base * 199 / 200)
    assert s.rate(200, base) == pytest.approx(base)
    assert s.rate(10_000, base) == pytest.approx(0.1 * base)
    for step in (201, 3_456, 9_999):
        eta = 0.1 * base
        expected = eta + (base - eta) * (1 + math.cos(math.pi * (step - 200) / (10_000 - 200))) / 2
        assert s.rate(step, base) == pytest.approx(expected, rel=1e-12)
    assert Schedule("constant", 200, 10_000).rate(1, base) == base


def test_each_group_is_clipped_on_its_own() -> None:
    """The independent answer is torch's own clipping, called once per group."""
    model, twin = named(), named()
    for net in (model, twin):
        for i, p in enumerate(net.parameters()):
            p.grad = p.detach() * (10.0 if i % 2 else 0.001)
    norms = clip_by_group(trained_parameters(model, FAMILY), 1.0)
    for group in GROUPS:
        members = [p for n, p in twin.named_parameters() if parameter_group(n) == group]
        expected = torch.nn.utils.clip_grad_norm_(members, 1.0)
        assert norms[group].item() == pytest.approx(expected.item())
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-6, atol=0), name
