"""What is not computed changes nothing: padding, packed rows laid out by document, the end of the last block."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from golden_molmoact2 import TINY, fresh, needs_molmoact2
from test_train_molmoact2_training import golden_samples
from torch import Tensor

from molmoact_train.families.molmoact.network.attention import RealTokens
from molmoact_train.families.molmoact.network.language import SiluGate
from molmoact_train.families.molmoact2.network import layout
from molmoact_train.families.molmoact2.network.layout import DocumentRows
from molmoact_train.families.molmoact2.samples import collate


def test_real_tokens_go_flat_and_come_back() -> None:
    real = torch.tensor([[False, True, True], [True, False, True]])
    tokens = RealTokens.of(real)
    x = torch.arange(12.0).view(2, 3, 2)
    assert tokens.flat(x).tolist() == [[[2, 3], [4, 5], [6, 7], [10, 11]]]
    assert torch.equal(tokens.padded(tokens.flat(x)), x * real[..., None])
    assert tokens.numbers(torch.tensor([[True, False, True], [False, False, True]])).tolist() == [
        1,
        3,
    ]


def test_documents_become_rows_and_chunks_follow_them() -> None:
    """Two rows with three documents, one of them without a chunk, the second row padded."""
    documents = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, -1, -1]])
    values = torch.arange(10).view(2, 5)
    rows = DocumentRows.of(documents, None)
    assert rows.of_tokens(values, -7).tolist() == [[0, 1, -7], [2, 3, 4], [5, 6, 7]]
    assert rows.saves_attention
    (sample,) = given_chunk()
    owners = torch.tensor([[1, -1], [0, -1]])
    steps = torch.zeros(2, 2, 12, dtype=torch.bool)
    steps[:, 0] = True
    chunks = dataclasses.replace(
        sample, documents_BE=owners, steps_BET=steps,
        actions_BETA=torch.arange(4.0).view(2, 2, 1, 1).expand(2, 2, 12, 32),
        noise_BEFTA=torch.zeros(2, 2, 1, 12, 32), times_BEF=torch.zeros(2, 2, 1),
        dims_BEA=torch.ones(2, 2, 32, dtype=torch.bool),
    )  # fmt: skip
    found = DocumentRows.of(documents, chunks).of_chunks(chunks)
    assert found.exists_BE.tolist() == [[False], [True], [True]]
    assert found.actions_BETA[:, 0, 0, 0].tolist() == [0, 0, 2]
    lonely = torch.tensor([[0] * 9 + [1] + [2]])
    assert not DocumentRows.of(lonely, None).saves_attention


def given_chunk() -> list[Any]:
    return [collate(golden_samples()[:1], seq_len=400, text_first=True).chunks]


@needs_molmoact2
@pytest.mark.parametrize("text", [True, False])
def test_a_step_without_padding_is_the_step_with_it(
    monkeypatch: pytest.MonkeyPatch, *, text: bool
) -> None:
    """Losses and gradients of packed rows, with the large mask and with rows by document; and every token computed."""
    results = []
    for by_document in (True, False):
        monkeypatch.setattr(
            layout.DocumentRows, "saves_attention", property(lambda _, found=by_document: found)
        )
        model = fresh(TINY).train()
        batch = collate(golden_samples(), seq_len=400, text_first=True)
        inputs = dict(batch.inputs)
        if not text:
            del inputs["targets"], inputs["loss_weights"]
        out = model(**inputs, chunks=batch.chunks)
        out.loss.backward()
        results.append((out.loss.detach(), gradients(model)))
    (loss, gradient), (other_loss, other_gradient) = results
    torch.testing.assert_close(loss, other_loss, rtol=1e-5, atol=0)
    assert (gradient - other_gradient).abs().max() < 1e-5 * gradient.abs().max()


@needs_molmoact2
def test_wanted_tokens_are_those_of_the_whole_answer() -> None:
    model = fresh(TINY)
    batch = collate(golden_samples(), seq_len=None, text_first=True).inputs
    real = batch["input_ids"] >= 0
    wanted = batch["loss_weights"] > 0
    given = (batch["input_ids"], batch["pixels"], batch["windows"])
    with torch.no_grad():
        whole = model.model(*given, real_BK=real)
        some = model.model(*given, real_BK=real, wanted_BS=wanted)
    torch.testing.assert_close(some.hidden_BSL, whole.hidden_BSL[wanted])
    for a, b in zip(some.keys, whole.keys, strict=True):
        torch.testing.assert_close(a[real], b[real])


def gradients(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_the_gradient_of_the_gate_is_that_of_its_formula() -> None:
    fused = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 5, 8))).requires_grad_()
    torch.autograd.gradcheck(SiluGate.apply, fused)
    up, gate = fused.chunk(2, dim=-1)
    torch.testing.assert_close(SiluGate.apply(fused), torch.nn.functional.silu(gate) * up)
