"""What the commands of models read and write, looked at before torch is imported: a typing error costs no waiting."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from molmoact_data.errors import UserError
from molmoact_data.files.kinds import ADAPTER_CONFIG, FINAL_DIR, MODEL_CONFIG, STEPS, TRAINER_FILE
from molmoact_data.policies import checkpoint_folder
from molmoact_data.runs import check_run
from molmoact_train.config import TrainConfig
from molmoact_train.data.mixture import parse_data_argument
from molmoact_train.data.sources import check_data_folder

Dtype = Literal["keep", "float32", "bfloat16"]
ADAPTER_WEIGHTS = "adapter_model.safetensors"
RUN_FLAG = "--output-path"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def check_model(checkpoint: str, revision: str | None = None) -> None:
    """A folder that is there, `embedded`, or what may be a Hub id. Raises `UserError`."""
    if checkpoint_folder(checkpoint).is_dir():
        if revision is not None:
            raise UserError(
                f"--checkpoint {checkpoint} is a folder, which has no revision {revision}: leave out "
                "--checkpoint-revision, or give a Hub id."
            )
    elif not _HUB_ID.fullmatch(checkpoint):
        raise UserError(
            f"--checkpoint {checkpoint}: no such folder, and not a Hub id (owner/name)."
        )


def check_training_checkpoint(folder: Path) -> None:
    """Raises `UserError` for what is no step of a run."""
    if not (folder / TRAINER_FILE).is_file():
        steps = sorted(folder.glob(STEPS))
        example = f"give {steps[-1]}" if steps else "expected one such as RUN/step00002000"
        raise UserError(
            f"{folder} is not a training checkpoint, a step folder of a run: {example}."
        )


def check_adapter(folder: Path) -> None:
    """Raises `UserError` for what is no PEFT LoRA folder."""
    if not (folder / ADAPTER_CONFIG).is_file() or not (folder / ADAPTER_WEIGHTS).is_file():
        inside = folder / FINAL_DIR
        way = "a step of a LoRA run becomes one with `molmoact unshard`"
        if (inside / ADAPTER_CONFIG).is_file():
            way = f"give {inside}"
        elif any(
            (at / MODEL_CONFIG).is_file() and list(at.glob("*.safetensors"))
            for at in (inside, folder)
        ):
            way = (
                "it was trained without --lora, so its model is whole and there is nothing to merge"
            )
        raise UserError(
            f"{folder} is not an adapter folder ({ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}): {way}."
        )


def check_training(config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
    """Every path of a run: base model, data, statistics, and the folder it writes."""
    check_model(config.checkpoint, config.checkpoint_revision)
    for entry in (*config.data, *config.eval_data):
        check_data_folder(parse_data_argument(entry).path)
    if config.norm_stats_path is not None and not Path(config.norm_stats_path).is_file():
        raise UserError(f"--norm-stats-path {config.norm_stats_path}: no such file.")
    check_run(Path(config.output_path), RUN_FLAG, resume=resume, overwrite=overwrite)
