"""Whether the teachers know this kind of picture. Every command that shows or ships labels asks here.

Only the embedded teachers are that narrow: they were trained on rendered table-top scenes and answer with high
confidence on anything else, so their numbers do not give them away.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from molmoact_data.outputs.manifest import Manifest
from molmoact_data.sources.base import SourceInfo
from molmoact_data.teachers.choice import NONE, TeacherConfig
from molmoact_data.teachers.codebook import EMBEDDED
from molmoact_data.teachers.registry import EMBEDDED_VQVAE, SIMULATED_ROBOT

logger = logging.getLogger(__name__)

WHY = "trained on rendered table-top scenes only"
INSTEAD = "--depth depth-anything-v2 --vqvae released --pointer molmo"
"""Flags that name teachers of real pictures."""


def strange_teachers(
    cards: Mapping[str, Mapping[str, str]], robot_type: str | None
) -> tuple[str, ...]:
    """Roles whose teacher (by its card in a manifest) was not made for the pictures of this robot; () = none."""
    if robot_type == SIMULATED_ROBOT:
        return ()
    return tuple(role for role, card in cards.items() if _is_embedded(card))


def strange_choices(config: TeacherConfig, robot_type: str | None) -> tuple[str, ...]:
    """The same of teachers that are only chosen, before any is loaded."""
    chosen = {"gripper_pointer": config.pointer}
    if config.depth != NONE:
        chosen |= {"depth": config.depth, "depth_tokenizer": str(config.vqvae)}
    return strange_teachers({role: {"name": name} for role, name in chosen.items()}, robot_type)


def strange_words(roles: tuple[str, ...], dataset: str) -> str:
    """What a person has to know before looking at such labels."""
    named = ", ".join(role.replace("_", " ") for role in roles)
    return (
        f"the embedded teachers ({named}) were {WHY}; on {dataset} their labels show that the pipeline works, "
        f"are wrong however sure they look, and are not worth training on. For real labels: {INSTEAD}"
    )


def warn_of_strange_labels(
    manifest: Manifest, shown: Mapping[str, Mapping[str, str]] = MappingProxyType({})
) -> None:
    """For what shows or ships labels that exist; `shown` = cards of teachers that this command adds."""
    dataset = manifest.dataset
    _warn(strange_teachers({**manifest.teachers, **shown}, dataset.robot_type), dataset.name)


def warn_of_strange_choices(config: TeacherConfig, source: SourceInfo) -> None:
    """For what is about to make labels."""
    _warn(strange_choices(config, source.robot_type), source.name)


def _warn(roles: tuple[str, ...], dataset: str) -> None:
    if roles:
        logger.warning("%s", strange_words(roles, dataset))


def _is_embedded(card: Mapping[str, str]) -> bool:
    """By name, or, as a VQ-VAE's card says only that it is one, by the file's hash."""
    return card.get("name") == EMBEDDED or card.get("revision") == _embedded_vqvae()


@cache
def _embedded_vqvae() -> str:
    return f"sha256:{hashlib.sha256(EMBEDDED_VQVAE.read_bytes()).hexdigest()}"
