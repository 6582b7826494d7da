"""Which network families there are, by the `model_type` of their checkpoints. Nothing is imported before it is used.

A family is a folder: `settings.py` (fields of a run and stages; no torch) and `family.py` (everything else).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molmoact_data.errors import UserError, unknown_name
from molmoact_data.policies import model_type

if TYPE_CHECKING:
    from molmoact_train.families.base import Family, Settings

DEFAULT = "molmoact"
FAMILIES: Mapping[str, str] = {
    "molmoact": "molmoact_train.families.molmoact",
    "molmoact2": "molmoact_train.families.molmoact2",
}
"""Name -> package, which has `settings.Settings`, `settings.STAGES` and `family.FAMILY`."""


def settings_class(name: str) -> type[Settings]:
    """The fields that only runs of this family have."""
    return _module(name, "settings").Settings


def stages(name: str) -> Mapping[str, Mapping[str, Any]]:
    """The family's presets: stage -> fields of `TrainConfig` and of its settings, in one flat mapping."""
    return _module(name, "settings").STAGES


def load_family(name: str) -> Family:
    """Everything a run asks of the network; torch is imported now."""
    return _module(name, "family").FAMILY


def family_name(folder: Path) -> str:
    """The family of a model folder, from its config.json. Raises `UserError` for a folder of none."""
    name = model_type(folder)
    if name not in FAMILIES:
        raise unknown_name(f"model_type in {folder}", name, FAMILIES)
    return name


def family_of(folder: Path) -> Family:
    """The family that reads this model folder."""
    return load_family(family_name(folder))


def family_for(name: str, folder: Path) -> Family:
    """The family that a run is for, which must be its checkpoint's."""
    found = family_name(folder)
    if found != name:
        raise UserError(
            f"{folder} is a {found} checkpoint, the run is for {name}; say --family {found}."
        )
    return load_family(found)


def _module(name: str, part: str) -> Any:
    if name not in FAMILIES:
        raise unknown_name("family", name, FAMILIES)
    return importlib.import_module(f"{FAMILIES[name]}.{part}")
