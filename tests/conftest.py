"""Fixtures of more than one test file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants  # noqa: F401 - read the environment before a test changes it
import pytest
from huggingface_hub.utils import reset_sessions


@pytest.fixture
def make_output(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a finished output: `make_output("name", source=..., action_bins=...)`."""
    from made_outputs import write_output

    def make(name: str = "out", **settings: Any) -> Path:
        return write_output(tmp_path / name, **settings)

    return make


@pytest.fixture(autouse=True)
def no_offline_session_left_behind():
    """huggingface_hub caches its sessions, the refusing ones of an offline test included."""
    yield
    reset_sessions()
