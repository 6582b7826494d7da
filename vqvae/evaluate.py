"""How well a checkpoint does on depth maps it was not trained on, per dataset and over all of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, LimitExceeded, UserError
from molmoact_data.files.folders import write_bytes
from molmoact_data.processes import pick_device
from vqvae import checkpoint as checkpoint_io
from vqvae.codec import exact_inference
from vqvae.config import EvalConfig
from vqvae.depth import places
from vqvae.depth.data import DepthEpisode, DepthKind, DepthSet, prepare_frames
from vqvae.metrics import (
    ReconstructionSums,
    changed_share,
    code_counts,
    code_usage,
    reconstruction_sums,
)
from vqvae.model import VQVAE
from vqvae.recipe import Recipe, Scaling, from_encoder_range, to_encoder_range

ALL = "all"
SCALINGS: tuple[Scaling, ...] = get_args(Scaling)
_SHEET_ROWS = 6

logger = logging.getLogger(__name__)


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
    encoded = cv2.imencode(".png", np.rint(sheet * 255).astype(np.uint8))[1]
    write_bytes(path, encoded.tobytes())


# `molmoact vqvae eval`: whole places of depth, streamed episode by episode


@dataclass
class Tally:
    """Running numbers of one dataset."""

    codebook_size: int
    sums: ReconstructionSums = field(default_factory=ReconstructionSums)
    counts: NDArray[np.int64] | None = None
    num_changed: dict[Scaling, int] = field(default_factory=lambda: dict.fromkeys(SCALINGS, 0))
    num_compared: int = 0

    def add(
        self, sums: ReconstructionSums, scaling: Scaling, codes: dict[Scaling, NDArray[np.int64]]
    ) -> None:
        """One episode: its reconstruction, and its codes [T,C] under every scaling."""
        self.sums += sums
        counts = code_counts(codes[scaling], self.codebook_size)
        self.counts = counts if self.counts is None else self.counts + counts
        for name in SCALINGS:
            self.num_changed[name] += int((codes[name][1:] != codes[name][:-1]).sum())
        self.num_compared += codes[scaling][1:].size

    def numbers(self) -> dict[str, Any]:
        """What is reported; the shares are None where no episode has two frames."""
        assert self.counts is not None, "a tally without an episode"
        pairs = self.num_compared
        return {
            "num_maps": self.sums.num_maps,
            **self.sums.averages(),
            **code_usage(self.counts),
            "codes_changed_between_frames": {
                f"{name}_scaling": self.num_changed[name] / pairs if pairs else None
                for name in SCALINGS
            },
        }


def measure_episode(
    model: VQVAE, recipe: Recipe, episode: DepthEpisode, scaling: Scaling, batch_size: int
) -> tuple[ReconstructionSums, dict[Scaling, NDArray[np.int64]], BatchResult]:
    """Reconstruction under `scaling`, codes [T,C] under every scaling, the first frame for the sheet."""
    codes: dict[Scaling, NDArray[np.int64]] = {}
    sums, first = ReconstructionSums(), None
    for name in SCALINGS:
        prepared = prepare_frames(
            episode, size=model.geometry.image_size, recipe=recipe, scaling=name
        )
        maps = np.concatenate(list(prepared))
        starts = range(0, len(maps), batch_size)
        results = [reconstruct(model, maps[s : s + batch_size], recipe) for s in starts]
        codes[name] = np.concatenate([r.codes_NC for r in results])
        if name == scaling:
            pairs = (reconstruction_sums(r.decoded_NSS, r.true_NSS) for r in results)
            sums, first = sum(pairs, sums), results[0]
    assert first is not None
    return sums, codes, BatchResult(first.true_NSS[:1], first.decoded_NSS[:1], first.codes_NC[:1])


def measure(config: EvalConfig) -> dict[str, dict[str, Any]]:
    """Numbers per dataset and under `all`."""
    checkpoint = checkpoint_io.load(config.checkpoint)
    model = checkpoint.model.to(pick_device(config.device))
    size = model.geometry.codebook_size
    tallies: dict[str, Tally] = {ALL: Tally(size)}
    pictures: list[BatchResult] = []
    for episode in _episodes(config, model.geometry.image_size):
        try:
            sums, codes, first = measure_episode(
                model, checkpoint.recipe, episode, config.scaling, config.batch_size
            )
        except EpisodeRejected as reason:
            logger.warning("%s %s is left out: %s", episode.dataset, episode.key, reason)
            continue
        for name in (ALL, episode.dataset):
            tallies.setdefault(name, Tally(size)).add(sums, config.scaling, codes)
        if len(pictures) < _SHEET_ROWS:
            pictures.append(first)
    if not pictures:
        raise UserError(f"no depth map was found in {', '.join(config.data)}.")
    if config.output_path is not None:
        write_sheet(config.output_path, _joined(pictures))
    return {name: tally.numbers() for name, tally in tallies.items()}


def check_min_codes(report: dict[str, dict[str, Any]], min_codes: int | None) -> None:
    """Raise `LimitExceeded` where fewer codes than `min_codes` are used."""
    used = report[ALL]["codes_used"]
    if min_codes is not None and used < min_codes:
        raise LimitExceeded(
            f"{used} codes are used on this data, --min-codes asks for {min_codes}."
        )


def as_table(report: dict[str, dict[str, Any]]) -> str:
    """The report as text columns."""
    rows = [["", *report]]
    for name, value in report[ALL].items():
        if isinstance(value, dict):
            rows += [
                [f"{name}, {k}", *(_short(r[name][k]) for r in report.values())] for k in value
            ]
        else:
            rows.append([name, *(_short(numbers[name]) for numbers in report.values())])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows)


def _short(value: float | int | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _episodes(config: EvalConfig, size: int) -> Iterable[DepthEpisode]:
    estimator = places.depth_estimator(config.depth_encoder)
    kind: DepthKind | Literal["auto"] = config.depth_kind
    for place in config.data:
        yield from islice(places.open_place(place, kind, estimator, size), config.max_episodes)


def _joined(results: list[BatchResult]) -> BatchResult:
    return BatchResult(
        np.concatenate([r.true_NSS for r in results]),
        np.concatenate([r.decoded_NSS for r in results]),
        np.concatenate([r.codes_NC for r in results]),
    )
