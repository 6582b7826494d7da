"""How the features of one RLDS dataset become action, state, instruction and cameras.

A mapping is a small YAML file: presets for the datasets that MolmoAct was trained on are in
`presets/`, a `molmoact_mapping.yaml` in the dataset's folder wins over them, and where there is
neither a guess is made from the feature names and reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from molmoact_data.config import build, load_yaml
from molmoact_data.errors import UserError, unknown_name
from molmoact_data.sources.channels import OWN_MAPPING, Channel
from molmoact_data.sources.rlds.features import RldsFeature

PRESETS = Path(__file__).parent / "presets"
GUESSED_FPS = 10.0


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
        if self.fps <= 0:
            raise ValueError(f"fps must be positive, got {self.fps}")
        if not self.action:
            raise ValueError("a mapping needs at least one action channel")


def find_mapping(
    name: str, features: Mapping[str, RldsFeature], own: Path | None
) -> tuple[RldsMapping, str | None]:
    """The mapping of a dataset, and the note to print where it is a guess. Raises `UserError`."""
    if own is not None:
        return _checked(build(RldsMapping, load_yaml(own)), features, str(own)), None
    for path in sorted(PRESETS.glob("*.yaml")):
        mapping = build(RldsMapping, load_yaml(path))
        if name in mapping.datasets and not _missing(mapping, features):
            return mapping, None
    return _guess(name, features)


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
    return mapping


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
    texts = [f.name for f in features.values() if f.dtype == "string" and "instruction" in f.name]
    if not texts:
        raise UserError(
            f"RLDS dataset {name!r} has no text feature named *instruction*; write {OWN_MAPPING}"
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
