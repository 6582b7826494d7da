"""What a run of MolmoAct has beyond any run: rates, sample kinds, wording; and its published stages. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from molmoact_data.text.prompts import SampleKind, Wording

FtEmbedding = Literal["all", "lm_head", "ln_f", "wte"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Fields of a MolmoAct run; flags and YAML keys are spelled alike."""

    lr_connector: float = 5e-6
    """Learning rate of pooling, projector, pad embedding and the embeddings of the six image tokens."""
    lr_vit: float = 5e-6
    """Learning rate of the image encoder."""
    lr_llm: float = 1e-5
    """Learning rate of the language model."""
    z_loss: float = 1e-4
    """Weight of logsumexp(logits)^2; 0 switches it off."""
    residual_dropout: float = 0.1
    """On the attention and MLP branch of every language-model block."""
    ft_embedding: FtEmbedding | None = None
    """Full fine-tuning only. all: everything; lm_head: head and ln_f; ln_f: it alone; wte: input rows alone."""
    img_aug_crop_depth: bool = False
    """Also crop the frame whose depth codes are asked for; the codes then belong to a slightly wider view."""
    kind_reasoning: float = 0.5
    """Relative frequency of: depth, trace, then action."""
    kind_trajectory: float = 0.5
    """Relative frequency of: action from an image with the trace drawn on it."""
    kind_action: float = 0.0
    """Relative frequency of: action alone. A model that knows this and no whole answers is asked for nothing else."""
    kind_depth: float = 0.0
    """Relative frequency of: depth alone."""
    kind_trace: float = 0.0
    """Relative frequency of: trace alone."""
    wording: Wording = "released"
    """`reference` = the answers of the reference's own fine-tuning code, which differ from its released models."""

    @property
    def kinds(self) -> dict[SampleKind, float]:
        """Relative frequency of each sample kind of our records."""
        return {
            "reasoning": self.kind_reasoning,
            "trajectory": self.kind_trajectory,
            "action": self.kind_action,
            "depth": self.kind_depth,
            "trace": self.kind_trace,
        }

    def problems(self, run: Any) -> list[str]:
        """Every rule that a field of this family is part of; `run` is the `TrainConfig`. Empty = sound."""
        rules = [
            (
                run.lora and self.ft_embedding is not None,
                f"--ft-embedding {self.ft_embedding} has no effect with LoRA, which freezes all embeddings; "
                "drop it, or train in full with --no-lora",
            ),
            (not run.lora and self.ft_embedding is None, "full fine-tuning needs ft_embedding"),
            (self.img_aug_crop_depth and not run.img_aug, "img_aug_crop_depth needs img_aug"),
            (min(self.kinds.values()) < 0, "a kind's frequency is negative"),
            (
                sum(self.kinds.values()) == 0,
                "all kinds have frequency 0, so nothing is trained",
            ),
            (not 0 <= self.residual_dropout < 1, "residual_dropout must be in [0, 1)"),
        ]
        return [text for broken, text in rules if broken]

    @staticmethod
    def before_layer(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
        """Drop from `values` what the layer that comes over them makes meaningless.

        Switching a full stage to LoRA also drops that stage's choice of trained embeddings.
        """
        if layer.get("lora") and "ft_embedding" not in layer:
            values.pop("ft_embedding", None)

    @staticmethod
    def complete(values: dict[str, Any]) -> None:
        """Defaults that depend on other fields, when all layers are in."""
        if not values.get("lora", False):
            values.setdefault("ft_embedding", "lm_head")


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
STAGES: Mapping[str, Mapping[str, Any]] = {
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
    # The small network of families/molmoact/tabletop.py, from random weights, on a CPU.
    "tabletop": {
        "duration": 3_000,
        "global_batch_size": 32,
        "device_batch_size": 32,
        "lr_connector": 2e-3,
        "lr_vit": 2e-3,
        "lr_llm": 2e-3,
        "warmup": 50,
        "weight_decay": 0.05,
        "residual_dropout": 0.0,
        "z_loss": 0.0,
        "max_images": 2,
        "ft_embedding": "all",
        "kind_reasoning": 0.5,
        "kind_trajectory": 0.2,
        "kind_trace": 0.3,
        "save_interval": 500,
        "keep": 1,
        "num_workers": 0,
        "activation_checkpointing": False,
        "eval_generate": 0,
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
