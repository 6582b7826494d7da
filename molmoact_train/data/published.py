"""The published pre-training and mid-training mixtures over a folder of downloads and outputs.

A group has a share of the draws; inside it a set is drawn with the square root of its size, or of the size that the
authors let it count as. What is not there is an error that says how to get it, unless it is left out aloud.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from molmoact_data.errors import UserError, unknown_name
from molmoact_data.publishing.download import PUBLISHED
from molmoact_data.web.catalogue import GROUP_RATES, WEB_SETS
from molmoact_data.web.rows import MANIFEST_FILE

logger = logging.getLogger(__name__)

_ROBOTS: Mapping[str, Mapping[str, tuple[float, tuple[str, ...]]]] = {
    "pretrain": {
        "bbox": (0.05 * 0.10, ("lvis",)),
        "auxiliary": (0.15, ("auxiliary_depth", "auxiliary_trace")),
        "bc_z": (0.15, ("bc_z",)),
        "bridge": (0.25, ("bridge_dataset",)),
        "rt_1": (0.40, ("fractal20220817_data",)),
    },
    "midtrain": {
        name: (0.25, (name,))
        for name in ("home_primary", "home_secondary", "tabletop_primary", "tabletop_secondary")
    },
}
"""Stage -> group -> (share of the draws, sets). The general groups of pre-training are the catalogue's."""


@dataclass(frozen=True)
class MixtureSet:
    """One set of a mixture."""

    name: str
    group: str
    folder: Path | None
    """None = it is not there."""
    size: int
    """That counts inside its group."""
    fetch: str
    """The command that brings it."""


@dataclass(frozen=True)
class PublishedMixture:
    """Sets and the share of each group, which sum to 1."""

    sets: tuple[MixtureSet, ...]
    shares: Mapping[str, float]

    def rate(self, chosen: MixtureSet) -> float:
        """The share of all draws that goes to a set."""
        sizes = [np.sqrt(s.size) for s in self.sets if s.group == chosen.group]
        return float(self.shares[chosen.group] * np.sqrt(chosen.size) / sum(sizes))

    def data_arguments(self) -> tuple[str, ...]:
        """`PATH:weight` for `--data`."""
        return tuple(f"{entry.folder}:{self.rate(entry):.10g}" for entry in self.sets)


def group_of(name: str) -> str:
    """The group of a published set by the name of its folder; any other name is a group of its own."""
    if name in WEB_SETS:
        return WEB_SETS[name].group
    groups = (
        group for stage in _ROBOTS.values() for group, (_, sets) in stage.items() if name in sets
    )
    return next(groups, name)


def published_mixture(stage: str, root: Path, without: Sequence[str] = ()) -> PublishedMixture:
    """The mixture of a stage below `root`. `without` names groups or sets to leave out; the rest is scaled up.

    Raises `UserError` with a line for every set that is not there: its share, and the command that fetches it.
    """
    if stage not in _ROBOTS:
        raise UserError(f"--mixture goes with the stages {', '.join(_ROBOTS)}, not with {stage!r}.")
    shares, sets = _published(stage, root)
    _refuse_unknown(without, shares, sets)
    kept = [s for s in sets if s.name not in without and s.group not in without]
    groups = {s.group for s in kept}
    left = sum(share for group, share in shares.items() if group in groups)
    mixture = PublishedMixture(
        tuple(kept), {group: share / left for group, share in shares.items() if group in groups}
    )
    _refuse_missing(mixture)
    if without:
        gone = 1 - left / sum(shares.values())
        logger.warning(
            "without %s: %.2f %% of the published draws go to the others",
            ", ".join(without),
            100 * gone,
        )
    return mixture


def _published(stage: str, root: Path) -> tuple[dict[str, float], list[MixtureSet]]:
    shares = {group: share for group, (share, _) in _ROBOTS[stage].items()}
    sets = []
    for group, (_, names) in _ROBOTS[stage].items():
        for name in names:
            published = PUBLISHED[name]
            places = (root / published.repo_id.rpartition("/")[2] / published.config, root / name)
            fetch = f"molmoact download {name} --output-path {root}"
            sets.append(MixtureSet(name, group, _first_with_rows(places), 1, fetch))
    if stage == "pretrain":
        shares.update({str(group): rate for group, rate in GROUP_RATES.items()})
        for name, entry in WEB_SETS.items():
            folder = next((f for f in (root / "web" / name, root / name) if _manifest(f)), None)
            size = 1 if folder is None else int(_manifest(folder)["size_in_mixture"])
            fetch = (
                f"molmoact download {name} --output-path RAW, then molmoact preprocess-web {name} "
                f"--input-path RAW --output-path {root / 'web' / name}"
            )
            sets.append(MixtureSet(name, entry.group, folder, size, fetch))
    return shares, sets


def _first_with_rows(places: Sequence[Path]) -> Path | None:
    return next((p for p in places if p.is_dir() and any(p.rglob("*.parquet"))), None)


def _manifest(folder: Path) -> Mapping[str, int]:
    """What `molmoact preprocess-web` wrote last; empty where the folder is unfinished or not there."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return {"size_in_mixture": int(manifest["size_in_mixture"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}): run `molmoact preprocess-web --resume`."
        ) from error


def _refuse_unknown(
    without: Sequence[str], shares: Mapping[str, float], sets: Sequence[MixtureSet]
) -> None:
    known = [*shares, *(s.name for s in sets)]
    for name in without:
        if name not in known:
            raise unknown_name("--without group or set", name, known)


def _refuse_missing(mixture: PublishedMixture) -> None:
    lines = [
        f"  {entry.name} ({100 * mixture.rate(entry):.2f} %, group {entry.group}): {entry.fetch}"
        for entry in mixture.sets
        if entry.folder is None
    ]
    if lines:
        raise UserError(
            f"{len(lines)} of {len(mixture.sets)} sets are not there; fetch them, or leave them or their group "
            "out with --without NAME:\n" + "\n".join(lines)
        )
