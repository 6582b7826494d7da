"""The seam: what a network family answers, so that nothing outside its folder names its classes.

A run asks a family, in this order: an encoder (rows -> samples -> batches), a network on `meta`, how it is sharded
and which parameters train at which rate, the losses of a batch, scores on held-out data, a folder to export.
Every method is pure in its arguments; what has to be remembered is in `Encoder` and in the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from molmoact_train.config import TrainConfig
from molmoact_train.data.base import Encoder, Part
from molmoact_train.data.sources import ShardSource, Source
from molmoact_train.families.measures import AnswerErrors


class Settings(Protocol):
    """A frozen dataclass: the fields that only runs of one family have."""

    def problems(self, run: TrainConfig) -> list[str]:
        """Rules between its fields and the run's that are broken, in words."""
        ...

    @staticmethod
    def before_layer(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
        """Drop from `values` what the layer that comes over them makes meaningless."""
        ...

    @staticmethod
    def complete(values: dict[str, Any]) -> None:
        """Set defaults that depend on other fields."""
        ...


@dataclass(frozen=True)
class Losses:
    """What one batch contributes."""

    loss: Tensor
    """To differentiate: the sum of all terms, each divided by its share of the step's weight."""
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    """Detached scalars that add up over batches and processes to what is reported as `train/NAME`."""
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    """Weighted counts; their total over the step's main weight is reported (`accuracy`)."""


class Family(Protocol):
    """One architecture: how it reads data, trains, is measured, and is written."""

    name: str
    """`model_type` of its checkpoints."""
    groups: tuple[str, ...]
    """Parameter groups with a rate and a gradient limit of their own."""
    mixes_robots: bool
    """Whether one run may hold data of different action dimensions."""

    # Data

    def needs(self, config: TrainConfig) -> Mapping[str, frozenset[Part]]:
        """What can be asked of a row, and the labels each question needs; a row that allows none is left out."""
        ...

    def check_source(self, source: ShardSource, config: TrainConfig) -> None:
        """Raises `UserError` for data that this family's words cannot express (bins, codebook, grid)."""
        ...

    def encoder(self, folder: Path, config: TrainConfig, *, training: bool) -> Encoder:
        """From the tokenizer and image processor of a model folder; evaluation never augments."""
        ...

    def statistics(
        self,
        found: Mapping[str, Any],
        config: TrainConfig,
        folder: Path,
        sources: Sequence[Source],
    ) -> dict[str, Any]:
        """What travels with the run's weights: the `found` entries of checkpoint and data, as the family keeps them."""
        ...

    # Network

    def build(self, folder: Path, config: TrainConfig | None = None) -> nn.Module:
        """The network of a folder, wherever torch creates tensors now (`meta` in practice), without weights.

        Parameters are named as in the folder. With `config`, what training changes (dropout) is set.
        """
        ...

    def units(self, model: nn.Module) -> list[nn.Module]:
        """What is checkpointed, compiled and sharded one by one: every block and connector."""
        ...

    def shards(self, model: nn.Module) -> Sequence[tuple[nn.Module, bool]]:
        """Modules that become shards of their own after the units, innermost first; True = gathered in float32."""
        ...

    def group(self, parameter: str) -> str:
        """The group of a parameter of the released name. Raises ValueError for one that belongs to none."""
        ...

    def rates(self, config: TrainConfig) -> Mapping[str, float]:
        """Base learning rate of each group."""
        ...

    def trains(self, parameter: str, config: TrainConfig) -> bool:
        """Whether full fine-tuning updates the parameter of this released name."""
        ...

    def trains_beside_adapters(self, parameter: str) -> bool:
        """Whether LoRA leaves the layer of this released name alone and trains it in full."""
        ...

    def decays(self, parameter: str) -> bool:
        """Whether weight decay applies to it."""
        ...

    def losses(
        self,
        model: nn.Module,
        batch: Any,
        device: torch.device,
        config: TrainConfig,
        divisors: Mapping[str, float],
        *,
        accuracy: bool,
    ) -> Losses:
        """One forward pass under training; `divisors` has the keys of `Batch.weights`."""
        ...

    # Measures

    def score(self, model: nn.Module, batch: Any, device: torch.device) -> Tensor:
        """Held-out sums of one batch, float64, that add up over batches and processes."""
        ...

    def scores(self, sums: Tensor) -> dict[str, float]:
        """The totals of `score` as numbers: `eval/loss`, `eval/accuracy`, ..."""
        ...

    def answers(
        self, model: nn.Module, encoder: Any, sources: Sequence[Source], config: TrainConfig
    ) -> list[AnswerErrors]:
        """Whole answers on `eval_generate` held-out frames against what was recorded."""
        ...

    def measure(self, samples: Sequence[Any]) -> dict[str, float]:
        """Means over a few samples that `flops` and a plan want to know, beside token counts."""
        ...

    def flops(self, model: nn.Module, measured: Mapping[str, float], config: TrainConfig) -> float:
        """Matrix products of one sample, forward and backward."""
        ...

    def memory(
        self,
        model: nn.Module,
        measured: Mapping[str, float],
        config: TrainConfig,
        compute: torch.dtype,
    ) -> dict[str, float]:
        """Bytes of one process beside weights, gradients and moments: activations, logits, gathered blocks."""
        ...

    # Folders

    def finish_folder(
        self,
        folder: Path,
        base: Path,
        config: Mapping[str, Any],
        statistics: Mapping[str, Any],
        dtype: str,
    ) -> None:
        """Everything beside the weights of a released folder: configuration, statistics, tokenizer, processor."""
        ...

    def probe(self, folder: Path, device: torch.device) -> dict[str, Any]:
        """A fixed question as keyword arguments of the network, to compare two folders by their logits."""
        ...

    def robots(self, folder: Path) -> Mapping[str, bool]:
        """The robots that a model folder knows, by their key of the statistics -> whether it reads their state."""
        ...

    def write_tiny(
        self, folder: Path, *, statistics: Mapping[str, Any] | None = None, seed: int = 0
    ) -> Path:
        """A small random checkpoint in the released layout, for `debug` runs and tests."""
        ...
