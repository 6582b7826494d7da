"""MolmoAct2 behind the seam: see `families.base.Family` for what each answer means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from molmoact_data.errors import UserError
from molmoact_train.config import TrainConfig
from molmoact_train.data.base import Part
from molmoact_train.data.sources import ShardSource, Source
from molmoact_train.families.base import Family, Losses
from molmoact_train.families.measures import AnswerErrors
from molmoact_train.families.molmoact2 import estimates, evaluation, groups, released
from molmoact_train.families.molmoact2.encoder import STYLE_NEEDS, MolmoAct2Encoder
from molmoact_train.families.molmoact2.network import MolmoAct2, MolmoAct2Config
from molmoact_train.families.molmoact2.network.folder import check_frequencies
from molmoact_train.families.molmoact2.processor import MolmoAct2Processor
from molmoact_train.families.molmoact2.robots import tag_for
from molmoact_train.families.molmoact2.samples import MicroBatch, MolmoAct2Sample
from molmoact_train.families.molmoact2.settings import Settings
from molmoact_train.families.molmoact2.statistics import NormStats
from molmoact_train.weights import WeightFiles


class MolmoAct2Family:
    """Image features, words and a discretised state in; action tokens, depth codes and a flow of actions out."""

    name = "molmoact2"
    groups: tuple[str, ...] = groups.GROUPS
    mixes_robots = True

    # Data

    def needs(self, config: TrainConfig) -> dict[str, frozenset[Part]]:
        return {s: STYLE_NEEDS[s] for s, weight in config.settings.styles.items() if weight > 0}

    def check_source(self, source: ShardSource, config: TrainConfig) -> None:
        """Depth codes must be the ones that the checkpoint's words can say."""
        layout = source.layout
        if config.settings.thinks and layout.depth_codes is not None and layout.codebook_size > 128:
            raise UserError(
                f"{source.folder} has a codebook of {layout.codebook_size}, MolmoAct2 has 128 depth tokens. Run "
                "`molmoact preprocess` with a codebook of that size, or train without depth."
            )
        wanted = config.settings.thinks and config.settings.depth_target == "buffer_codes"
        if wanted and not layout.depth_buffer:
            raise UserError(
                f"{source.folder} has no buffer_codes: run `molmoact preprocess` with --depth-buffer consistent, or "
                "train with --depth-target depth_codes."
            )

    def encoder(self, folder: Path, config: TrainConfig, *, training: bool) -> MolmoAct2Encoder:
        encoder = MolmoAct2Encoder.of_run(folder, config, training=training)
        _check_can_train(encoder.processor.config, config.settings, folder)
        check_frequencies(WeightFiles(folder), encoder.processor.config)
        return encoder

    def statistics(
        self,
        found: Mapping[str, Any],
        config: TrainConfig,
        folder: Path,
        sources: Sequence[Source],
    ) -> dict[str, Any]:
        """The tags of the data (with their numbers in the original's layout), and what config.json will say."""
        own: Settings = config.settings
        model = MolmoAct2Config.from_folder(folder)
        stats = NormStats.read(folder / model.norm_stats_filename)
        tags = {}
        for source in sources:
            if not isinstance(source, ShardSource) or source.statistics is None:
                raise UserError(
                    f"--data {source.folder}: MolmoAct2 trains on preprocessed robot data with statistics."
                )
            chunk_size = source.layout.action_chunk_size
            tag = tag_for(source.statistics, source.cameras, chunk_size, stats, model, own)
            tags[tag.name] = tag
        trained = {
            "action_mode": own.action_mode,
            "image_attention": own.image_attention,
            "enable_depth_reasoning": model.enable_depth_reasoning or own.thinks,
        }
        return NormStats(stats.mode, tags).to_json() | {released.TRAINED_FIELDS: trained}

    # Network

    def build(self, folder: Path, config: TrainConfig | None = None) -> MolmoAct2:
        model_config = MolmoAct2Config.from_folder(folder)
        if config is None:
            return MolmoAct2(model_config)
        own: Settings = config.settings
        model = MolmoAct2(
            model_config.replaced(action_mode=own.action_mode, image_attention=own.image_attention)
        )
        for block in model.model.transformer.blocks:
            block.dropout.p = 0.0 if own.expert_only else own.residual_dropout
        return model

    def units(self, model: nn.Module) -> list[nn.Module]:
        """Every block, the pooling and the projector."""
        body = _of_ours(model).model
        expert = [] if _of_ours(model).config.expert is None else [*_of_ours(model).expert.blocks]
        return [
            *body.vision_backbone.image_vit.transformer.resblocks,
            body.vision_backbone.image_pooling_2d,
            body.vision_backbone.image_projector,
            *body.transformer.blocks,
            *expert,
        ]

    def shards(self, model: nn.Module) -> list[tuple[nn.Module, bool]]:
        """The embedding; patch embedding, head, norm and the expert's projections stay in the root's group."""
        return [(_of_ours(model).model.transformer.wte, True)]

    def group(self, parameter: str) -> str:
        return groups.parameter_group(parameter)

    def rates(self, config: TrainConfig) -> dict[str, float]:
        own: Settings = config.settings
        return {
            "llm": own.lr_llm, "connector": own.lr_connector, "vit": own.lr_vit, "expert": own.lr_expert,
        }  # fmt: skip

    def trains(self, parameter: str, config: TrainConfig) -> bool:
        return groups.trains(parameter, config.settings)

    def trains_beside_adapters(self, parameter: str) -> bool:
        """The expert is small and new: it trains in full where the rest is adapted."""
        return parameter.startswith(groups.EXPERT)

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
        """Cross-entropy and z-loss of the answer's tokens, and the flow loss of the action chunks."""
        own: Settings = config.settings
        inputs, chunks = batch.on(device)
        if not own.has_text_loss:
            inputs = {k: v for k, v in inputs.items() if k not in ("targets", "loss_weights")}
        out = model(
            **inputs,
            loss_divisor=divisors["loss_tokens"] or 1.0,
            z_loss_scale=own.z_loss,
            with_accuracy=accuracy,
            chunks=None if own.action_mode == "discrete" else chunks,
            chunk_divisor=divisors["chunks"] or 1.0,
            insulated=own.knowledge_insulation or own.expert_only,
        )
        terms, sums = {"loss": out.loss.detach()}, {}
        if out.text is not None:
            terms |= {"cross_entropy": out.text.cross_entropy, "z_loss": out.text.z_loss}
            if accuracy:
                sums["accuracy"] = (out.text_weights * out.text.correct_R).sum()
        if out.flow_BE is not None:
            terms["flow_loss"] = out.flow_BE.detach().sum() / (divisors["chunks"] or 1.0)
        return Losses(out.loss, terms, sums)

    # Measures

    def score(self, model: nn.Module, batch: MicroBatch, device: torch.device) -> Tensor:
        config = _of_ours(model).config
        return evaluation.score(
            model, batch, device, text=batch.text_first, flow=config.action_mode != "discrete"
        )

    def scores(self, sums: Tensor) -> dict[str, float]:
        return evaluation.scores(sums)

    def answers(
        self,
        model: nn.Module,
        encoder: MolmoAct2Encoder,
        sources: Sequence[Source],
        config: TrainConfig,
    ) -> list[AnswerErrors]:
        return evaluation.answers(model, encoder, sources, config)

    def measure(self, samples: Sequence[MolmoAct2Sample]) -> dict[str, float]:
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
        from molmoact_train.families.molmoact2 import images as pictures

        processor = MolmoAct2Processor.from_folder(folder)
        rgb_HWC = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
        cut = pictures.cut([rgb_HWC], processor.layout)
        ids = processor.ids_of("<|image|>The task is to verify.", cut)
        return {
            "input_ids": torch.tensor([ids], device=device),
            "pixels": torch.from_numpy(cut.crops_UPC).to(device),
            "windows": torch.from_numpy(cut.windows_V4).to(device),
        }

    def robots(self, folder: Path) -> Mapping[str, bool]:
        model = MolmoAct2Config.from_folder(folder)
        tags = NormStats.read(folder / model.norm_stats_filename).tags
        return {name: tag.state is not None for name, tag in tags.items()}

    def write_tiny(
        self, folder: Path, *, statistics: Mapping[str, Any] | None = None, seed: int = 0
    ) -> Path:
        from molmoact_train.families.molmoact2.tiny import write_tiny_checkpoint

        return write_tiny_checkpoint(folder, statistics=statistics, seed=seed)


def _of_ours(model: nn.Module) -> MolmoAct2:
    assert isinstance(model, MolmoAct2)
    return model


def _check_can_train(config: MolmoAct2Config, own: Settings, folder: Path) -> None:
    """What this checkpoint has no part for."""
    if own.action_mode != "discrete" and config.expert is None:
        raise UserError(f"{folder} has no action expert: only --action-mode discrete can train it.")
    if own.writes_actions and config.action_tokens is None:
        raise UserError(
            f"{folder} has no action tokens: only --action-mode continuous can train it."
        )
    if own.thinks and config.depth_tokens is None:
        raise UserError(f"{folder} has no depth tokens: it cannot be trained to think.")


FAMILY: Family = MolmoAct2Family()
