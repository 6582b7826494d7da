"""A position of the stream -> one sample. Pure in (seed, position); workers share nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

from molmoact_data.errors import UserError
from molmoact_train.config import TrainConfig
from molmoact_train.data.base import Encoder, Part, Sample, TooLong
from molmoact_train.data.mixture import (
    Mixture,
    parse_data_argument,
    sample_rng,
    sampling_rates,
)
from molmoact_train.data.published import group_of
from molmoact_train.data.sources import ShardSource, Source, open_source
from molmoact_train.data.split import SourceOptions

logger = logging.getLogger(__name__)


class Reader(Protocol):
    """What the data want to know of a network family."""

    mixes_robots: bool
    """Whether one run may hold data of different action dimensions."""

    def needs(self, config: TrainConfig) -> Mapping[str, frozenset[Part]]:
        """What can be asked of a row, and the labels each question needs."""
        ...

    def check_source(self, source: ShardSource, config: TrainConfig) -> None:
        """Raises `UserError` for data that the family's words cannot express."""
        ...


class TrainingData:
    """Position -> a sample of the encoder, or `TooLong`; a map-style dataset for `torch.utils.data.DataLoader`."""

    def __init__(
        self,
        sources: Sequence[Source],
        mixture: Mixture,
        encoder: Encoder,
        *,
        seq_len: int,
        seed: int,
    ) -> None:
        self.sources = tuple(sources)
        self.mixture = mixture
        self.encoder = encoder
        self.seq_len = seq_len
        self.seed = seed

    def __getitem__(self, position: int) -> Sample | TooLong:
        draw = self.mixture.at(position)
        row = self.sources[draw.source].row(draw.row)
        sample = self.encoder.sample(position, row, sample_rng(self.seed, position))
        if sample.num_tokens > self.seq_len:
            return TooLong(position, row.where, sample.num_tokens)
        return sample

    def describe_sample(self, position: int) -> dict[str, Any]:
        """The sample at a position as people read it."""
        draw = self.mixture.at(position)
        row = self.sources[draw.source].row(draw.row)
        return self.encoder.describe(row, sample_rng(self.seed, position))

    def describe(self) -> list[dict[str, Any]]:
        """Per source: name, usable rows, rate, rows left out by reason."""
        return [
            {"name": source.name, "path": str(source.folder), "samples": source.size,
             "rate": rate, "left_out": dict(source.left_out)}
            for source, rate in zip(self.sources, self.mixture.rates, strict=True)
        ]  # fmt: skip


def open_training_data(config: TrainConfig, family: Reader, encoder: Encoder) -> TrainingData:
    """Everything that training draws from, opened and checked."""
    arguments = [parse_data_argument(text) for text in config.data]
    options = SourceOptions(
        needs=family.needs(config),
        max_images=config.max_images,
        held_out_fraction=config.eval_fraction,
        seed=config.data_seed,
        max_samples=config.max_samples,
    )
    sources = _checked([open_source(a.path, options) for a in arguments], family, config)
    refuse_empty(sources, list(options.needs))
    warn_of_mixed_depth(sources)
    if not family.mixes_robots:
        check_action_dimensions(sources)
    return _mixed(sources, [a.weight for a in arguments], config, encoder)


def open_eval_data(config: TrainConfig, family: Reader, encoder: Encoder) -> TrainingData | None:
    """Held-out rows: `eval_data` in full and `eval_fraction` of the episodes of `data`; None if there are none."""
    options = SourceOptions(
        needs=family.needs(config), max_images=config.max_images, seed=config.data_seed
    )
    sources = [open_source(path, options) for path in config.eval_data]
    if config.eval_fraction > 0:
        held_out = SourceOptions(
            needs=options.needs,
            max_images=config.max_images,
            held_out_fraction=config.eval_fraction,
            held_out=True,
            seed=config.data_seed,
        )
        for text in config.data:
            source = open_source(parse_data_argument(text).path, held_out)
            if source.size:
                sources.append(source)
    if not sources:
        return None
    return _mixed(_checked(sources, family, config), [None] * len(sources), config, encoder)


def _checked(sources: list[Source], family: Reader, config: TrainConfig) -> list[Source]:
    for source in sources:
        if isinstance(source, ShardSource):
            family.check_source(source, config)
    return sources


def _mixed(
    sources: Sequence[Source],
    weights: Sequence[float | None],
    config: TrainConfig,
    encoder: Encoder,
) -> TrainingData:
    sizes = [source.size for source in sources]
    mixture = Mixture(sizes, sampling_rates(sizes, weights), config.data_seed)
    return TrainingData(sources, mixture, encoder, seq_len=config.seq_len, seed=config.data_seed)


def by_group(data: TrainingData) -> dict[str, TrainingData]:
    """The sources of each group of the published mixture (one's own data by their names), drawn as `data` draws."""
    members: dict[str, list[Source]] = {}
    for source in data.sources:
        members.setdefault(group_of(source.name), []).append(source)
    parts = {}
    for group, sources in members.items():
        sizes = [source.size for source in sources]
        mixture = Mixture(sizes, sampling_rates(sizes, [None] * len(sizes)), data.seed)
        parts[group] = TrainingData(
            sources, mixture, data.encoder, seq_len=data.seq_len, seed=data.seed
        )
    return parts


def refuse_empty(sources: Sequence[Source], kinds: Sequence[str]) -> None:
    """Raises `UserError` naming the data without a sample, and why its rows cannot be used."""
    for source in sources:
        if source.size < 1:
            why = ", ".join(f"{reason}: {n}" for reason, n in source.left_out.items())
            raise UserError(
                f"--data {source.folder} has no sample for what this stage trains ({', '.join(kinds)}); "
                f"rows left out: {why or 'none, it has no rows'}. Run `molmoact preprocess` with the labels "
                "that are missing."
            )


def warn_of_mixed_depth(sources: Sequence[Source]) -> None:
    """Say where equal depth codes mean different things: another codebook, recipe or scaling."""
    with_depth = [
        s for s in sources if isinstance(s, ShardSource) and s.layout.depth_codes is not None
    ]
    for first, other in pairwise(with_depth):
        a, b = _meaning_of_depth(first), _meaning_of_depth(other)
        differing = [
            f"{key} {a.get(key, 'not told')} and {b.get(key, 'not told')}"
            for key in sorted({*a, *b})
            if a.get(key) != b.get(key)
        ]
        if differing:
            logger.warning(
                "the depth codes of %s and %s do not mean the same (%s): one model learns both as one language",
                first.name,
                other.name,
                "; ".join(differing),
            )


def _meaning_of_depth(source: ShardSource) -> dict[str, str]:
    manifest = source.output.manifest
    return {"depth_scaling": manifest.depth_scaling, **manifest.teachers.get("depth_tokenizer", {})}


def check_action_dimensions(sources: Sequence[Source]) -> None:
    """Robots of different action dimension share no answer format with one checkpoint's statistics."""
    dims = {s.name: s.action_dim for s in sources if isinstance(s, ShardSource) and s.action_dim}
    if len(set(dims.values())) > 1:
        listed = ", ".join(f"{name}: {dim}" for name, dim in dims.items())
        raise UserError(
            f"the data have different action dimensions ({listed}). Train one robot at a time, or write "
            "the datasets with the same action layout."
        )
