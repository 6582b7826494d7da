"""What a training run is: one frozen record, a stage of its family as preset, and the rules between fields.

Field names are the command line's names with underscores, so a YAML file, a flag and a field are spelled alike. What
only one family has is in its own dataclass, `TrainConfig.settings`; flags, YAML and JSON are flat all the same.
Precedence: stage < YAML < flags. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from molmoact_data.config import build
from molmoact_data.errors import UserError, unknown_name
from molmoact_data.redaction import redacted
from molmoact_train.data.published import published_mixture
from molmoact_train.families import registry

logger = logging.getLogger(__name__)

Scheduler = Literal["cosine_with_warmup", "constant"]
_OLD_NAMES = {"save_folder": "output_path"}
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run. `resolve` makes it; `__post_init__` refuses combinations that cannot mean anything."""

    family: str = field(metadata={"panel": "Run"})
    """Which network; must be the checkpoint's."""
    stage: str
    """Name of the preset it started from."""
    checkpoint: str
    """Folder or Hub id of the model to start from (released layout)."""
    checkpoint_revision: str | None = None
    """Commit, branch or tag of that Hub id; a run records the commit. None = the default branch, or a folder."""
    data: tuple[str, ...]
    """PATH[:weight], repeatable: outputs of preprocess (folders or URLs) or rows of a published mixture."""
    output_path: str
    """The run: checkpoints, metrics, resolved config, final export."""

    duration: int = field(metadata={"panel": "Steps and batches"})
    """Optimiser steps."""
    global_batch_size: int
    """Samples per optimiser step over all processes."""
    device_batch_size: int = 4
    """Samples per forward pass of one process; global = device x processes x accumulation."""
    seq_len: int = 2304
    """Tokens; a longer sample is left out and counted, never cut."""
    max_images: int = 1
    """Cameras per sample, in the record's order."""

    lr_scheduler: Scheduler = field(default="cosine_with_warmup", metadata={"panel": "Optimiser"})
    """`cosine_with_warmup` ends at a tenth of the base rate; `constant` has no warm-up."""
    warmup: int = 200
    """Steps of linear warm-up from 0."""
    weight_decay: float = 0.0
    """Not applied to embeddings, norms and positions."""
    max_grad_norm: float = 1.0
    """L2 limit, for each parameter group on its own."""

    lora: bool = field(default=False, metadata={"panel": "LoRA"})
    """Adapters instead of all weights."""
    lora_rank: int = 32
    """Inner width r of an adapter."""
    lora_alpha: float = 16.0
    """The adapter's output is scaled by alpha / rank."""
    lora_dropout: float = 0.0
    """On an adapter's input."""
    lora_base_bf16: bool = False
    """Keep the frozen base in bfloat16 (half the memory); adapters stay float32."""

    img_aug: bool = field(default=False, metadata={"panel": "Data"})
    """Aspect-preserving crop of 0.9 of the area and colour jitter; traces move with the crop."""
    mixture: str | None = None
    """Folder of downloads and outputs: `data` is then the stage's whole published mixture, at its rates."""
    without: tuple[str, ...] = ()
    """Groups or sets of the published mixture to leave out; the others are drawn more often."""
    max_samples: int | None = None
    """Use only the first so many usable rows of every data folder: to over-fit, or to try things. None = all."""
    norm_stats_path: str | None = None
    """Statistics stored in the export; they must agree with the data. None = merged from the data's own files."""
    new_action_dim: bool = False
    """Allow data whose action dimension no entry of the checkpoint's statistics has (a new robot)."""

    precision: Precision = field(default="auto", metadata={"panel": "Machine"})
    """Compute type; weights and optimiser state stay float32. auto = bfloat16 on a GPU, float32 on CPU."""
    activation_checkpointing: bool = True
    """Less memory for a third more time: activations are computed again in the backward pass."""
    torch_compile: bool = False
    """Compile every block; worth its start-up time in long runs."""
    num_workers: int = 4
    """Processes that decode ahead; the order of samples does not depend on it. 0 = in the training process."""
    seed: int = 6198
    """Dropout and LoRA initial values."""
    data_seed: int = 50189
    """Order, sample kinds and augmentation."""

    save_interval: int = field(default=2000, metadata={"panel": "Saving and reporting"})
    """Steps between checkpoints."""
    keep: int = 1
    """Checkpoints kept besides the final export."""
    log_interval: int = 20
    """Steps between reports."""
    eval_data: tuple[str, ...] = ()
    """Held-out folders; empty = only `eval_fraction`."""
    eval_fraction: float = 0.0
    """Share of every data folder's episodes (of its rows, where it has no episodes) that is held out of training."""
    eval_interval: int = 1000
    """Steps between evaluations."""
    eval_samples: int = 64
    """Held-out samples whose loss is taken at each evaluation; every group of data gets the same share of them."""
    eval_generate: int = 4
    """Samples answered in full (constrained) at each evaluation, for errors in robot units. 0 = none."""
    wandb_project: str | None = None
    """Also log to this W&B project; WANDB_MODE=offline works."""
    wandb_entity: str | None = None
    """Team of the W&B project."""

    settings: Any = field(metadata={"flag": ""})
    """The family's own fields: an instance of `families.registry.settings_class(family)`."""

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise UserError(f"training config: {problem}.")


def _problems(c: TrainConfig) -> list[str]:
    """Every rule between fields, in words; empty = sound."""
    rules = [
        (not c.data, "no data; give at least one --data PATH"),
        (c.duration < 1, f"duration must be at least 1 step, got {c.duration}"),
        (c.device_batch_size < 1, "device_batch_size must be at least 1"),
        (
            c.global_batch_size < 1 or c.global_batch_size % max(c.device_batch_size, 1) != 0,
            f"global_batch_size {c.global_batch_size} is not a multiple of device_batch_size "
            f"{c.device_batch_size}",
        ),
        (c.max_samples is not None and c.max_samples < 1, "max_samples must be at least 1"),
        (c.max_images < 1, "max_images must be at least 1"),
        (
            not c.lora and c.lora_base_bf16,
            "lora_base_bf16 freezes the base, which needs --lora",
        ),
        (c.lora and c.lora_rank < 1, f"lora_rank must be at least 1, got {c.lora_rank}"),
        (c.lora and c.lora_alpha <= 0, f"lora_alpha must be positive, got {c.lora_alpha}"),
        (c.save_interval < 1 or c.keep < 1, "save_interval and keep must be at least 1"),
        (c.log_interval < 1 or c.eval_interval < 1, "intervals must be at least 1 step"),
        (not 0 <= c.eval_fraction < 1, f"eval_fraction must be in [0, 1), got {c.eval_fraction}"),
        (
            c.lr_scheduler == "cosine_with_warmup" and c.warmup >= c.duration,
            f"warm-up of {c.warmup} steps does not fit in {c.duration} steps; lower --warmup",
        ),
        (not 0 <= c.lora_dropout < 1, "lora_dropout must be in [0, 1)"),
        (
            c.wandb_entity is not None and c.wandb_project is None,
            "wandb_entity needs wandb_project",
        ),
    ]
    return [text for broken, text in rules if broken] + c.settings.problems(c)


def resolve(stage: str, *layers: Mapping[str, Any]) -> TrainConfig:
    """The preset of `stage` overridden by `layers`, later ones winning; None in a layer = not given.

    The family is what the last layer with a `family` says, MolmoAct otherwise. Raises `UserError` for an unknown
    stage or key (naming the nearest), a value outside its choices, or a combination that cannot mean anything.
    """
    for old in {key for layer in layers for key in layer} & set(_OLD_NAMES):
        logger.info("note: %s is called %s now.", old, _OLD_NAMES[old])
    layers = tuple(_with_new_names(layer) for layer in layers)
    named = [layer["family"] for layer in layers if layer.get("family") is not None]
    family = named[-1] if named else registry.DEFAULT
    stages, settings = registry.stages(family), registry.settings_class(family)
    if stage not in stages:
        raise unknown_name("stage", stage, stages)
    values: dict[str, Any] = {"family": family, "stage": stage, **stages[stage]}
    for layer in layers:
        _check_keys(layer, settings)
        given = {key: value for key, value in layer.items() if value is not None}
        settings.before_layer(values, given)
        values.update(given)
    settings.complete(values)
    _expand_mixture(values)
    return _assemble(values, settings)


def _with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of files from before outputs had one name in every command. Raises `UserError` where both stand there."""
    for old, new in _OLD_NAMES.items():
        if old in values and new in values:
            raise UserError(f"{old} is called {new} now, and both are given: leave {old} out.")
    return {_OLD_NAMES.get(key, key): value for key, value in values.items()}


def _expand_mixture(values: dict[str, Any]) -> None:
    """`mixture` -> the `data` it stands for, so that a run is resumed with what it began with."""
    if values.get("mixture") is None:
        if values.get("without"):
            raise UserError(
                "--without leaves sets of a published mixture out: it needs --mixture FOLDER."
            )
        return
    if values.get("data"):
        raise UserError("--mixture says what the data are: give it or --data, not both.")
    found = published_mixture(
        values["stage"], Path(values["mixture"]), tuple(values.get("without", ()))
    )
    values["data"] = found.data_arguments()


def _assemble(values: Mapping[str, Any], settings: Any) -> TrainConfig:
    """A configuration from flat values; the family's own go into its settings."""
    own = _names(settings)
    of_run = {key: value for key, value in values.items() if key not in own}
    _check_complete(of_run)
    of_family = build(settings, {key: value for key, value in values.items() if key in own})
    return build(TrainConfig, {**of_run, "settings": of_family})


def _names(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)} - {"settings"}


def _check_keys(layer: Mapping[str, Any], settings: Any) -> None:
    known = _names(TrainConfig) | _names(settings)
    for key in layer:
        if key not in known:
            raise unknown_name("training config key", key, known)


def _check_complete(values: Mapping[str, Any]) -> None:
    required = [
        f.name
        for f in dataclasses.fields(TrainConfig)
        if f.default is dataclasses.MISSING and f.name != "settings"
    ]
    missing = [name for name in required if name not in values or values[name] in ("", (), [])]
    if missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise UserError(f"training config is incomplete: {flags} must be given.")


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Plain flat values, as `config.json` beside a checkpoint holds them: secrets are hidden."""
    values = dataclasses.asdict(config)
    own = values.pop("settings")
    plain = {**values, "data": list(config.data), "eval_data": list(config.eval_data), **own}
    return dict(redacted(plain))


def from_json(values: Mapping[str, Any]) -> TrainConfig:
    """The inverse of `to_json`; a run from before there were families is MolmoAct's."""
    values = {"family": registry.DEFAULT, **_with_new_names(values)}
    settings = registry.settings_class(values["family"])
    _check_keys(values, settings)
    return _assemble(values, settings)


# What may differ between a run and its resumption: none of it changes a loss or an update.
RESUMABLE_CHANGES = frozenset(
    {
        "output_path", "device_batch_size", "num_workers", "save_interval", "keep", "log_interval",
        "eval_interval", "eval_samples", "eval_generate", "wandb_project", "wandb_entity",
        "activation_checkpointing", "torch_compile",
    }
)  # fmt: skip


def changes_on_resume(saved: TrainConfig, asked: TrainConfig) -> list[str]:
    """Fields that differ and would make the resumed run another run; empty = exact continuation."""
    old, new = to_json(saved), to_json(asked)
    free = RESUMABLE_CHANGES
    if saved.checkpoint_revision is None:  # a run from before commits were recorded
        free |= {"checkpoint_revision"}
    return sorted(k for k in new if k not in free and old[k] != new[k])
