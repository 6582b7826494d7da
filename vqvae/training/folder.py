"""The files of a training run: who may write there, what is written when, and how it is read back."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from molmoact_data import runs
from molmoact_data.config import as_dict, build
from molmoact_data.errors import UserError, first_line
from molmoact_data.files.folders import write_bytes
from vqvae.checkpoint import MODEL_FILE
from vqvae.config import TrainConfig
from vqvae.depth import data, places

STATE_FILE = "state.pt"
SHEETS_DIR = "sheets"
DATA_DIR = "data"


def claim(output: Path, config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Make the folder this run's, or raise `UserError` naming the flag that resolves it.

    A run that was stopped before its first state begins at the beginning, with what data it has prepared.
    """
    runs.claim(output, KIND, as_dict(config), resume=resume, overwrite=overwrite)
    if resume:
        _same_config(read_config(output), config)


def read_config(output: Path) -> TrainConfig:
    """The configuration a run was started with."""
    path = output / runs.CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"nothing to resume in {output}: no {runs.CONFIG_FILE}. Run without --resume."
        )
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({first_line(error)}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not the configuration of a VQ-VAE run.")
    return build(TrainConfig, content)


def _same_config(stored: TrainConfig, asked: TrainConfig) -> None:
    """A run that changes its mind halfway is not the run that its config.json describes."""
    may_differ = {"device", "wandb_project"}
    before, now = as_dict(stored), as_dict(asked)
    changed = [k for k in before if before[k] != now[k] and k not in may_differ]
    if changed:
        words = ", ".join(f"{k} was {before[k]!r}, now {now[k]!r}" for k in changed)
        raise UserError(
            f"this run was started with other settings: {words}. Leave them out with --resume, or start "
            "a new run in another --output-path."
        )


def prepare_data(output: Path, config: TrainConfig) -> None:
    """Write the maps once; a resumed or crashed run finds them, complete or not at all."""
    folder = output / DATA_DIR
    if (folder / data.INDEX_FILE).is_file():
        return
    if not config.data:
        raise UserError("no data to train on; give --data FOLDER (or procedural:N, simulator:N).")
    size = config.geometry.image_size
    estimator = places.depth_estimator(config.depth_encoder)
    episodes = (
        episode
        for place in config.data
        for episode in places.open_place(place, config.depth_kind, estimator, size)
    )
    data.write_cache(folder, episodes, size=size, recipe=config.recipe, scaling=config.scaling)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain values; temp file, then rename."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """The inverse of `save_state`; never unpickles an object."""
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


KIND = runs.RunKind(
    "a VQ-VAE run",
    "--output-path",
    read_config,
    lambda name: name in (STATE_FILE, MODEL_FILE, SHEETS_DIR, DATA_DIR),
)
