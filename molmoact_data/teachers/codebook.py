"""Where a VQ-VAE comes from: `embedded`, `released`, or a path. One rule for every command that takes a codebook."""

from __future__ import annotations

from collections.abc import Iterator
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


def codebooks_at_hand(name: str | None) -> Iterator[Path]:
    """Where the VQ-VAE that an output was made with (`name` as it was asked for then) may lie on this machine.

    The packaged one first; nothing is fetched. Whether it is the same file, its hash says.
    """
    yield EMBEDDED_VQVAE
    if name is None or name == EMBEDDED:
        return
    if Path(name).exists():
        yield Path(name)
    elif name == RELEASED:
        from huggingface_hub import try_to_load_from_cache

        place = try_to_load_from_cache(
            RELEASED_VQVAE.repository, RELEASED_FILE, revision=RELEASED_VQVAE.revision
        )
        if isinstance(place, str):
            yield Path(place)
