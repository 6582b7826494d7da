"""What a training run is: one frozen record, the published stages as presets, and the rules between fields.

Field names are the command line's names with underscores, so a YAML file, a flag and a field are spelled alike.
Precedence: preset < YAML < flags. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from molmoact_data.config import build
from molmoact_data.errors import UserError, unknown_name
from molmoact_data.text.prompts import SampleKind, Wording

FtEmbedding = Literal["all", "lm_head", "ln_f", "wte"]
Scheduler = Literal["cosine_with_warmup", "constant"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run. `resolve` makes it; `__post_init__` refuses combinations that cannot mean anything."""

    stage: str
    """Name of the preset it started from."""
    checkpoint: str
    """Folder or Hub id of the model to start from (released Hugging Face layout)."""
    data: tuple[str, ...]
    """`PATH[:weight]`: our output folders or published-mixture rows (`molmoact_train.data.mixture`)."""
    save_folder: str
    """The run: checkpoints, metrics, resolved config, final export."""

    duration: int
    """Optimiser steps."""
    global_batch_size: int
    """Samples per optimiser step over all processes."""
    device_batch_size: int = 4
    """Samples per forward pass of one process; global = device x processes x accumulation."""
    seq_len: int = 2304
    """Tokens; a longer sample is left out and counted, never cut."""
    max_images: int = 1
    """Cameras per sample, in the record's order."""

    lr_connector: float = 5e-6
    """Pooling, projector, pad embedding and the embeddings of the six image tokens."""
    lr_vit: float = 5e-6
    lr_llm: float = 1e-5
    lr_scheduler: Scheduler = "cosine_with_warmup"
    """`cosine_with_warmup` ends at a tenth of the base rate; `constant` has no warm-up."""
    warmup: int = 200
    """Steps of linear warm-up from 0."""
    weight_decay: float = 0.0
    """Not applied to embeddings, norms and positions."""
    max_grad_norm: float = 1.0
    """L2 limit, for each of the three groups on its own."""
    z_loss: float = 1e-4
    """Weight of logsumexp(logits)^2; 0 switches it off."""
    residual_dropout: float = 0.1
    """On the attention and MLP branch of every language-model block."""
    ft_embedding: FtEmbedding | None = None
    """Full fine-tuning only. all: everything; lm_head: head and ln_f; ln_f: it alone; wte: input rows alone."""

    lora: bool = False
    lora_rank: int = 32
    lora_alpha: float = 16.0
    """The adapter's output is scaled by alpha / rank."""
    lora_dropout: float = 0.0
    lora_base_bf16: bool = False
    """Keep the frozen base in bfloat16 (half the memory); adapters stay float32."""

    img_aug: bool = False
    """Aspect-preserving crop of 0.9 of the area and colour jitter; traces move with the crop."""
    img_aug_crop_depth: bool = False
    """Also crop the frame whose depth codes are asked for; the codes then belong to a slightly wider view."""
    kind_reasoning: float = 0.5
    """Relative frequency of: depth, trace, then action."""
    kind_trajectory: float = 0.5
    """Relative frequency of: action from an image with the trace drawn on it."""
    kind_depth: float = 0.0
    """Relative frequency of: depth alone."""
    kind_trace: float = 0.0
    """Relative frequency of: trace alone."""
    max_samples: int | None = None
    """Use only the first so many usable rows of every data folder: to over-fit, or to try things. None = all."""
    wording: Wording = "released"
    """`reference` = the answers of the reference's own fine-tuning code, which differ from its released models."""
    norm_stats_path: str | None = None
    """Statistics stored in the export; None = merged from the data's own files."""

    new_action_dim: bool = False
    """Allow data whose action dimension no entry of the checkpoint's statistics has (a new robot)."""

    precision: Precision = "auto"
    """Compute type; weights and optimiser state stay float32. auto = bfloat16 on a GPU, float32 on CPU."""
    activation_checkpointing: bool = True
    torch_compile: bool = False
    """Compile every block; worth its start-up time in long runs."""
    num_workers: int = 4
    """Processes that decode ahead; the order of samples does not depend on it. 0 = in the training process."""
    seed: int = 6198
    """Dropout and LoRA initial values."""
    data_seed: int = 50189
    """Order, sample kinds and augmentation."""

    save_interval: int = 2000
    keep: int = 1
    """Checkpoints kept besides the final export."""
    log_interval: int = 20
    eval_data: tuple[str, ...] = ()
    """Held-out folders; empty = only `eval_fraction`."""
    eval_fraction: float = 0.0
    """Share of every data folder's episodes that is held out of training."""
    eval_interval: int = 1000
    eval_samples: int = 64
    eval_generate: int = 4
    """Samples answered in full (constrained) at each evaluation, for errors in robot units. 0 = none."""
    wandb_project: str | None = None
    """WANDB_MODE=offline works."""
    wandb_entity: str | None = None

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
            c.lora and c.ft_embedding is not None,
            f"--ft-embedding {c.ft_embedding} has no effect with LoRA, which freezes all embeddings; "
            "drop it, or train in full with --no-lora",
        ),
        (not c.lora and c.ft_embedding is None, "full fine-tuning needs ft_embedding"),
        (
            not c.lora and c.lora_base_bf16,
            "lora_base_bf16 freezes the base, which needs --lora",
        ),
        (c.lora and c.lora_rank < 1, f"lora_rank must be at least 1, got {c.lora_rank}"),
        (c.lora and c.lora_alpha <= 0, f"lora_alpha must be positive, got {c.lora_alpha}"),
        (
            c.img_aug_crop_depth and not c.img_aug,
            "img_aug_crop_depth needs img_aug",
        ),
        (min(kind_weights(c).values()) < 0, "a kind's frequency is negative"),
        (sum(kind_weights(c).values()) == 0, "all kinds have frequency 0, so nothing is trained"),
        (c.save_interval < 1 or c.keep < 1, "save_interval and keep must be at least 1"),
        (c.log_interval < 1 or c.eval_interval < 1, "intervals must be at least 1 step"),
        (not 0 <= c.eval_fraction < 1, f"eval_fraction must be in [0, 1), got {c.eval_fraction}"),
        (
            c.lr_scheduler == "cosine_with_warmup" and c.warmup >= c.duration,
            f"warm-up of {c.warmup} steps does not fit in {c.duration} steps; lower --warmup",
        ),
        (not 0 <= c.residual_dropout < 1, "residual_dropout must be in [0, 1)"),
        (not 0 <= c.lora_dropout < 1, "lora_dropout must be in [0, 1)"),
        (
            c.wandb_entity is not None and c.wandb_project is None,
            "wandb_entity needs wandb_project",
        ),
    ]
    return [text for broken, text in rules if broken]


def kind_weights(config: TrainConfig) -> dict[SampleKind, float]:
    """Relative frequency of each sample kind of our records."""
    return {
        "reasoning": config.kind_reasoning,
        "trajectory": config.kind_trajectory,
        "depth": config.kind_depth,
        "trace": config.kind_trace,
    }


# The published settings (MolmoAct, August 2025): steps, batch, rates, tuning, augmentation, images, saving.
_LIBERO: dict[str, Any] = {
    "global_batch_size": 128,
    "lr_connector": 5e-4,
    "lr_vit": 5e-4,
    "lr_llm": 5e-4,
    "lora": True,
    "img_aug": True,
    "max_images": 2,
    "save_interval": 10_000,
    "keep": 5,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Tiny model, a handful of steps, CPU: exercises every part of a run.
    "debug": {
        "duration": 6,
        "global_batch_size": 4,
        "device_batch_size": 2,
        "lr_connector": 1e-3,
        "lr_vit": 1e-3,
        "lr_llm": 1e-3,
        "warmup": 2,
        "max_images": 2,
        "ft_embedding": "all",
        "save_interval": 3,
        "keep": 2,
        "log_interval": 1,
        "eval_interval": 3,
        "eval_samples": 4,
        "eval_generate": 1,
        "num_workers": 0,
        "activation_checkpointing": False,
    },
    "pretrain": {
        "duration": 100_000,
        "global_batch_size": 512,
        "lr_connector": 1e-5,
        "lr_vit": 1e-5,
        "lr_llm": 2e-5,
        "ft_embedding": "all",
        "max_images": 1,
        "save_interval": 20_000,
        "keep": 5,
    },
    "midtrain": {
        "duration": 50_000,
        "global_batch_size": 256,
        "lr_connector": 5e-6,
        "lr_vit": 5e-6,
        "lr_llm": 1e-5,
        "ft_embedding": "all",
        "max_images": 2,
        "save_interval": 10_000,
        "keep": 5,
    },
    "libero-spatial": {**_LIBERO, "duration": 50_000},
    "libero-object": {**_LIBERO, "duration": 50_000},
    "libero-goal": {**_LIBERO, "duration": 40_000},
    "libero-long": {**_LIBERO, "duration": 80_000},
    "finetune": {
        **_LIBERO,
        "duration": 10_000,
        "global_batch_size": 16,
        "save_interval": 2_000,
        "eval_fraction": 0.05,
    },
}


def resolve(stage: str, *layers: Mapping[str, Any]) -> TrainConfig:
    """The preset of `stage` overridden by `layers`, later ones winning; None in a layer = not given.

    Raises `UserError` for an unknown stage or key (naming the nearest), a value outside its choices, or a
    combination that cannot mean anything.
    """
    if stage not in PRESETS:
        raise unknown_name("stage", stage, PRESETS)
    values: dict[str, Any] = {"stage": stage, **PRESETS[stage]}
    for layer in layers:
        _check_keys(layer)
        given = {key: value for key, value in layer.items() if value is not None}
        _drop_preset_embedding(values, given)
        values.update(given)
    if not values.get("lora", False):
        values.setdefault("ft_embedding", "lm_head")
    _check_complete(values)
    return build(TrainConfig, values)


def _drop_preset_embedding(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Switching a full preset to LoRA also drops that preset's choice of trained embeddings."""
    if given.get("lora") and "ft_embedding" not in given:
        values.pop("ft_embedding", None)


def _check_keys(layer: Mapping[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    for key in layer:
        if key not in known:
            raise unknown_name("training config key", key, known)


def _check_complete(values: Mapping[str, Any]) -> None:
    required = [f.name for f in dataclasses.fields(TrainConfig) if f.default is dataclasses.MISSING]
    missing = [name for name in required if name not in values or values[name] in ("", (), [])]
    if missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise UserError(f"training config is incomplete: {flags} must be given.")


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Plain values, as `config.json` beside a checkpoint holds them."""
    return {
        **dataclasses.asdict(config),
        "data": list(config.data),
        "eval_data": list(config.eval_data),
    }


def from_json(values: Mapping[str, Any]) -> TrainConfig:
    """The inverse of `to_json`."""
    _check_keys(values)
    _check_complete(values)
    tuples = {key: tuple(values.get(key, ())) for key in ("data", "eval_data")}
    return TrainConfig(**{**values, **tuples})


# What may differ between a run and its resumption: none of it changes a loss or an update.
RESUMABLE_CHANGES = frozenset(
    {
        "save_folder", "device_batch_size", "num_workers", "save_interval", "keep", "log_interval",
        "eval_interval", "eval_samples", "eval_generate", "wandb_project", "wandb_entity",
        "activation_checkpointing", "torch_compile",
    }
)  # fmt: skip


def changes_on_resume(saved: TrainConfig, asked: TrainConfig) -> list[str]:
    """Fields that differ and would make the resumed run another run; empty = exact continuation."""
    old, new = to_json(saved), to_json(asked)
    return sorted(k for k in new if k not in RESUMABLE_CHANGES and old[k] != new[k])
