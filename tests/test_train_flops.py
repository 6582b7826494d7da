"""The formula against what PyTorch counts while the network runs, and against the published estimate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from molmoact_train.debug.tiny import tiny_config, tiny_processor
from molmoact_train.families.molmoact.flops import Work, forward_flops
from molmoact_train.families.molmoact.network import (
    MolmoActForActionReasoning,
    Savings,
    released_config,
)


@pytest.mark.parametrize("variant", ["D", "O"])
@pytest.mark.parametrize("saving", [True, False])
def test_equals_what_pytorch_counts(variant: Any, saving: bool) -> None:  # noqa: FBT001
    config = tiny_config(variant=variant)
    model = MolmoActForActionReasoning(config)
    if not saving:
        model.savings = Savings(deduplicate_crops=False, loss_rows_only=False, loss_chunk_rows=None)
    rgb = np.random.default_rng(0).integers(0, 256, (84, 84, 3), dtype=np.uint8)
    sample = tiny_processor(variant=variant).training_sample([rgb], "lift it", "Based on it, [1].")
    batch = {name: torch.from_numpy(array)[None] for name, array in sample.items()}
    # The plain kernel is made of products that the counter sees; it does not skip the masked half.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(
            batch["input_tokens"],
            batch["images"],
            batch["pooled_patches_idx"],
            targets=batch["target_tokens"],
            loss_weights=batch["loss_masks"],
        )
    length, rows = batch["input_tokens"].shape[1], int(batch["loss_masks"].sum())
    work = Work(1, 9, length, rows) if saving else Work(2, 18, length, length)
    llm = config.llm_config
    masked_half = 2 * llm.num_hidden_layers * llm.num_attention_heads * llm.head_dim * length**2
    assert counter.get_total_flops() == forward_flops(config, work).total + masked_half


def test_a_libero_sample_of_the_real_model_takes_half_of_the_padded_path() -> None:
    """Independent estimate of the specification: 44.8 and 21.1 TFLOP (image encoder 11.1 and 1.2)."""
    config = released_config("D")
    plain = forward_flops(config, Work(18, 784, 2304, 2304))
    ours = forward_flops(config, Work(2, 392, 1455, 451))
    assert plain.total / 1e12 == pytest.approx(44.8, rel=0.01)
    assert ours.total / 1e12 == pytest.approx(21.1, rel=0.01)
    assert (plain.vit / 1e12, ours.vit / 1e12) == pytest.approx((11.1, 1.2), abs=0.05)
    assert plain.total / ours.total > 2.1
