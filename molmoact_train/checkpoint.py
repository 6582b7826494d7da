"""Checkpoints that can be trusted: whole or absent, verified when read, never resumed from in silence.

A run folder:

    RUN/config.json               the resolved configuration, written at the start
    RUN/dataset_statistics.json   statistics of the data it was trained on
    RUN/metrics.jsonl, metrics.png
    RUN/step00001000/             a checkpoint (keep N)
        model_and_optim/          torch.distributed.checkpoint: any number of processes may read it back
        trainer.json              step, data position, seeds, world size
        config.json, dataset_statistics.json
        files.json                size and CRC-32 of every file, written last
    RUN/final/                    the export: a Hugging Face folder, or an adapter folder with LoRA

A checkpoint is written under a temporary name and renamed when it is complete. Random numbers are a function of
the seed and the step (`train.seed_step`), and data of the position, so the two integers in `trainer.json` are
all the state there is besides weights and moments.
"""

from __future__ import annotations

import errno
import re
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.utils._pytree import tree_leaves

from molmoact_data import runs, schema
from molmoact_data.errors import UserError
from molmoact_data.files.folders import write_json
from molmoact_data.files.kinds import FINAL_DIR, TRAINER_FILE
from molmoact_data.files.typed import read_typed
from molmoact_data.processes import World
from molmoact_data.runs import CONFIG_FILE
from molmoact_train.config import TrainConfig, changes_on_resume, from_json, to_json
from molmoact_train.inputs import RUN_FLAG
from molmoact_train.monitoring.answers import ANSWERS_FILE
from molmoact_train.monitoring.metrics import PLOT_FILE
from molmoact_train.monitoring.page import PAGE_FILE
from molmoact_train.monitoring.progress import LOG_FILE
from molmoact_train.weights import hub_commit, resolve_model_folder

FILES_FILE = "files.json"
STATE_DIR = "model_and_optim"
_TEMPORARY = "-tmp"
_STEP_FOLDER = re.compile(r"step(\d{8})")
_INCOMPLETE = "The checkpoint is incomplete or damaged."
_CRC_PIECE = 1 << 22


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands."""

    step: int
    """Updates done."""
    position: int
    """Next position of the data stream = updates x global batch."""
    world_size: int
    """Processes that wrote it; another number may read it, and then differs by float rounding only."""
    seed: int
    data_seed: int
    too_long: int = 0
    """Samples left out so far."""


@dataclass(frozen=True)
class _FileCheck:
    """What `files.json` says of one file."""

    bytes: int
    crc32: int


def step_folder(run: Path, step: int) -> Path:
    """The checkpoint of an update."""
    return run / f"step{step:08d}"


def complete_checkpoints(run: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    if not run.is_dir():
        return []
    found = (p for p in run.iterdir() if _STEP_FOLDER.fullmatch(p.name))
    return sorted(p for p in found if (p / FILES_FILE).is_file())


# Claiming the run folder


def claim_run(run: Path, config: TrainConfig, *, resume: bool, overwrite: bool) -> Path | None:
    """Make the folder ours; returns the checkpoint to resume from, None for a fresh start.

    An existing run is never continued or replaced unless it was asked for, and is only continued with the
    configuration it was started with.
    """
    runs.claim(run, KIND, to_json(config), resume=resume, overwrite=overwrite)
    return _checkpoint_to_resume(run, config) if resume else None


def pinned(config: TrainConfig, *, resume: bool) -> tuple[TrainConfig, Path]:
    """The run with the commit of its base model in it, and that model's folder; a resumed run keeps its commit."""
    stored = Path(config.output_path) / CONFIG_FILE
    if resume and config.checkpoint_revision is None and stored.is_file():
        earlier = load_config(stored.parent)
        if earlier.checkpoint == config.checkpoint:
            config = replace(config, checkpoint_revision=earlier.checkpoint_revision)
    folder = resolve_model_folder(config.checkpoint, config.checkpoint_revision)
    return replace(config, checkpoint_revision=hub_commit(folder)), folder


def _checkpoint_to_resume(run: Path, config: TrainConfig) -> Path | None:
    """The newest complete checkpoint; None for a run that was stopped before its first."""
    for unfinished in run.glob(f"*{_TEMPORARY}"):
        if _is_ours(unfinished.name):
            shutil.rmtree(unfinished)
    checkpoints = complete_checkpoints(run)
    changed = changes_on_resume(load_config(checkpoints[-1] if checkpoints else run), config)
    if changed:
        raise UserError(
            f"--resume: {run} was trained with another configuration; different: {', '.join(changed)}. "
            "Use the same values, or start a new run from its export."
        )
    return checkpoints[-1] if checkpoints else None


def load_config(folder: Path) -> TrainConfig:
    """The configuration beside a checkpoint or at the top of a run."""
    path = folder / CONFIG_FILE
    try:
        return from_json(read_typed(dict[str, Any], path, _INCOMPLETE))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not that of a training run: {error}.") from error


def _is_ours(name: str) -> bool:
    made = (
        FINAL_DIR,
        FINAL_DIR + _TEMPORARY,
        PLOT_FILE,
        PAGE_FILE,
        ANSWERS_FILE,
        LOG_FILE,
        schema.STATISTICS_FILE,
    )
    return name in made or _STEP_FOLDER.match(name) is not None


KIND = runs.RunKind("a training run", RUN_FLAG, load_config, _is_ours)


def load_trainer_state(folder: Path) -> TrainerState:
    """Where the run of this checkpoint stands."""
    return read_typed(TrainerState, folder / TRAINER_FILE, _INCOMPLETE)


# Saving


def save_checkpoint(
    run: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainerState,
    config: TrainConfig,
    statistics: Mapping[str, Any],
    world: World,
) -> Path:
    """Write one checkpoint and forget the oldest beyond `keep`. Raises `UserError` if the disk is full."""
    final = step_folder(run, state.step)
    temporary = final.with_name(final.name + _TEMPORARY)
    if world.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    world.barrier()
    with save_guard(run, final, temporary, world):
        tensors = _state_dict(model, optimizer, only_trained=config.lora)
        _check_space(run, tensors)
        with no_remarks():
            dcp.save(tensors, checkpoint_id=temporary / STATE_DIR, no_dist=not world.is_sharded)
        if world.is_main:
            _write_beside(temporary, state, config, statistics)
    if world.is_main:
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _forget_old(run, config.keep)
    world.barrier()
    return final


@contextmanager
def no_remarks() -> Iterator[None]:
    """Silences what torch.distributed.checkpoint says of one process and of its own storage classes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
        yield


@contextmanager
def save_guard(run: Path, final: Path, temporary: Path, world: World) -> Iterator[None]:
    """Whatever goes wrong while writing on any process removes the unfinished copy and says what is left."""
    problem: Exception | None = None
    try:
        yield
    except (OSError, CheckpointException) as error:
        problem = error
    if world.any(problem is not None):
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise _save_failed(run, final, problem) from problem


def _state_dict(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, only_trained: bool
) -> dict[str, Any]:
    """Weights and moments by name; with LoRA the frozen base is left to its own checkpoint."""
    options = StateDictOptions(ignore_frozen_params=only_trained)
    return {
        "model": get_model_state_dict(model, options=options),
        "optim": get_optimizer_state_dict(model, optimizer, options=options),
    }


def _check_space(run: Path, tensors: Mapping[str, Any]) -> None:
    """Fail before writing anything where it cannot fit; every process sees the same disk and total."""
    leaves = tree_leaves(dict(tensors))
    needed = sum(t.numel() * t.element_size() for t in leaves if isinstance(t, torch.Tensor))
    free = shutil.disk_usage(run).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")


def _write_beside(
    folder: Path, state: TrainerState, config: TrainConfig, statistics: Mapping[str, Any]
) -> None:
    write_json(folder / TRAINER_FILE, asdict(state))
    write_json(folder / CONFIG_FILE, to_json(config))
    write_json(folder / schema.STATISTICS_FILE, statistics)
    files = {
        p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "crc32": _crc32(p)}
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
    write_json(folder / FILES_FILE, files)


def _save_failed(run: Path, final: Path, error: Exception | None) -> UserError:
    last = complete_checkpoints(run)
    intact = f"the last good checkpoint is {last[-1]}" if last else "there is no checkpoint yet"
    if error is None:
        reason = "writing failed on another process"
    elif _is_full(error):
        reason = "no space left on the device"
    else:
        reason = f"writing failed ({str(error).splitlines()[0]})"
    return UserError(
        f"cannot save {final}: {reason}; {intact}. Free some space (or lower --keep) and continue "
        "with --resume."
    )


def _is_full(error: BaseException) -> bool:
    """Whether the disk was full, however deep torch.distributed.checkpoint has wrapped it."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, CheckpointException):
        return any(_is_full(inner) for inner, _ in error.failures.values())
    return error.__cause__ is not None and _is_full(error.__cause__)


def _forget_old(run: Path, keep: int) -> None:
    for folder in complete_checkpoints(run)[:-keep]:
        shutil.rmtree(folder)


# Reading


def verify_checkpoint(folder: Path) -> None:
    """Every file must have the size and CRC-32 it was written with; otherwise `UserError`."""
    written = read_typed(dict[str, _FileCheck], folder / FILES_FILE, _INCOMPLETE)
    for name, expected in written.items():
        path = folder / name
        if not path.is_file():
            raise _damaged(folder, f"{name} is missing")
        if path.stat().st_size != expected.bytes or _crc32(path) != expected.crc32:
            raise _damaged(folder, f"{name} is not what was written")


def _damaged(folder: Path, what: str) -> UserError:
    others = [p.name for p in complete_checkpoints(folder.parent) if p != folder]
    hint = (
        f"Delete {folder.name} to fall back to {others[-1]}"
        if others
        else "There is no other checkpoint in this run; start again with --overwrite"
    )
    return UserError(f"the checkpoint {folder} is corrupt: {what}. {hint}.")


def load_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    world: World,
) -> TrainerState:
    """Put weights and moments back, in place. Raises `UserError` for a damaged checkpoint."""
    if world.is_main:
        verify_checkpoint(folder)
    world.barrier()
    state = load_trainer_state(folder)
    tensors = _state_dict(model, optimizer, only_trained=config.lora)
    with no_remarks():
        dcp.load(tensors, checkpoint_id=folder / STATE_DIR, no_dist=not world.is_sharded)
    options = StateDictOptions(strict=not config.lora, ignore_frozen_params=config.lora)
    set_model_state_dict(model, tensors["model"], options=options)
    set_optimizer_state_dict(model, optimizer, tensors["optim"], options=options)
    return state


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_CRC_PIECE):
            value = zlib.crc32(piece, value)
    return value
