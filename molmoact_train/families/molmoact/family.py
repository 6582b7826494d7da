"""MolmoAct behind the seam: see `families.base.Family` for what each answer means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from molmoact_data.text.prompts import check_speakable
from molmoact_train.config import TrainConfig
from molmoact_train.data.base import Part
from molmoact_train.data.rendering import KIND_NEEDS
from molmoact_train.data.sources import ShardSource, Source
from molmoact_train.families.base import Family, Losses
from molmoact_train.families.measures import AnswerErrors
from molmoact_train.families.molmoact import estimates, evaluation, groups, released
from molmoact_train.families.molmoact.encoder import MolmoActEncoder
from molmoact_train.families.molmoact.network import MolmoActConfig, MolmoActForActionReasoning
from molmoact_train.families.molmoact.processor import MolmoActProcessor
from molmoact_train.families.molmoact.samples import MicroBatch, MolmoActSample


class MolmoActFamily:
    """Image features and text in, one token stream out: depth codes, a trace, action tokens."""

    name = "molmoact"
    groups: tuple[str, ...] = groups.GROUPS
    mixes_robots = False

    # Data

    def needs(self, config: TrainConfig) -> dict[str, frozenset[Part]]:
        return {k: KIND_NEEDS[k] for k, weight in config.settings.kinds.items() if weight > 0}

    def check_source(self, source: ShardSource, config: TrainConfig) -> None:
        """Its words are 128 depth tokens, 100 to a picture, and 256 action tokens; nothing else can be said."""
        asked = frozenset[Part]().union(*self.needs(config).values())
        layout = source.layout
        check_speakable(
            str(source.folder),
            depth_codes=layout.depth_codes if "depth" in asked else None,
            codebook_size=layout.codebook_size,
            num_bins=source.output.num_bins if layout.action_dim is not None else None,
        )

    def encoder(self, folder: Path, config: TrainConfig, *, training: bool) -> MolmoActEncoder:
        processor = MolmoActProcessor.from_pretrained(folder)
        return MolmoActEncoder.of_run(processor, config, training=training)

    def statistics(
        self,
        found: Mapping[str, Any],
        config: TrainConfig,
        folder: Path,
        sources: Sequence[Source],
    ) -> dict[str, Any]:
        return dict(found)

    # Network

    def build(self, folder: Path, config: TrainConfig | None = None) -> MolmoActForActionReasoning:
        model = MolmoActForActionReasoning(MolmoActConfig.from_folder(folder))
        if config is not None:
            model.set_residual_dropout(config.settings.residual_dropout)
        return model

    def units(self, model: nn.Module) -> list[nn.Module]:
        """Every block, the pooling and the projector."""
        vision = _of_ours(model).model.vision_backbone
        return [
            *vision.image_vit.transformer.resblocks,
            vision.image_pooling_2d,
            vision.image_projector,
            *_of_ours(model).model.transformer.blocks,
        ]

    def shards(self, model: nn.Module) -> list[tuple[nn.Module, bool]]:
        """Vision, then the embedding; the rest stays in the root's group.

        The head and the final norm live from the forward to the backward pass: the chunked loss calls the head
        many times. The embedding is gathered in float32, so that the residual stream starts, and stays, in
        float32 as published.
        """
        ours = _of_ours(model).model
        return [(ours.vision_backbone, False), (ours.transformer.wte, True)]

    def group(self, parameter: str) -> str:
        return groups.parameter_group(parameter)

    def rates(self, config: TrainConfig) -> dict[str, float]:
        own = config.settings
        return {"llm": own.lr_llm, "connector": own.lr_connector, "vit": own.lr_vit}

    def trains(self, parameter: str, config: TrainConfig) -> bool:
        return groups.trains_in_full(parameter, config.settings.ft_embedding or "lm_head")

    def trains_beside_adapters(self, parameter: str) -> bool:
        return False

    def decays(self, parameter: str) -> bool:
        return groups.decays(parameter)

    def losses(
        self,
        model: nn.Module,
        batch: MicroBatch,
        device: torch.device,
        config: TrainConfig,
        divisors: Mapping[str, float],
        *,
        accuracy: bool,
    ) -> Losses:
        """Cross-entropy and z-loss of the answer's tokens."""
        inputs = batch.inputs_on(device)
        out = model(
            **inputs,
            loss_divisor=divisors["loss_tokens"],
            z_loss_scale=config.settings.z_loss,
            with_accuracy=accuracy,
        )
        parts, sums = out.token_loss, {}
        if accuracy:
            weights = inputs["loss_weights"].flatten()[out.loss_rows]
            sums["accuracy"] = (weights * parts.correct_R).sum()
        terms = {
            "loss": out.loss.detach(),
            "cross_entropy": parts.cross_entropy,
            "z_loss": parts.z_loss,
        }
        return Losses(out.loss, terms, sums)

    # Measures

    def score(self, model: nn.Module, batch: MicroBatch, device: torch.device) -> Tensor:
        return evaluation.score(_of_ours(model), batch, device)

    def scores(self, sums: Tensor) -> dict[str, float]:
        return evaluation.PartSums(sums).summary("eval")

    def answers(
        self,
        model: nn.Module,
        encoder: MolmoActEncoder,
        sources: Sequence[Source],
        config: TrainConfig,
    ) -> list[AnswerErrors]:
        return evaluation.answers(_of_ours(model), encoder, sources, config)

    def measure(self, samples: Sequence[MolmoActSample]) -> dict[str, float]:
        return estimates.measure(samples)

    def flops(self, model: nn.Module, measured: Mapping[str, float], config: TrainConfig) -> float:
        return estimates.flops_per_sample(_of_ours(model), measured, config)

    def memory(
        self,
        model: nn.Module,
        measured: Mapping[str, float],
        config: TrainConfig,
        compute: torch.dtype,
    ) -> dict[str, float]:
        return estimates.memory_bytes(_of_ours(model), measured, config, compute)

    # Folders

    def finish_folder(
        self,
        folder: Path,
        base: Path,
        config: Mapping[str, Any],
        statistics: Mapping[str, Any],
        dtype: str,
    ) -> None:
        released.finish(folder, base, config, statistics, dtype)

    def probe(self, folder: Path, device: torch.device) -> dict[str, Any]:
        """Noise and a sentence."""
        rgb_HWC = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
        processor = MolmoActProcessor.from_pretrained(folder)
        inputs = processor(text=processor.prompt("The task is to verify."), images=[[rgb_HWC]])
        return {name: value.to(device) for name, value in inputs.items()}

    def robots(self, folder: Path) -> Mapping[str, bool]:
        return dict.fromkeys(MolmoActConfig.from_pretrained(folder).norm_stats, False)

    def write_tiny(
        self, folder: Path, *, statistics: Mapping[str, Any] | None = None, seed: int = 0
    ) -> Path:
        from molmoact_train.families.molmoact.tiny import write_tiny_checkpoint

        return write_tiny_checkpoint(folder, norm_stats=statistics, seed=seed)


def _of_ours(model: nn.Module) -> MolmoActForActionReasoning:
    assert isinstance(model, MolmoActForActionReasoning)
    return model


FAMILY: Family = MolmoActFamily()
