"""MolmoAct for vLLM: our own image encoder before vLLM's decoder of the same family."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.molmo2 import Molmo2TextModel
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from molmoact_train.families.molmoact.network.crops import distinct_crops, slots_in_use
from molmoact_train.families.molmoact.network.vision import VisionBackbone
from molmoact_vllm.pictures import FIELDS, Info, Largest, Pictures

TABLES = ("model.transformer.wte.embedding", "model.transformer.wte.new_embedding")
"""Two embedding tables that vLLM holds as one, in this order."""


@MULTIMODAL_REGISTRY.register_processor(Pictures, info=Info, dummy_inputs=Largest)
class MolmoActForActionReasoning(nn.Module, SupportsMultiModal):
    """Reads a released folder, or one of ours. Every tensor is used, and every parameter filled, or loading fails."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_substr={
            "att_proj": "qkv_proj",
            "attn_out": "o_proj",
            "ff_proj": "up_gate_proj",
            "ff_out": "down_proj",
            "attn_norm": "input_layernorm",
            "ff_norm": "post_attention_layernorm",
        },
        orig_to_new_prefix={
            "model.vision_backbone.": "vision_backbone.",
            "model.transformer.blocks.": "model.layers.",
            "model.transformer.ln_f.": "model.norm.",
        },
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Nothing is written into the text: the image blocks follow the first token."""
        return None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = self.config = vllm_config.model_config.hf_config
        with self._mark_tower_model(vllm_config, "image"):
            self.vision_backbone = VisionBackbone(
                config.vit_config,
                config.adapter_config,
                ignore_image_masks=config.ignore_image_masks,
            )
        with self._mark_language_model(vllm_config):
            self.model = Molmo2TextModel(
                vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model")
            )
        llm = config.llm_config
        self.lm_head = ParallelLMHead(llm.vocab_size, llm.hidden_size)
        self.logits_processor = LogitsProcessor(llm.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Per request the vectors at its `<im_patch>` tokens: the features *added* to the token's own embedding.

        vLLM replaces what stands there, so the sum is made here.
        """
        if kwargs.get(FIELDS[0]) is None:
            return []
        return [
            self._vectors(*item) for item in zip(*(kwargs[name] for name in FIELDS), strict=True)
        ]

    def _vectors(self, images_TPC: Tensor, windows_M4: Tensor, masks_TP: Tensor) -> Tensor:
        images, windows, masks = images_TPC[None], windows_M4[None], masks_TP[None]
        crops = distinct_crops(images, slots_in_use(windows, images.shape[1], images.shape[2]))
        features_VL = self.vision_backbone(crops, windows, masks)
        patch = torch.tensor([self.config.image_patch_id], device=features_VL.device)
        embedding_1L = self.model.embed_input_ids(patch)
        return features_VL.to(embedding_1L.dtype) + embedding_1L

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(
            _one_table(weights), mapper=self.hf_to_vllm_mapper
        )


def _one_table(weights: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    tables: dict[str, Tensor] = {}
    for name, weight in weights:
        if name in TABLES:
            tables[name] = weight
        else:
            yield name, weight
    if missing := set(TABLES) - set(tables):
        raise ValueError(f"the checkpoint has no {', '.join(sorted(missing))}")
    yield "model.embed_tokens.weight", torch.cat([tables[name] for name in TABLES])
