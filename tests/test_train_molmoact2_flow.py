"""The action expert, its losses and its sampler against the public implementation's answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from golden_molmoact2 import (
    RELATIVE,
    TINY,
    arrays,
    fresh,
    needs_molmoact2,
    relative,
    tensors,
    windows,
)
from torch import Tensor

from molmoact_train.families.molmoact2.network import MolmoAct2
from molmoact_train.families.molmoact2.network.flow import ActionChunks, draw_times, euler
from molmoact_train.families.molmoact2.network.molmoact2 import Losses

pytestmark = needs_molmoact2
LAYERS = range(3)


def velocity(
    golden: dict[str, Tensor],
    prefix: str = "",
    noisy: str = "noisy",
    *,
    mask: bool = True,
    steps: Tensor | None = None,
) -> Tensor:
    expert = fresh(TINY).expert
    keys = [golden[f"{prefix}k_{i}"] for i in LAYERS]
    values = [golden[f"{prefix}v_{i}"] for i in LAYERS]
    visible = golden[f"{prefix}encoder_attention_mask"][:, None, None] if mask else None
    times = golden[f"{prefix}timesteps"][:, None]
    with torch.no_grad():
        return expert(
            golden[prefix + noisy][:, None],
            expert.condition(times),
            expert.context(keys, values, visible),
            None if steps is None else steps[:, None],
        )[:, 0]


def test_velocities_equal_the_original() -> None:
    golden = tensors("action_expert.npz")
    horizon = golden["horizon_valid"]
    assert relative(velocity(golden), golden["velocity"]) < RELATIVE
    assert relative(velocity(golden, mask=False), golden["velocity_no_mask"]) < RELATIVE
    masked = velocity(golden, steps=horizon)
    assert relative(masked, golden["velocity_horizon_masked"]) < RELATIVE
    assert relative(velocity(golden, noisy="short_noisy"), golden["velocity_short"]) < RELATIVE
    assert relative(velocity(golden, "both_"), golden["both_velocity"]) < RELATIVE


def test_what_the_expert_may_see_equals_the_original() -> None:
    golden, model = tensors("action_expert.npz"), fresh(TINY)
    real = tensors("training_sample.npz")["both_attention_mask"].bool()
    found = model.visible(golden["both_input_ids"], real)
    assert torch.equal(found, golden["both_encoder_attention_mask"])
    prompt = golden["prompt_input_ids"]
    found = model.visible(prompt, torch.ones_like(prompt, dtype=torch.bool))
    assert torch.equal(found, golden["encoder_attention_mask"])


def test_chunks_and_draws_of_one_row_do_not_see_each_other() -> None:
    """Folding them into the queries of the cross attention is the same as running them one by one."""
    golden, expert = tensors("action_expert.npz"), fresh(TINY).expert
    context = expert.context(
        [golden[f"k_{i}"] for i in LAYERS],
        [golden[f"v_{i}"] for i in LAYERS],
        golden["encoder_attention_mask"][:, None, None],
    )
    torch.manual_seed(0)
    noisy, times = torch.randn(1, 4, 12, 32), torch.rand(1, 4)
    steps = torch.arange(12) < torch.tensor([12, 5, 12, 7])[:, None]
    with torch.no_grad():
        together = expert(noisy, expert.condition(times), context, steps[None])
        alone = [
            expert(noisy[:, [n]], expert.condition(times[:, [n]]), context, steps[None, [n]])
            for n in range(4)
        ]
    assert relative(together, torch.cat(alone, dim=1)) < 1e-6


def losses(
    config_mode: str,
    text: str,
    attention: str,
    *,
    counted: bool,
    masked_tail: bool,
    weight: str = "published",
    insulated: bool = False,
) -> tuple[MolmoAct2, Losses]:
    """The golden training batch with the golden noise, under one of the published variants."""
    sample, drawn, model = tensors("training_sample.npz"), tensors("loss.npz"), fresh(TINY).train()
    model.config = dataclasses.replace(model.config, action_mode=config_mode)
    model.model.image_attention = attention
    ids, real = sample[f"{text}_input_ids"], sample[f"{text}_attention_mask"].bool()
    padded = sample[f"{text}_action_horizon_is_pad"]
    chunks = ActionChunks(
        actions_BETA=sample[f"{text}_action"][:, None],
        noise_BEFTA=drawn["noise"][:, None],
        times_BEF=drawn["timesteps"][:, None],
        steps_BET=~(padded if masked_tail else torch.zeros_like(padded))[:, None],
        dims_BEA=~sample[f"{text}_action_dim_is_pad"][:, None],
    )
    supervision: dict[str, Any] = {}
    if text == "both":
        following = sample["both_labels"].roll(-1, dims=1)
        has_loss = following != -100
        count = has_loss.sum(dim=1, keepdim=True).float()
        scale = {"published": 2 / count.sqrt(), "none": count**0, "root": 1 / count.sqrt()}[weight]
        supervision = {"targets": following.clamp(min=0), "loss_weights": has_loss * scale}
    return model, model(
        ids,
        sample["pixel_values_u8"],
        windows(sample[f"{text}_image_token_pooling"], 4),
        real=real,
        position_ids=None if counted else torch.arange(ids.shape[1]).expand_as(ids),
        chunks=chunks,
        insulated=insulated,
        **supervision,
    )


VARIANTS: dict[str, tuple[Any, dict[str, bool]]] = {
    "lerobot": (("both", "both", "bidirectional"), {"counted": False, "masked_tail": True}),
    "causal": (("both", "both", "causal"), {"counted": False, "masked_tail": True}),
    "official_both": (("both", "both", "causal"), {"counted": True, "masked_tail": False}),
    # LeRobot 0.6.1 hides BOS and the turn's end of a `both` base even in continuous-only training.
    "lerobot_continuous": (
        ("both", "continuous", "bidirectional"),
        {"counted": False, "masked_tail": True},
    ),
    "official_continuous": (
        ("continuous", "continuous", "causal"),
        {"counted": True, "masked_tail": False},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_equal_the_original(name: str) -> None:
    positional, settings = VARIANTS[name]
    golden = tensors("loss.npz")
    _, found = losses(*positional, **settings)
    assert found.flow_BE is not None
    torch.testing.assert_close(
        found.flow_BE[:, 0].detach(), golden[f"{name}_flow_per_sample"], rtol=1e-5, atol=0
    )
    if found.text is not None:
        torch.testing.assert_close(
            found.text.cross_entropy, golden[f"{name}_ce"], rtol=1e-5, atol=0
        )
        torch.testing.assert_close(found.text.z_loss, golden[f"{name}_z"], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("weight", "key"), [("none", "none"), ("root", "root_tokens")])
def test_token_weights_equal_the_original(weight: str, key: str) -> None:
    golden = tensors("loss.npz")
    positional, settings = VARIANTS["lerobot"]
    _, found = losses(*positional, **settings, weight=weight)
    assert found.text is not None
    expected = golden[f"weighting_{key}_ce"]
    torch.testing.assert_close(found.text.cross_entropy, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.text.z_loss, golden[f"weighting_{key}_z"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("insulated", [False, True])
def test_gradients_of_the_flow_loss_equal_the_original(*, insulated: bool) -> None:
    positional, settings = VARIANTS["lerobot"]
    model, found = losses(*positional, **settings, insulated=insulated)
    assert found.flow_BE is not None
    found.flow_BE.mean().backward()
    kind = "insulated" if insulated else "open"
    golden = {
        name.partition(":")[2]: value
        for name, value in arrays("loss.npz").items()
        if name.startswith(f"grad_flow_{kind}:")
    }
    assert golden
    parameters = dict(model.named_parameters())
    for name, expected in golden.items():
        gradient = parameters[name].grad
        assert gradient is not None
        assert relative(gradient, torch.from_numpy(expected)) < RELATIVE, name
    frozen = {n.removeprefix("model.") for n in arrays("loss.npz")["frozen_embedding"]}
    outside = [
        p.grad for n, p in parameters.items()
        if "action_expert" not in n and n not in frozen and p.grad is not None
    ]  # fmt: skip
    norm = float(torch.nn.utils.get_total_norm(outside)) if outside else 0.0
    assert norm == pytest.approx(float(arrays("loss.npz")[f"grad_flow_{kind}_vlm_norm"]), rel=1e-4)


def test_times_are_drawn_as_in_the_original() -> None:
    flow = fresh(TINY).config.flow
    assert flow is not None
    drawn = draw_times(np.random.default_rng(0), 4000, flow)
    mean_std, limits = arrays("loss.npz")["beta_mean_std"], arrays("loss.npz")["beta_min_max"]
    np.testing.assert_allclose([drawn.mean(), drawn.std()], mean_std, atol=0.02)
    assert 0.001 <= drawn.min() < 0.01
    assert limits[1] - 0.05 < drawn.max() < 1.0


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("kind", ["free", "masked"])
def test_trajectories_equal_the_original(steps: int, kind: str) -> None:
    golden, model = tensors("sampling.npz"), fresh(TINY)
    ids, real = golden["prompt_input_ids"], golden["prompt_attention_mask"].bool()
    dims = None if kind == "free" else ~golden["action_dim_is_pad"]
    with torch.no_grad():
        encoded = model.model(
            ids,
            golden["prompt_pixel_values_u8"],
            windows(golden["prompt_image_token_pooling"], 2),
            real_BK=real,
        )
        context = model.expert_context(encoded, ids, model.visible(ids, real))
        found = euler(model.expert, context, golden[f"noise_{steps}"], steps, dims)
        short = euler(model.expert, context, golden["noise_4_horizon5"], 4)
    assert relative(found, golden[f"trajectory_{steps}_{kind}"]) < RELATIVE
    assert relative(short, golden["trajectory_4_horizon5"]) < RELATIVE
