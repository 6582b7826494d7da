"""The teachers of a run: built from the label configuration, once per process."""

from __future__ import annotations

import threading
from pathlib import Path

from molmoact_data.errors import UserError
from molmoact_data.labels.depth import DepthEstimator, DepthTokenizer
from molmoact_data.labels.pointing import ColumnPointer, GripperPointer
from molmoact_data.teachers import registry
from molmoact_data.teachers.teachers import Teachers
from pipelines.job import EMBEDDED, NONE, LabelConfig

_lock = threading.Lock()
_loaded: dict[tuple[LabelConfig, str], Teachers] = {}


def load_teachers(config: LabelConfig, device: str) -> Teachers:
    """The process-wide teachers of this configuration: one copy, however many threads ask."""
    with _lock:
        key = (config, device)
        if key not in _loaded:
            _loaded[key] = Teachers(
                depth=_depth(config, device),
                tokenizer=_tokenizer(config, device),
                pointer=_pointer(config, device),
            )
        return _loaded[key]


def _depth(config: LabelConfig, device: str) -> DepthEstimator | None:
    if config.depth == NONE:
        return None
    factory = registry.resolve("depth teacher", config.depth, registry.DEPTH_ESTIMATORS)
    if config.depth == EMBEDDED:
        return factory(device=device)
    return factory(encoder=config.depth_encoder, checkpoint=config.depth_checkpoint, device=device)


def _tokenizer(config: LabelConfig, device: str) -> DepthTokenizer | None:
    if config.depth == NONE:
        return None
    path = registry.EMBEDDED_VQVAE if config.vqvae == EMBEDDED else Path(str(config.vqvae))
    if not path.exists():
        raise UserError(f"no VQ-VAE at {path}. Give the path of a vae-final.pt with --vqvae.")
    factory = registry.resolve("depth tokenizer", "vqvae", registry.DEPTH_TOKENIZERS)
    return factory(path, recipe=config.depth_recipe, device=device)


def _pointer(config: LabelConfig, device: str) -> GripperPointer | ColumnPointer | None:
    if config.pointer == NONE:
        return None
    factory = registry.resolve("gripper pointer", config.pointer, registry.GRIPPER_POINTERS)
    if config.pointer == "column":
        return factory(
            column=config.pointer_column, units=config.pointer_units, num_arms=config.arms
        )
    if config.pointer == "projection":
        return factory(calibration=config.pointer_calibration)
    if config.pointer == "server":
        return factory(
            url=config.pointer_url, model=config.pointer_checkpoint, num_arms=config.arms
        )
    if config.pointer == EMBEDDED:
        return factory(device=device)
    return factory(
        checkpoint=config.pointer_checkpoint,
        device=device,
        num_arms=config.arms,
    )
