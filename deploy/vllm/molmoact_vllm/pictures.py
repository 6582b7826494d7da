"""The pictures of a request as vLLM carries them: all together are one item.

They cannot be items of their own: how finely a picture is cut depends on whether it is alone, each is announced by its
number, and a border window of the second picture reads the first (see `MolmoActImageProcessor.sample`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalInputs
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import (
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptInsertion,
    PromptUpdateDetails,
)
from vllm.multimodal.processing.dummy_inputs import BaseDummyInputsBuilder
from vllm.multimodal.processing.processor import PromptIndexTargets

from molmoact_train.families.molmoact.processor import MolmoActProcessor
from molmoact_vllm.answers import AnswerGrammar

MOST_PICTURES = 4
FIELDS = ("images", "pooled_patches_idx", "image_masks")
BLOCK = "image_block"
"""Token ids of all image blocks of a request."""


class Together(ImageProcessorItems):
    """One item that is all pictures of a request."""

    def get(self, index: int) -> Any:
        return [self._unwrap(picture) for picture in self.data[index]]

    def get_item_for_hash(self, index: int) -> Any:
        return self.get(index)


class Info(BaseProcessingInfo):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        AnswerGrammar.statistics_keys = tuple(self.get_hf_config().norm_stats)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": MOST_PICTURES}

    def get_hf_processor(self, **_: object) -> MolmoActProcessor:
        if not hasattr(self, "_processor"):
            self._processor = MolmoActProcessor.from_pretrained(self.model_id)
        return self._processor


class Largest(BaseDummyInputsBuilder[Info]):
    """What the memory is measured with: as many pictures as there may be, cut as finely as may be."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return "User: . Assistant:"

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]
    ) -> dict[str, Any]:
        if not mm_counts.get("image"):
            return {}
        side = 4 * max(self.info.get_hf_processor().image_processor.config.base_image_input_size)
        return {"image": [Image.new("RGB", (side, side)) for _ in range(MOST_PICTURES)]}


class Pictures(BaseMultiModalProcessor[Info]):
    """Our own processor does the work; vLLM puts the image blocks behind the first token."""

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> MultiModalInputs:
        images = inputs.mm_data_items.get("image")
        if images is not None and len(images) and not isinstance(images, Together):
            together = Together([list(images.get_all())])
            inputs = replace(
                inputs, mm_data_items=MultiModalDataItems({"image": together}), mm_uuid_items=None
            )
        return super().apply(inputs, *args, **kwargs)

    def _call_hf_processor(
        self,
        prompt: str,
        mm_data: Mapping[str, Any],
        mm_kwargs: Mapping[str, object],
        tok_kwargs: Mapping[str, object],
    ) -> BatchFeature:
        processor = self.info.get_hf_processor()
        ids = [processor.bos_id, *processor.encode(prompt)]
        if not mm_data.get("images"):
            return BatchFeature({"input_ids": torch.tensor([ids])})
        (pictures,) = mm_data["images"]
        sample = processor.image_processor.sample(pictures)
        return BatchFeature({
            "input_ids": torch.tensor([ids]),
            "images": torch.from_numpy(sample.crops_TPC)[None],
            "pooled_patches_idx": torch.from_numpy(sample.pooled_patches_idx_M4)[None],
            "image_masks": torch.from_numpy(sample.masks_TP)[None],
            BLOCK: torch.tensor([processor.image_block(sample)]),
        })  # fmt: skip

    def _apply_hf_processor_tokens_only(self, prompt_tokens: list[int]) -> list[int]:
        first = self.info.get_hf_processor().bos_id
        return prompt_tokens if prompt_tokens[:1] == [first] else [first, *prompt_tokens]

    def _hf_processor_applies_updates(self, *_: object, **__: object) -> bool:
        return False

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {name: MultiModalFieldConfig.batched("image") for name in (*FIELDS, BLOCK)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptInsertion]:
        processor = self.info.get_hf_processor()

        def block(item: int) -> PromptUpdateDetails:
            ids = out_mm_kwargs["image"][item][BLOCK].data.flatten().tolist()
            return PromptUpdateDetails.select_token_id(ids, processor.image_ids.patch)

        begin = PromptIndexTargets.prefix([processor.bos_id])
        return [PromptInsertion(modality="image", target=begin, insertion=block)]
