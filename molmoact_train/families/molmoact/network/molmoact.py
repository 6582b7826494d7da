"""MolmoAct: image features added at the `<im_patch>` tokens of a causal decoder.

The parameter names are those of the released checkpoints, so `from_pretrained` reads them without remote
code and `save_pretrained` writes what the released code and vLLM read. The model does not know whether it is
sharded, checkpointed or compiled: that is applied to its blocks from outside.

Legend: B batch, S sequence, T crop slots, P patches per crop, C numbers per patch, M pooling windows,
R rows that carry loss, L model width, U distinct crops.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.utils import ModelOutput

from molmoact_train.families.molmoact.loss import (
    Z_LOSS_SCALE,
    TokenLoss,
    next_token_loss,
    token_loss,
)
from molmoact_train.families.molmoact.network.attention import (
    causal_mask,
    padding_is_on_the_right,
    positions_from_branches,
    positions_from_documents,
    positions_from_mask,
)
from molmoact_train.families.molmoact.network.config import MolmoActConfig
from molmoact_train.families.molmoact.network.crops import (
    CropBatch,
    distinct_crops,
    every_slot,
    slots_in_use,
)
from molmoact_train.families.molmoact.network.language import LanguageModel, RMSNorm, TokenEmbedding
from molmoact_train.families.molmoact.network.vision import VisionBackbone, VisionTransformer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Savings:
    """Same mathematics, less work. Every field off = the reference's plain path."""

    deduplicate_crops: bool = True
    """Encode equal crops once, padded crop slots never, and equal pooling windows once."""
    loss_rows_only: bool = True
    """With `targets`: logits only where the loss weight is not zero."""
    loss_chunk_rows: int | None = 1024
    """Rows of logits alive at a time; None = all of them."""


@dataclass
class MolmoActOutput(ModelOutput):
    """What `forward` returns; fields that were not asked for are None."""

    loss: Tensor | None = None
    """Scalar: the Hugging Face mean with `labels`, the training loss with `targets`."""
    logits: Tensor | None = None
    """[B, kept S, vocabulary]; None with `targets`, where only rows with loss are projected."""
    past_key_values: Cache | None = None
    token_loss: TokenLoss | None = None
    """With `targets`: the parts of the loss, per row too."""
    loss_rows: Tensor | None = None
    """With `targets`: index into B*S of the rows of `token_loss`, int64 [R]."""


class MolmoActPreTrainedModel(PreTrainedModel):
    config_class = MolmoActConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False  # applied from outside, see the module docstring
    _no_split_modules = ["Block", "VisionBlock"]  # noqa: RUF012
    _skip_keys_device_placement = "past_key_values"
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        """All initialisation in one place: N(0, 0.02) matrices, zero biases and padding terms, unit norms."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, TokenEmbedding):
            nn.init.normal_(module.embedding, std=std)
            nn.init.normal_(module.new_embedding, std=std)
        elif isinstance(module, VisionTransformer):
            nn.init.normal_(module.positional_embedding, std=std)
            if module.config.use_cls_token:
                nn.init.normal_(module.class_embedding, std=std)
        elif isinstance(module, VisionBackbone) and hasattr(module, "pad_embed"):
            nn.init.zeros_(module.pad_embed)


class MolmoActModel(MolmoActPreTrainedModel):
    """Everything below the LM head."""

    def __init__(self, config: MolmoActConfig) -> None:
        super().__init__(config)
        self.transformer = LanguageModel(config.llm_config)
        self.vision_backbone = VisionBackbone(
            config.vit_config,
            config.adapter_config,
            ignore_image_masks=config.ignore_image_masks,
        )
        self.savings = Savings()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.transformer.wte

    def image_features(
        self,
        images: Tensor,
        pooled_patches_idx: Tensor,
        image_masks: Tensor | None = None,
        crop_slots: Tensor | None = None,
    ) -> Tensor:
        """Visual vectors [V, L], see `VisionBackbone.forward`.

        `images` is [B, T, P, C] (-1 everywhere = no crop), or [U, P, C] with `crop_slots` [B, T] naming the
        row of each slot, which saves moving and comparing copies.
        """
        if crop_slots is not None:
            crops = CropBatch(images, crop_slots)
        elif self.savings.deduplicate_crops:
            used = slots_in_use(pooled_patches_idx, images.shape[1], images.shape[2])
            crops = distinct_crops(images, used)
        else:
            crops = every_slot(images)
        if image_masks is None and hasattr(self.vision_backbone, "pad_embed"):
            logger.warning("image_masks not given: the padding embedding is left out")
        return self.vision_backbone(
            crops, pooled_patches_idx, image_masks, deduplicate=self.savings.deduplicate_crops
        )

    def embed(self, input_ids_BS: Tensor, image_features_VL: Tensor | None) -> Tensor:
        """Token embeddings [B, S, L] with the visual vectors added, in order, at the `<im_patch>` ids."""
        embeddings = self.transformer.wte(input_ids_BS)
        if image_features_VL is None:
            return embeddings
        rows = (input_ids_BS.flatten() == self.config.image_patch_id).nonzero()[:, 0]
        if len(rows) != len(image_features_VL):
            raise ValueError(
                f"{len(rows)} <im_patch> tokens (id {self.config.image_patch_id}) but "
                f"{len(image_features_VL)} visual vectors: text and images are not of the same sample"
            )
        flat = embeddings.flatten(0, 1)
        return flat.index_add(0, rows, image_features_VL.to(flat.dtype)).view_as(embeddings)

    def forward(
        self,
        input_ids: Tensor,
        images: Tensor | None = None,
        pooled_patches_idx: Tensor | None = None,
        image_masks: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        crop_slots: Tensor | None = None,
        past_key_values: Cache | None = None,
        branch_ids: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, S, L] after the final norm."""
        features = None
        if images is not None:
            if pooled_patches_idx is None:
                raise ValueError("images need pooled_patches_idx, as the processor returns them")
            features = self.image_features(images, pooled_patches_idx, image_masks, crop_slots)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = _positions(input_ids, attention_mask, document_ids, branch_ids, past)
        mask, is_causal = _visibility(input_ids, attention_mask, document_ids, branch_ids, past)
        return self.transformer(
            self.embed(input_ids, features),
            position_ids,
            mask_B1SK=mask,
            is_causal=is_causal,
            cache=past_key_values,
        )


class MolmoActForActionReasoning(MolmoActPreTrainedModel, GenerationMixin):
    """The released class: `MolmoActModel` under `model.`, and the LM head."""

    def __init__(self, config: MolmoActConfig) -> None:
        super().__init__(config)
        self.model = MolmoActModel(config)
        llm = config.llm_config
        self.lm_head = nn.Linear(llm.hidden_size, llm.vocab_size, bias=False)
        self.post_init()

    @property
    def savings(self) -> Savings:
        """What work is saved; assign another `Savings` to switch parts off."""
        return self.model.savings

    @savings.setter
    def savings(self, value: Savings) -> None:
        self.model.savings = value

    def set_residual_dropout(self, probability: float) -> None:
        """Dropout on the attention and MLP branches of every decoder block (0.1 in robot training)."""
        for block in self.model.transformer.blocks:
            block.dropout.p = probability

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer.wte

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor,
        images: Tensor | None = None,
        pooled_patches_idx: Tensor | None = None,
        image_masks: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        branch_ids: Tensor | None = None,
        crop_slots: Tensor | None = None,
        targets: Tensor | None = None,
        loss_weights: Tensor | None = None,
        loss_divisor: Tensor | float | None = None,
        z_loss_scale: float = Z_LOSS_SCALE,
        with_accuracy: bool = False,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
    ) -> MolmoActOutput:
        """Logits, or one of two losses.

        input_ids int64 [B, S], -1 = padding; images float [B, T, P, C]; pooled_patches_idx int64 [B, M, 4];
        image_masks float [B, T, P]; attention_mask [B, S or past + S], 1 = real. Rows padded on the right need
        no mask at all: leave it out and the fast causal kernel is used.

        Packing: `document_ids` int [B, S], one id per sample in a row; tokens see their own document only and
        positions restart with it unless `position_ids` are given.

        Several annotations of one picture: `branch_ids` int [B, S], 0 = what all of them share, k > 0 = the k-th
        annotation, which sees what is shared and itself, and counts its positions on from what is shared.

        Loss: `labels` (Hugging Face: shifted inside, -100 ignored) or, in training, `targets` [B, S] (already
        the next token) with `loss_weights` [B, S] and `loss_divisor` (default: the sum of the weights).
        """
        del return_dict  # transformers' generation passes it; nothing depends on it
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        hidden_BSL = self.model(
            input_ids,
            images,
            pooled_patches_idx,
            image_masks,
            attention_mask,
            position_ids,
            document_ids,
            crop_slots,
            past_key_values,
            branch_ids,
        )
        if targets is not None:
            return self._training_output(
                hidden_BSL, targets, loss_weights, loss_divisor, z_loss_scale, with_accuracy
            )
        logits = self.lm_head(hidden_BSL[:, -logits_to_keep:])
        loss = None if labels is None else next_token_loss(logits, labels)
        return MolmoActOutput(loss=loss, logits=logits, past_key_values=past_key_values)

    def _training_output(
        self,
        hidden_BSL: Tensor,
        targets_BS: Tensor,
        weights_BS: Tensor | None,
        divisor: Tensor | float | None,
        z_loss_scale: float,
        with_accuracy: bool,  # noqa: FBT001
    ) -> MolmoActOutput:
        if weights_BS is None:
            raise ValueError("targets need loss_weights: which tokens carry loss is never guessed")
        weights = weights_BS.flatten()
        rows = torch.arange(len(weights), device=weights.device)
        # A target without loss may be an image token or padding, for which the LM head has no row.
        targets = targets_BS.flatten().masked_fill(weights == 0, 0)
        if self.savings.loss_rows_only:
            rows = weights.nonzero()[:, 0]
        parts = token_loss(
            hidden_BSL.flatten(0, 1)[rows],
            self.lm_head,
            targets[rows],
            weights[rows],
            divisor=weights.sum() if divisor is None else divisor,
            z_loss_scale=z_loss_scale,
            chunk_rows=self.savings.loss_chunk_rows,
            with_accuracy=with_accuracy,
        )
        return MolmoActOutput(loss=parts.loss, token_loss=parts, loss_rows=rows)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Images belong to the first step only; afterwards their tokens are in the cache."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        if inputs.pop("inputs_embeds", None) is not None:
            raise ValueError("generation starts from input_ids: images are placed by token id")
        cache = inputs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            for name in ("images", "pooled_patches_idx", "image_masks", "crop_slots"):
                inputs[name] = None
        return inputs


def _positions(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    branch_ids: Tensor | None,
    past: int,
) -> Tensor:
    """Position ids int64 [B, S] or [1, S]: from the branches, the documents, the mask, or simply counted."""
    if branch_ids is not None:
        return positions_from_branches(branch_ids)
    if document_ids is not None:
        return positions_from_documents(document_ids)
    if attention_mask is not None:
        return positions_from_mask(attention_mask)[:, -input_ids.shape[1] :]
    return torch.arange(past, past + input_ids.shape[1], device=input_ids.device)[None]


def _visibility(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    branch_ids: Tensor | None,
    past: int,
) -> tuple[Tensor | None, bool]:
    """The attention mask and whether the plain causal one will do; the cheapest that is right."""
    num_queries = input_ids.shape[1]
    if document_ids is not None or branch_ids is not None:
        if past:
            raise ValueError(
                "documents and branches are for training; a cache holds one text per row"
            )
        return causal_mask(
            num_queries,
            attention_mask_BK=attention_mask,
            document_ids_BK=document_ids,
            branch_ids_BK=branch_ids,
        ), False
    padded = attention_mask is not None and not bool(attention_mask.all())
    if not padded:
        if past == 0 or num_queries == 1:
            return None, past == 0
        ones = input_ids.new_ones(1, past + num_queries)
        return causal_mask(num_queries, attention_mask_BK=ones), False
    if past == 0 and padding_is_on_the_right(attention_mask):
        return None, True
    return causal_mask(num_queries, attention_mask_BK=attention_mask), False
