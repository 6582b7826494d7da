"""How the features of one RLDS dataset become action, state, instruction and cameras.

A mapping is a small YAML file: presets for the datasets that MolmoAct was trained on are in
`presets/`, a `molmoact_mapping.yaml` in the dataset's folder wins over them, and where there is
neither a guess is made from the feature names and reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from molmoact_data.config import build, load_yaml
from molmoact_data.errors import UserError, unknown_name
from molmoact_data.sources.channels import OWN_MAPPING, Channel
from molmoact_data.sources.rlds.features import RldsFeature

PRESETS = Path(__file__).parent / "presets"
GUESSED_FPS = 10.0
HIGHEST_FPS = 1e6


@dataclass(frozen=True)
class RldsMapping:
    """One dataset's convention; every field is explicit because RLDS says none of it."""

    datasets: tuple[str, ...]
    """TFDS names that the preset is for."""
    fps: float
    """Control rate; RLDS stores no clock."""
    action: tuple[Channel, ...]
    gripper: str
    """What the gripper's numbers mean after conversion, in words, for people."""
    instruction: tuple[str, ...]
    """Text features, the first one without blanks is taken."""
    cameras: tuple[str, ...]
    """Image features in order of preference; the first is the primary one unless told otherwise."""
    state: tuple[Channel, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.fps <= HIGHEST_FPS:
            raise ValueError(f"fps must be positive and at most {HIGHEST_FPS:g}, got {self.fps}")
        if not self.action:
            raise ValueError("a mapping needs at least one action channel")


def find_mapping(
    name: str, features: Mapping[str, RldsFeature], own: Path | None
) -> tuple[RldsMapping, str | None]:
    """The mapping of a dataset, and the note to print where it is a guess. Raises `UserError`."""
    if own is not None:
        return _checked(_read(own), features, str(own)), None
    for path in sorted(PRESETS.glob("*.yaml")):
        mapping = build(RldsMapping, load_yaml(path))
        if name in mapping.datasets and not _missing(mapping, features):
            return _checked(mapping, features, f"the preset {path.stem!r}"), None
    return _guess(name, features)


def _read(own: Path) -> RldsMapping:
    try:
        return build(RldsMapping, load_yaml(own))
    except UserError as error:
        raise UserError(str(error) if str(own) in str(error) else f"{own}: {error}") from error


def _missing(mapping: RldsMapping, features: Mapping[str, RldsFeature]) -> list[str]:
    """Features that the mapping needs and the dataset lacks; of the texts one is enough."""
    needed = [c.feature for c in (*mapping.action, *mapping.state)] + list(mapping.cameras[:1])
    missing = [name for name in needed if name not in features]
    if not any(name in features for name in mapping.instruction):
        missing += mapping.instruction[:1]
    return missing


def _checked(mapping: RldsMapping, features: Mapping[str, RldsFeature], where: str) -> RldsMapping:
    for name in _missing(mapping, features):
        raise UserError(f"{where}: {unknown_name('feature', name, features)}")
    for channel in (*mapping.action, *mapping.state):
        _check_channel(channel, features[channel.feature], where)
    for name in mapping.instruction:
        feature = features.get(name)
        if feature is not None and not (feature.dtype == "string" or feature.is_codes):
            raise UserError(
                f"{where}: {name!r} holds {feature.dtype} of shape {list(feature.shape)}; an instruction "
                "is a text, or whole numbers in a row, the UTF-8 bytes of one"
            )
    return mapping


def _check_channel(channel: Channel, feature: RldsFeature, where: str) -> None:
    if not feature.is_numeric:
        raise UserError(
            f"{where}: {channel.feature!r} is a {feature.kind} of {feature.dtype}, not numbers of a fixed "
            "shape in every step"
        )
    width = math.prod(n or 0 for n in feature.shape)
    if width <= channel.start or width < (channel.stop or 0):
        raise UserError(
            f"{where}: {channel.feature!r} has {width} numbers, there is no "
            f"{channel.start}..{channel.stop or 'its end'}"
        )


def _guess(name: str, features: Mapping[str, RldsFeature]) -> tuple[RldsMapping, str]:
    numeric = [f.name for f in features.values() if f.per_step and f.is_numeric]
    action = next((n for n in ("action", "actions") if n in numeric), None)
    if action is None:
        raise UserError(
            f"RLDS dataset {name!r} has no plain `action` feature and no preset; write {OWN_MAPPING} in "
            f"its folder (docs/rlds.md). Its numeric step features: {', '.join(numeric) or 'none'}"
        )
    state = next(
        (n for n in ("observation/state", "observation/proprio", "state") if n in numeric), None
    )
    named = [f for f in features.values() if "instruction" in f.name]
    texts = [f.name for f in named if f.dtype == "string"] or [f.name for f in named if f.is_codes]
    if not texts:
        others = [f.name for f in features.values() if f.dtype == "string" or f.is_codes]
        raise UserError(
            f"RLDS dataset {name!r} has no text named *instruction*; write {OWN_MAPPING} in its folder "
            f"(docs/rlds.md). Its texts, and whole numbers that may be characters: {', '.join(others) or 'none'}"
        )
    mapping = RldsMapping(
        datasets=(name,),
        fps=GUESSED_FPS,
        action=(Channel(action),),
        gripper="unknown: as recorded",
        instruction=tuple(texts),
        cameras=tuple(sorted(f.name for f in features.values() if f.kind == "image")),
        state=(Channel(state),) if state else (),
    )
    note = (
        f"no preset for RLDS dataset {name!r}, guessed: action={action}, state={state or 'none'}, "
        f"instruction={texts[0]}, {GUESSED_FPS:g} fps, gripper as recorded. To decide yourself, write "
        f"{OWN_MAPPING} in its folder (docs/rlds.md)"
    )
    return mapping, note
