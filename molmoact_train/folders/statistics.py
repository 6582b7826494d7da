"""The statistics that travel with a checkpoint: the base model's and those of the data, merged and checked."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from molmoact_data.errors import UserError
from molmoact_data.statistics import DatasetStatistics, bins_of
from molmoact_train.config import TrainConfig
from molmoact_train.data.sources import ShardSource, Source
from molmoact_train.folders.layout import read_config

logger = logging.getLogger(__name__)


def merged(config: TrainConfig, model_folder: Path, sources: Sequence[Source]) -> dict[str, Any]:
    """`norm_stats` of the run: every key of the checkpoint, and one per data folder with actions.

    What a policy has to know to be asked like the data travels in their entries: `horizon` (steps of a chunk),
    `cameras` (roles in order) and `num_arms`.

    Raises `UserError` where two folders or the given file disagree about one key, because their action tokens
    would then mean different actions, and where no known robot has the data's action dimension.
    """
    base = checkpoint_statistics(model_folder)
    found = _of_sources(sources)
    asked = {key: entry | _asked_like(sources, key) for key, entry in found.items()}
    _check_dimension(config, base, found)
    _check_bins(model_folder, base, found)
    if config.norm_stats_path is not None:
        given = _given(Path(config.norm_stats_path), found)
        return {key: {**asked.get(key, {}), **entry} for key, entry in given.items()}
    for key in sorted(set(base) & set(found)):
        if any(base[key].get(name) != value for name, value in found[key].items()):
            logger.warning("norm_stats %r of the checkpoint are replaced by those of the data", key)
    return {**base, **asked}


def _asked_like(sources: Sequence[Source], key: str) -> dict[str, Any]:
    """How the rows of these statistics look, from the first folder that has them."""
    source = next(s for s in sources if isinstance(s, ShardSource) and s.statistics_key == key)
    return {
        "horizon": source.layout.action_chunk_size,
        "cameras": list(source.cameras),
        "num_arms": source.layout.num_arms or 1,
    }


def checkpoint_statistics(folder: Path) -> dict[str, Any]:
    """`norm_stats` of a checkpoint's config.json; empty where it has none (a model never trained on a robot)."""
    return dict(read_config(folder).get("norm_stats") or {})


def _check_bins(folder: Path, base: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """One model has one number of action bins: its config.json says it once, and so must all the data."""
    bins = {f"the data {key!r}": bins_of(entry) for key, entry in found.items()}
    stated = read_config(folder).get("n_action_bins")
    if base and stated is not None:
        bins[f"the checkpoint {folder}"] = stated
    if len(set(bins.values())) > 1:
        listed = ", ".join(f"{who}: {number}" for who, number in bins.items())
        raise UserError(
            f"different numbers of action bins ({listed}): equal action tokens would mean different actions. Run "
            "`molmoact retokenize --action-bins N` on the data first."
        )


def _of_sources(sources: Sequence[Source]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    owners: dict[str, str | Path] = {}
    for source in sources:
        if source.statistics is None:
            continue
        ((key, entry),) = source.statistics.to_json().items()
        if key in entries and entries[key] != entry:
            raise UserError(
                f"{owners[key]} and {source.folder} both hold statistics {key!r} with different numbers, so "
                "equal action tokens mean different actions. Preprocess both with one --statistics FILE."
            )
        entries[key], owners[key] = entry, source.folder
    return entries


def _check_dimension(
    config: TrainConfig, base: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
    known = {key: len(entry["action"]["q01"]) for key, entry in base.items()}
    if not known or config.new_action_dim:
        return
    for key, entry in found.items():
        dim = len(entry["action"]["q01"])
        if dim not in known.values():
            raise UserError(
                f"the data {key!r} have {dim} action dimensions, the checkpoint's statistics have "
                f"{', '.join(f'{d} ({k})' for k, d in known.items())}. If this really is another robot, "
                "say so with --new-action-dim."
            )


def _given(path: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """The file of --norm-stats-path, which must contain what the data were tokenised with."""
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--norm-stats-path {path} cannot be read: {error}.") from error
    for key, entry in found.items():
        if key not in given:
            raise UserError(
                f"--norm-stats-path {path} lacks the key {key!r} of the data; it has: "
                f"{', '.join(sorted(given)) or 'none'}."
            )
        ours = DatasetStatistics.from_json({key: entry}, key)
        theirs = DatasetStatistics.from_json(given, key)
        if ours.sha256() != theirs.sha256():
            raise UserError(
                f"--norm-stats-path {path} has other numbers for {key!r} than the data's action tokens were "
                "made with: decoded actions would be wrong. Run `molmoact retokenize --statistics` first."
            )
    return dict(given)
