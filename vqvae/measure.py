"""`molmoact vqvae eval`: numbers for a checkpoint on whole places of depth, streamed episode by episode."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import LimitExceeded, UserError
from molmoact_data.processes import pick_device
from vqvae import checkpoint as checkpoint_io, places, run_folder
from vqvae.data import DepthEpisode, DepthKind, Scaling, prepare_frames
from vqvae.evaluate import ALL, BatchResult, reconstruct, write_sheet
from vqvae.metrics import ReconstructionSums, code_counts, code_usage, reconstruction_sums
from vqvae.model import VQVAE
from vqvae.recipe import Recipe

SCALINGS: tuple[Scaling, ...] = ("image", "episode")
_SHEET_ROWS = 6


@dataclass(frozen=True)
class EvalConfig:
    """What is measured, on what."""

    checkpoint: Path
    data: tuple[str, ...]
    """Places of depth: see `vqvae.places.open_place`. All of it is measured on."""
    depth_encoder: str | None = None
    depth_kind: Literal["auto", "inverse", "metric"] = "auto"
    scaling: Scaling = "image"
    """Of the reconstruction numbers; the share of codes that change is reported for both scalings."""
    max_episodes: int | None = None
    """Per place; None = all."""
    min_codes: int | None = None
    """Fewer used codes than this over all data are a failure."""
    sheet: Path | None = None
    """PNG of inputs, reconstructions and errors; None = not written."""
    device: str = "auto"
    batch_size: int = 16


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
        """One episode: its reconstruction, and its codes [T,C] under both scalings."""
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
        maps = prepare_frames(
            episode.depth_THW, size=model.geometry.image_size, recipe=recipe, scaling=name
        )
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
        sums, codes, first = measure_episode(
            model, checkpoint.recipe, episode, config.scaling, config.batch_size
        )
        for name in (ALL, episode.dataset):
            tallies.setdefault(name, Tally(size)).add(sums, config.scaling, codes)
        if len(pictures) < _SHEET_ROWS:
            pictures.append(first)
    if not pictures:
        raise UserError(f"no depth map was found in {', '.join(config.data)}.")
    if config.sheet is not None:
        write_sheet(config.sheet, _joined(pictures))
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
    estimator = run_folder.depth_estimator(config.depth_encoder)
    kind: DepthKind | Literal["auto"] = config.depth_kind
    for place in config.data:
        yield from islice(places.open_place(place, kind, estimator, size), config.max_episodes)


def _joined(results: list[BatchResult]) -> BatchResult:
    return BatchResult(
        np.concatenate([r.true_NSS for r in results]),
        np.concatenate([r.decoded_NSS for r in results]),
        np.concatenate([r.codes_NC for r in results]),
    )
