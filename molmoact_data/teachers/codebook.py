"""Where a VQ-VAE comes from: `embedded`, `released`, or a path. One rule for every command that takes a codebook."""

from __future__ import annotations

from pathlib import Path

from molmoact_data.errors import UserError
from molmoact_data.teachers.published import RELEASED_VQVAE, fetch
from molmoact_data.teachers.registry import EMBEDDED_VQVAE

EMBEDDED, RELEASED = "embedded", "released"
RELEASED_FILE = "vae-final.pt"


def codebook_path(name: str | Path) -> Path:
    """The file or run folder. `released` is fetched once from the published model's repository; a file or folder of
    that name here wins. Raises `UserError` where nothing is there."""
    path = Path(name)
    if path.exists():
        return path
    if str(name) == EMBEDDED:
        return EMBEDDED_VQVAE
    if str(name) == RELEASED:
        return fetch(RELEASED_VQVAE) / RELEASED_FILE
    named = f"{RELEASED} (fetched: {RELEASED_VQVAE.size}, {RELEASED_VQVAE.licence}) or {EMBEDDED}"
    raise UserError(
        f"no VQ-VAE checkpoint at {path}. Give a vae-final.pt, a .safetensors file or a run folder of "
        f"`molmoact vqvae train`, or {named}."
    )
