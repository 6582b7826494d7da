"""A device by name: what torch knows is taken, the rest is the user's to mend."""

from __future__ import annotations

import pytest
import torch

from molmoact_data.errors import UserError
from molmoact_data.processes import pick_device


def test_names_of_torch_are_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown device 'cdua'\. Did you mean 'cuda'"):
        pick_device("cdua")


@pytest.mark.parametrize(("name", "available"), [("cuda", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_said(
    name: str, available: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: available)
    with pytest.raises(UserError, match=f"--device {name}: torch can use {available} GPUs here"):
        pick_device(name)


def test_a_gpu_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
