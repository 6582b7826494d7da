"""Depth maps to codes and back, from one path: the `DepthTokenizer` that preprocessing uses."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from molmoact_data.errors import UserError, unknown_name
from molmoact_data.processes import pick_device
from vqvae import checkpoint as checkpoint_io
from vqvae.config import Geometry
from vqvae.depth.scenes import depth_maps
from vqvae.model import VQVAE
from vqvae.recipe import (
    NAMED_RECIPES,
    Recipe,
    encoder_input,
    from_encoder_range,
    to_encoder_range,
)

logger = logging.getLogger(__name__)


class VQVAECodec:
    """A released `vae-final.pt` or one of our checkpoints, ready to encode.

    `recipe="checkpoint"` is what the checkpoint says (a released file: signed range, nearest resize);
    `"reference"` is what the public MolmoAct preprocessing did (unit range, bilinear resize).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        recipe: str | Recipe = "checkpoint",
        device: str = "auto",
        batch_size: int = 64,
    ) -> None:
        loaded = checkpoint_io.load(path)
        self._checkpoint = loaded
        self.recipe = choose_recipe(recipe, loaded.recipe)
        self.device = pick_device(device)
        self.batch_size = batch_size
        self._model = loaded.model.to(self.device)
        geometry = loaded.model.geometry
        self.geometry: Geometry = geometry
        self.codebook_size = geometry.codebook_size
        self.grid_hw = (geometry.num_code_levels * geometry.grid_size, geometry.grid_size)
        warn_if_other_range_is_better(self._model, self.recipe)

    def describe(self) -> dict[str, str]:
        """Name, file hash, licence, recipe and geometry, for the manifest."""
        geometry = dataclasses.asdict(self.geometry)
        return {
            "name": "vqvae",
            "revision": f"sha256:{self._checkpoint.sha256}",
            "licence": self._checkpoint.licence,
            "range": self.recipe.range,
            "resize": self.recipe.resize,
            "geometry": ",".join(f"{k}={v}" for k, v in geometry.items()),
        }

    def encode(self, depth_u8_NHW: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Depth scaled to 0..255, uint8 [N,H,W] at any size -> ids [N, num_tokens], row-major.

        With residual codes the levels follow one another, the coarsest first.
        """
        if depth_u8_NHW.dtype != np.uint8 or depth_u8_NHW.ndim != 3:
            raise UserError(
                f"depth to encode must be uint8 [N,H,W] scaled to 0..255, got "
                f"{depth_u8_NHW.dtype} {list(depth_u8_NHW.shape)}."
            )
        chunks = [np.zeros((0, self.geometry.num_tokens), np.int64)]
        with exact_inference():
            for start in range(0, len(depth_u8_NHW), self.batch_size):
                batch = depth_u8_NHW[start : start + self.batch_size]
                x = encoder_input(batch, self.geometry.image_size, self.recipe)
                codes = self._model.encode(torch.from_numpy(x).to(self.device))
                chunks.append(codes.flatten(1).cpu().numpy())
        return np.concatenate(chunks)

    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """Ids [N, num_tokens] -> float32 [N,S,S] in 0..1, larger = nearer."""
        self._check_codes(codes)
        g, size = self.geometry, self.geometry.image_size
        shaped = codes.astype(np.int64).reshape(-1, g.num_code_levels, g.grid_size, g.grid_size)
        chunks: list[NDArray[np.float32]] = [np.zeros((0, size, size), np.float32)]
        with exact_inference():
            for start in range(0, len(shaped), self.batch_size):
                batch = torch.from_numpy(shaped[start : start + self.batch_size])
                x = self._model.decode(batch.to(self.device))[:, 0].cpu().numpy()
                chunks.append(from_encoder_range(x, self.recipe))
        return np.concatenate(chunks)

    def _check_codes(self, codes: NDArray[np.integer]) -> None:
        tokens = self.geometry.num_tokens
        if codes.ndim != 2 or codes.shape[1] != tokens:
            raise UserError(
                f"this codebook has {tokens} codes per image, got an array of {list(codes.shape)}."
            )
        if codes.size and not (codes.min() >= 0 and codes.max() < self.codebook_size):
            raise UserError(
                f"codes must lie in 0..{self.codebook_size - 1}, got {codes.min()}..{codes.max()}."
            )


def choose_recipe(asked: str | Recipe, stated: Recipe) -> Recipe:
    """A recipe by value, by name, or the one that the checkpoint states."""
    if isinstance(asked, Recipe):
        return asked
    if asked == "checkpoint":
        return stated
    if asked not in NAMED_RECIPES:
        raise unknown_name("depth recipe", asked, ["checkpoint", *NAMED_RECIPES])
    return NAMED_RECIPES[asked]


@contextmanager
def exact_inference() -> Iterator[None]:
    """No gradients and no TF32: a code near a boundary must not depend on the kind of device."""
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        yield


def range_errors(model: VQVAE, recipe: Recipe) -> dict[str, float]:
    """Mean absolute reconstruction error in units of 0..1 under both ranges, on procedural depth."""
    depth_u8 = depth_maps(seed=0, num_maps=4, size=model.geometry.image_size)
    device = model.codebook.device
    errors = {}
    with exact_inference():
        for name in ("signed", "unit"):
            tried = dataclasses.replace(recipe, range=name)
            x = torch.from_numpy(to_encoder_range(depth_u8[:, None], tried)).to(device)
            out = model.decode(model.encode(x)).cpu().numpy()
            error = from_encoder_range(out, tried)[:, 0] - depth_u8.astype(np.float32) / 255
            errors[name] = float(np.abs(error).mean())
    return errors


def warn_if_other_range_is_better(model: VQVAE, recipe: Recipe) -> None:
    """The self-check on loading: a codebook fed a range it was not trained on gives other codes."""
    errors = range_errors(model, recipe)
    other = "unit" if recipe.range == "signed" else "signed"
    if errors[other] < errors[recipe.range]:
        logger.warning(
            "THE DEPTH RANGE LOOKS WRONG: this VQ-VAE is used with the %s range, but reconstructs "
            "better with the %s one (mean absolute error %.3f against %.3f). Codes made this way mean "
            "something else than in its training. Use the other range, or ignore this if you "
            "must reproduce labels that were made so.",
            recipe.range, other, errors[recipe.range], errors[other],
        )  # fmt: skip
