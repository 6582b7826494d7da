"""The files of a training run: who may write there, what is written when, and how it is read back."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from molmoact_data.config import as_dict, build
from molmoact_data.errors import UserError
from molmoact_data.labels.depth import DepthEstimator
from molmoact_data.teachers import registry
from vqvae import data, places
from vqvae.checkpoint import write_atomically
from vqvae.config import TrainConfig

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
STATE_FILE = "state.pt"
SHEETS_DIR = "sheets"
DATA_DIR = "data"


def claim(output: Path, config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Make the folder this run's, or raise `UserError` naming the flag that resolves it."""
    exists = (output / CONFIG_FILE).is_file()
    if resume:
        if not (output / STATE_FILE).is_file():
            raise UserError(
                f"nothing to resume in {output}: no {STATE_FILE}. Run without --resume."
            )
        _same_config(read_config(output), config)
        return
    if exists:
        _refuse_strangers(output)
    if exists and not overwrite:
        raise UserError(
            f"{output} already holds a training run. Continue it with --resume, replace it with "
            "--overwrite, or choose another --output-path."
        )
    if overwrite and exists:
        for name in (METRICS_FILE, STATE_FILE, "model.safetensors"):
            (output / name).unlink(missing_ok=True)
        for name in (SHEETS_DIR, DATA_DIR):
            shutil.rmtree(output / name, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / CONFIG_FILE, json.dumps(as_dict(config), indent=1).encode())


def _refuse_strangers(output: Path) -> None:
    """Any model folder has a config.json; only a VQ-VAE run's may be replaced."""
    try:
        read_config(output)
    except (UserError, ValueError) as error:
        raise UserError(
            f"{output / CONFIG_FILE} is not that of a VQ-VAE run, and nothing in its folder was touched. "
            "Choose another --output-path."
        ) from error


def read_config(output: Path) -> TrainConfig:
    """The configuration a run was started with."""
    path = output / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"nothing to resume in {output}: no {CONFIG_FILE}. Run without --resume.")
    content = json.loads(path.read_text())
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


def depth_estimator(name: str | None) -> DepthEstimator | None:
    """The depth model of this name, built with its defaults; None for None."""
    if name is None:
        return None
    estimator: DepthEstimator = registry.resolve("depth encoder", name, registry.DEPTH_ESTIMATORS)()
    return estimator


def prepare_data(output: Path, config: TrainConfig) -> None:
    """Write the maps once; a resumed or crashed run finds them, complete or not at all."""
    folder = output / DATA_DIR
    if (folder / data.INDEX_FILE).is_file():
        return
    if not config.data:
        raise UserError("no data to train on; give --data FOLDER (or procedural:N, simulator:N).")
    size = config.geometry.image_size
    estimator = depth_estimator(config.depth_encoder)
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
    write_atomically(path, buffer.getvalue())


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """The inverse of `save_state`; never unpickles an object."""
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


class MetricsLog:
    """JSON lines, and Weights & Biases where the run asks for it. Lines after `step` are cut on resume."""

    def __init__(self, output: Path, config: TrainConfig, step: int, *, active: bool) -> None:
        self._path = output / METRICS_FILE
        self._step = step
        self._config = config
        self._active = active
        self._wandb: Any = None

    def __enter__(self) -> MetricsLog:
        if not self._active:
            return self
        kept = [line for line in self._old_lines() if json.loads(line)["step"] <= self._step]
        write_atomically(self._path, "".join(line + "\n" for line in kept).encode())
        self._file = self._path.open("a")
        if self._config.wandb_project is not None:
            import wandb

            self._wandb = wandb.init(
                project=self._config.wandb_project, config=as_dict(self._config), resume="allow"
            )
        return self

    def _old_lines(self) -> list[str]:
        if self._step == 0 or not self._path.is_file():
            return []
        # A killed process may leave half a line.
        return [x for x in self._path.read_text().splitlines() if x.endswith("}")]

    def write(self, line: dict[str, Any]) -> None:
        """One line, on disk when this returns."""
        if not self._active:
            return
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(line, step=line["step"])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._active:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish()
