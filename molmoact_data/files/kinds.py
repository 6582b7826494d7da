"""What lies at a path, by the names in it, so that a path of the wrong kind is answered with the right one."""

from __future__ import annotations

from pathlib import Path

MANIFEST, DATASET_INFO, MODEL_CONFIG = "manifest.json", Path("meta", "info.json"), "config.json"
TRAINER_FILE = "trainer.json"
"""In a step of a training run."""
ADAPTER_CONFIG = "adapter_config.json"
FINAL_DIR, METRICS = "final", "metrics.jsonl"
STEPS = "step????????"
CODEBOOK = "model.safetensors"
"""At the top of a run of `molmoact vqvae train`."""
NOT_FINISHED = "it is not an output of `molmoact preprocess`, or the run did not finish. Run it again with --resume"


def why_no_model(path: Path) -> str:
    """Why there is no model at `path`, and what to give or to type instead; without a full stop."""
    what = "does not say which model it is (model_type)"
    lacks = (
        f"its {MODEL_CONFIG} {what}"
        if (path / MODEL_CONFIG).is_file()
        else f"it has no {MODEL_CONFIG}"
    )
    return _what_else(path, for_model=True) or lacks


def why_no_output(path: Path) -> str:
    """Why there is no output of `molmoact preprocess` at `path`, and what to give or to type instead."""
    return _what_else(path, for_model=False) or NOT_FINISHED


def is_part_of_training(path: Path) -> bool:
    """Whether it is a run, a step or an adapter, which hold weights and are no models."""
    return any((path / name).is_file() for name in (ADAPTER_CONFIG, TRAINER_FILE, METRICS))


def is_other_than_output(path: Path) -> bool:
    """Whether it has a name of its own: a dataset, a model, a training run."""
    return path.is_dir() and _what_else(path, for_model=False) is not None


def why_no_dataset(path: Path) -> str:
    """What of ours lies at a path where a dataset was looked for; empty for nothing of ours."""
    if (path / MANIFEST).is_file():
        return "it is an output of `molmoact preprocess` already: give the dataset that it was made from"
    if is_part_of_training(path) or (path / MODEL_CONFIG).is_file():
        return "it is a model or a training run, no demonstrations"
    return ""


def _what_else(path: Path, *, for_model: bool) -> str | None:
    """The rule for every kind, the more certain first; None for a folder of none."""
    if path.is_file():
        return "it is a file, not a folder"
    if not path.exists():
        return "nothing is there" + (_hub(path) if for_model else "")
    if (path / ADAPTER_CONFIG).is_file():
        return (
            "it is a LoRA adapter; a whole model is made of it by "
            f"`molmoact merge-lora --adapter {path} --output-path MODEL`"
        )
    if (path / TRAINER_FILE).is_file():
        return (
            "it is one step of a training run; a model is made of it by "
            f"`molmoact unshard --checkpoint {path} --output-path MODEL`"
        )
    if (path / METRICS).is_file():
        return _run(path)
    if (path / MANIFEST).is_file():
        return (
            "it is an output of `molmoact preprocess`, which goes with --data"
            if for_model
            else None
        )
    if (path.parent / MANIFEST).is_file():
        return f"it is a folder inside the output {path.parent}"
    if (path / DATASET_INFO).is_file():
        return (
            "it is a LeRobot dataset; an output is made of it by "
            f"`molmoact preprocess --dataset-path {path} --output-path OUT`"
        )
    if (path / MODEL_CONFIG).is_file():
        return None if for_model else "it is a model folder, which goes with --checkpoint"
    return None


def _run(path: Path) -> str:
    """What to take of a training run."""
    if (path / CODEBOOK).is_file():
        return "it is a depth codebook of `molmoact vqvae train`, which goes with --vqvae"
    if (path / FINAL_DIR).is_dir():
        return f"it is a training run; what it trained is {path / FINAL_DIR}"
    steps = sorted(path.glob(STEPS))
    if not steps:
        return "it is a training run that has saved no step yet"
    return (
        "it is a training run that has not finished; a model is made of its last step by "
        f"`molmoact unshard --checkpoint {steps[-1]} --output-path MODEL`"
    )


def _hub(path: Path) -> str:
    """The way to a model on the Hub, where the path may be an id."""
    if path.is_absolute() or len(path.parts) != 2 or path.parts[0] in (".", ".."):
        return ""
    return f"; a model on the Hub is fetched by `hf download {path} --local-dir FOLDER`, then give the folder"
