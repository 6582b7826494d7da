"""Fixtures of more than one test file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def make_output(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a finished output: `make_output("name", source=..., action_bins=...)`."""
    from made_outputs import write_output

    def make(name: str = "out", **settings: Any) -> Path:
        return write_output(tmp_path / name, **settings)

    return make
