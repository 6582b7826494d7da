"""Where the reference's answers and the real inputs are; they are no part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(os.environ.get("MOLMOACT_GOLDEN", ROOT.parent / "shared" / "golden"))
SHARED_DATA = Path(os.environ.get("MOLMOACT_SHARED_DATA", ROOT.parent / "shared" / "data"))

needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"no golden answers at {GOLDEN}; set MOLMOACT_GOLDEN"
)
needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason=f"no real inputs at {SHARED_DATA}; set MOLMOACT_SHARED_DATA"
)
