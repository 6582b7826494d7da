"""How well a checkpoint does on depth maps it was not trained on, per dataset and over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from vqvae.codec import exact_inference
from vqvae.data import DepthSet
from vqvae.metrics import (
    ReconstructionSums,
    changed_share,
    code_counts,
    code_usage,
    reconstruction_sums,
)
from vqvae.model import VQVAE
from vqvae.recipe import Recipe, from_encoder_range, to_encoder_range

ALL = "all"


@dataclass(frozen=True)
class BatchResult:
    """Maps through the network and back."""

    true_NSS: NDArray[np.float32]
    """0..1."""
    decoded_NSS: NDArray[np.float32]
    """0..1."""
    codes_NC: NDArray[np.int64]


def reconstruct(model: VQVAE, maps_NSS: NDArray[np.uint8], recipe: Recipe) -> BatchResult:
    """uint8 [N,S,S], already at the network's size -> the same maps after coding."""
    device = next(model.parameters()).device
    x = torch.from_numpy(to_encoder_range(maps_NSS[:, None], recipe)).to(device)
    with exact_inference():
        codes = model.encode(x)
        decoded = model.decode(codes)[:, 0].float().cpu().numpy()
    return BatchResult(
        true_NSS=maps_NSS.astype(np.float32) / np.float32(255),
        decoded_NSS=from_encoder_range(decoded, recipe),
        codes_NC=codes.flatten(1).cpu().numpy(),
    )


def evaluate(
    model: VQVAE,
    depth_set: DepthSet,
    indices_N: NDArray[np.int64],
    recipe: Recipe,
    *,
    batch_size: int,
) -> dict[str, dict[str, Any]]:
    """Numbers per dataset, and under `all`: reconstruction, code usage, share of codes that change."""
    sums: dict[str, ReconstructionSums] = {}
    codes = np.zeros((len(indices_N), model.geometry.num_tokens), np.int64)
    owners = np.array([d for d, _ in depth_set.keys])[depth_set.episode_N[indices_N]]
    for dataset in sorted(set(owners)):
        mine = np.flatnonzero(owners == dataset)
        total = ReconstructionSums()
        for start in range(0, len(mine), batch_size):
            rows = mine[start : start + batch_size]
            result = reconstruct(model, depth_set.maps_NSS[indices_N[rows]], recipe)
            total += reconstruction_sums(result.decoded_NSS, result.true_NSS)
            codes[rows] = result.codes_NC
        sums[dataset] = total
    episodes = depth_set.episode_N[indices_N]
    size = model.geometry.codebook_size
    report = {
        d: _numbers(s, codes[owners == d], episodes[owners == d], size) for d, s in sums.items()
    }
    everything = sum(sums.values(), ReconstructionSums())
    return {ALL: _numbers(everything, codes, episodes, size), **report}


def _numbers(
    sums: ReconstructionSums,
    codes_NC: NDArray[np.int64],
    episode_N: NDArray[np.int32],
    codebook_size: int,
) -> dict[str, Any]:
    return {
        "num_maps": sums.num_maps,
        **sums.averages(),
        **code_usage(code_counts(codes_NC, codebook_size)),
        "codes_changed_between_frames": flicker(codes_NC, episode_N),
    }


def flicker(codes_NC: NDArray[np.int64], episode_N: NDArray[np.int32]) -> float | None:
    """Share of codes that change between neighbouring frames; None where no episode has two frames."""
    weighted, pairs = 0.0, 0
    for episode in np.unique(episode_N):
        mine = codes_NC[episode_N == episode]
        share = changed_share(mine)
        if share is not None:
            weighted += share * (len(mine) - 1)
            pairs += len(mine) - 1
    return weighted / pairs if pairs else None


def write_sheet(path: Path, result: BatchResult) -> None:
    """PNG: per row one map, its reconstruction, and the absolute error (white = a fifth of the range)."""
    error = np.clip(np.abs(result.decoded_NSS - result.true_NSS) * 5, 0, 1)
    columns = [result.true_NSS, result.decoded_NSS, error]
    sheet = np.concatenate([np.concatenate(list(c), axis=0) for c in columns], axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.rint(sheet * 255).astype(np.uint8))
