"""What the network and a training run are made of, and the presets. Importing this does not need torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from molmoact_data.config import build, option
from molmoact_data.errors import unknown_name
from molmoact_data.teachers.registry import DEPTH_ESTIMATORS
from vqvae.recipe import Recipe, Scaling


@dataclass(frozen=True)
class Geometry:
    """Everything that decides the shape of the parameters; travels with every checkpoint."""

    image_size: int = 320
    """S; depth maps are resized to S x S pixels."""
    grid_size: int = 10
    """G; codes per side. S / G must be a power of two: one stride-2 convolution per halving."""
    codebook_size: int = option(128, panel="Network")
    """K; codes per level."""
    code_dim: int = 512
    """D; length of a code vector."""
    hidden_dim: int = 16
    """Channels after the first convolution; they double with every halving."""
    num_res_blocks: int = 2
    num_code_levels: int = 1
    """L; above 1, each further level codes what the levels before it left over (residual codes)."""

    def __post_init__(self) -> None:
        ratio = self.image_size / self.grid_size
        if ratio < 2 or ratio != int(ratio) or int(ratio) & (int(ratio) - 1):
            raise ValueError(
                f"image_size / grid_size must be a power of two of at least 2, "
                f"got {self.image_size} / {self.grid_size}"
            )
        if min(self.codebook_size, self.code_dim, self.hidden_dim, self.num_code_levels) < 1:
            raise ValueError(f"sizes must be positive: {self}")

    @property
    def num_halvings(self) -> int:
        """Stride-2 convolutions between the image and the grid."""
        return (self.image_size // self.grid_size).bit_length() - 1

    @property
    def num_tokens(self) -> int:
        """Depth tokens per image, L * G * G: what a language model has to write."""
        return self.num_code_levels * self.grid_size**2

    @property
    def channels(self) -> tuple[int, ...]:
        """Encoder channels after each halving."""
        return tuple(self.hidden_dim * 2**i for i in range(self.num_halvings))


@dataclass(frozen=True)
class QuantizerConfig:
    """How the codebook is learnt."""

    decay: float = 0.95
    """Of the moving averages, per step."""
    commitment_weight: float = 0.25
    """Of the distance between a feature and its code, beside the mean squared reconstruction error."""
    dead_code_threshold: float = 2.0
    """A code whose moving-average count per step falls below this is restarted from the batch; 0 = never."""
    kmeans_iterations: int = 10
    """On the first quantised batch; 0 = start from random codes."""
    warmup_steps: int = 24
    """Steps in which the decoder sees the features themselves. An untrained encoder maps everything to
    nearly one point, and k-means on one point gives codes that die; a short head start does not."""


@dataclass(frozen=True)
class TrainConfig:
    """A run; written to `config.json` of its folder, and into every checkpoint."""

    data: tuple[str, ...] = option((), panel="Data")
    """Output of `preprocess`, LeRobot dataset (folder or URL), folder of PNG/npy depth, procedural:N or
    simulator:N[:test]; repeatable."""
    depth_encoder: str | None = option(None, choices=tuple(DEPTH_ESTIMATORS))
    """Depth model for data that holds images only."""
    depth_kind: Literal["auto", "inverse", "metric"] = "auto"
    """inverse: larger = nearer. metric: distance, 0 = missing. auto: metric for recorded depth of a
    LeRobot dataset, inverse for PNG and npy folders."""
    scaling: Scaling = "image"
    """Range of the 8-bit scaling: of each frame (as released), steady as --depth-scaling of `preprocess`, or of the
    whole episode."""
    hold_out_fraction: float = 0.1
    """Share of episodes that are only measured on."""

    geometry: Geometry = field(default_factory=Geometry)
    recipe: Recipe = field(default_factory=Recipe)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    batch_size: int = option(64, panel="Training")
    """Maps per step over all processes."""
    lr: float = 1e-3
    """Peak; reached linearly, then a cosine down to a hundredth."""
    lr_warmup_steps: int = 20
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """Of AdamW."""
    grad_clip: float = 1.0
    """Largest gradient norm."""
    epochs: int = 20
    """Passes over the data."""
    max_steps: int | None = None
    """Stop earlier than `epochs`; the schedule is fitted to it. None = all epochs."""
    seed: int = 0
    """Of weights, order and revived codes."""

    eval_every: int = 200
    """Steps between evaluations on the held-out maps, each with a sheet of pictures."""
    save_every: int = 200
    """Steps between saved training states; SIGTERM saves too."""
    max_eval_maps: int | None = 512
    """Held-out maps per evaluation, evenly spread; None = all."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on a GPU, fp32 elsewhere. The quantiser and every evaluation are fp32 always."""
    wandb_project: str | None = None
    """Also log to Weights & Biases; None = metrics.jsonl only."""

    def __post_init__(self) -> None:
        if self.depth_encoder is not None and self.depth_encoder not in DEPTH_ESTIMATORS:
            raise unknown_name("depth encoder", self.depth_encoder, DEPTH_ESTIMATORS)
        if not 0 < self.hold_out_fraction < 1:
            raise ValueError(f"hold_out_fraction must lie in (0, 1), got {self.hold_out_fraction}")
        for name in ("batch_size", "epochs", "eval_every", "save_every", "lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.max_steps is not None and self.max_steps <= self.quantizer.warmup_steps:
            raise ValueError(
                f"max_steps {self.max_steps} leaves no step after the {self.quantizer.warmup_steps} "
                "warm-up steps of the quantiser"
            )


@dataclass(frozen=True)
class EvalConfig:
    """What is measured, on what."""

    checkpoint: Path
    """vae-final.pt, a .safetensors of ours, or a run folder of `vqvae train`."""
    data: tuple[str, ...]
    """As for `vqvae train`; all of it is measured on."""
    depth_encoder: str | None = option(None, choices=tuple(DEPTH_ESTIMATORS))
    """Depth model for data that holds images only."""
    depth_kind: Literal["auto", "inverse", "metric"] = "auto"
    """inverse (larger = nearer), metric (distance, 0 = missing) or auto."""
    scaling: Scaling = "image"
    """Of the reconstruction numbers; the share of codes that change is reported for every scaling."""
    max_episodes: int | None = None
    """Per place; None = all."""
    min_codes: int | None = None
    """Fewer used codes than this over all data are a failure."""
    output_path: Path | None = None
    """PNG of inputs, reconstructions and errors; None = not written."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""
    batch_size: int = option(16, flag="")


PRESETS: dict[str, dict[str, Any]] = {
    "debug": {
        "data": ["procedural:6"],
        "geometry": {
            "image_size": 64, "grid_size": 4, "codebook_size": 16, "code_dim": 8,
            "hidden_dim": 4, "num_res_blocks": 1,
        },
        "quantizer": {"warmup_steps": 2},
        "batch_size": 4, "max_steps": 10, "eval_every": 5, "save_every": 5, "device": "cpu",
    },
    "released": {},
    "fine": {"geometry": {"grid_size": 20}},
    "residual": {"geometry": {"num_code_levels": 2}},
    "embedded": {
        "geometry": {"hidden_dim": 8, "code_dim": 64, "num_res_blocks": 1},
        "batch_size": 16, "lr": 2e-3, "precision": "bf16",
    },
}  # fmt: skip
"""Values that differ from the defaults. `fine` codes 20 x 20 = 400 tokens per image, `residual` 2 x 100."""


def resolve_config(preset: str, file_values: dict[str, Any], flags: dict[str, Any]) -> TrainConfig:
    """Preset, then the values of a config file, then flags; later ones win. Nested parts are merged.

    Flags may name fields of `geometry`, `recipe` and `quantizer` directly (`codebook_size`).
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    merged = merge(merge(PRESETS[preset], file_values), nest(flags))
    return build(TrainConfig, merged)


def nest(flags: dict[str, Any]) -> dict[str, Any]:
    """Flat flags -> the shape of `TrainConfig`."""
    nested: dict[str, Any] = {}
    for name, value in flags.items():
        owner = next((part for part, names in _PARTS.items() if name in names), None)
        if owner is None:
            nested[name] = value
        else:
            nested.setdefault(owner, {})[name] = value
    return nested


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins, key by key, inside nested mappings too."""
    both = {**base, **over}
    for key in base.keys() & over.keys():
        if isinstance(base[key], dict) and isinstance(over[key], dict):
            both[key] = merge(base[key], over[key])
    return both


_PARTS = {
    "geometry": {f.name for f in dataclasses.fields(Geometry)},
    "recipe": {f.name for f in dataclasses.fields(Recipe)},
    "quantizer": {f.name for f in dataclasses.fields(QuantizerConfig)},
}
