"""The chunked loss against the plain formula in numpy, and its gradients against autograd of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from molmoact_train.families.molmoact.loss import next_token_loss, token_loss


def case(rows: int = 11) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(rows, 5, requires_grad=True)
    head = torch.nn.Linear(5, 17, bias=False)
    return hidden, head, torch.randint(0, 17, (rows,)), torch.rand(rows)


def test_equals_the_formula_in_numpy() -> None:
    hidden, head, targets, weights = case()
    found = token_loss(hidden, head, targets, weights, divisor=3.5, with_accuracy=True)
    logits = (hidden @ head.weight.T).detach().double().numpy()
    lse = np.log(np.exp(logits).sum(1))
    nll = lse - logits[np.arange(11), targets.numpy()]
    ce, z = (weights.numpy() * nll).sum() / 3.5, 1e-4 * (weights.numpy() * lse**2).sum() / 3.5
    np.testing.assert_allclose(found.nll_R.numpy(), nll, rtol=1e-5)
    assert found.cross_entropy.item() == pytest.approx(ce, rel=1e-5)
    assert found.z_loss.item() == pytest.approx(z, rel=1e-5)
    assert found.loss.item() == pytest.approx(ce + z, rel=1e-5)
    assert found.correct_R.tolist() == (logits.argmax(1) == targets.numpy()).tolist()


@pytest.mark.parametrize("chunk_rows", [1, 4, 11, 100])
def test_chunks_change_neither_loss_nor_gradients(chunk_rows: int) -> None:
    gradients = []
    for chunk in (None, chunk_rows):
        hidden, head, targets, weights = case()
        loss = token_loss(hidden, head, targets, weights, divisor=2.0, chunk_rows=chunk).loss
        loss.backward()
        gradients.append((loss.detach(), hidden.grad, head.weight.grad))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_chunks_keep_no_logits_for_the_backward_pass() -> None:
    """The largest tensor autograd keeps must be smaller than all logits."""
    hidden, head, targets, weights = case(rows=40)
    kept: list[int] = []

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    for chunk, expected_max in ((None, 40 * 17), (4, 40)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda t: t):
            token_loss(hidden, head, targets, weights, divisor=1.0, chunk_rows=chunk)
        assert max(kept) == expected_max


def test_no_rows_give_a_zero_that_can_be_differentiated() -> None:
    hidden, head, targets, weights = case()
    found = token_loss(hidden[:0], head, targets[:0], weights[:0], divisor=1.0)
    assert found.loss.item() == 0.0
    found.loss.backward()
    assert head.weight.grad.abs().sum() == 0


def test_hugging_face_labels_are_shifted_and_masked() -> None:
    logits, labels = torch.randn(2, 6, 9), torch.randint(0, 9, (2, 6))
    labels[0, :3] = -100
    expected = [
        -torch.log_softmax(logits[b, s], -1)[labels[b, s + 1]]
        for b in range(2)
        for s in range(5)
        if labels[b, s + 1] >= 0
    ]
    torch.testing.assert_close(next_token_loss(logits, labels), torch.stack(expected).mean())
