"""From crops to the vectors that are added at the `<im_patch>` tokens.

Legend: U distinct crops, P patches per crop, C = patch * patch * 3 (channel fastest), V visual tokens,
W ViT width, L LLM width. Parameter names are those of the released checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from molmoact_train.families.molmoact.network.attention import attend, full_precision
from molmoact_train.families.molmoact.network.config import (
    MolmoActAdapterConfig,
    MolmoActVitConfig,
)
from molmoact_train.families.molmoact.network.crops import CropBatch


class VisionAttention(nn.Module):
    """Multi-head attention with separate q, k, v, o, all with bias; `width_in` may exceed the width."""

    def __init__(
        self, config: MolmoActVitConfig | MolmoActAdapterConfig, width_in: int | None = None
    ) -> None:
        super().__init__()
        width_in = width_in or config.hidden_size
        self.head_dim = config.head_dim
        self.float32_attention = config.float32_attention
        self.attention_dropout = config.attention_dropout
        width_q = config.num_attention_heads * config.head_dim
        width_kv = config.num_key_value_heads * config.head_dim
        self.wq = nn.Linear(width_in, width_q)
        self.wk = nn.Linear(width_in, width_kv)
        self.wv = nn.Linear(width_in, width_kv)
        self.wo = nn.Linear(width_q, config.hidden_size)

    def forward(
        self, inputs_kv: Tensor, inputs_q: Tensor | None = None, mask_B1SK: Tensor | None = None
    ) -> Tensor:
        inputs_q = inputs_kv if inputs_q is None else inputs_q
        query, key, value = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, x in ((self.wq, inputs_q), (self.wk, inputs_kv), (self.wv, inputs_kv))
        )
        if self.float32_attention:
            query, key, value = full_precision(query, key, value)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = attend(query, key, value, mask_B1SK=mask_B1SK, dropout=dropout)
        return self.wo(mixed.transpose(1, 2).flatten(2).to(inputs_q.dtype))


class VisionMLP(nn.Module):
    def __init__(self, config: MolmoActVitConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.act(self.w1(x)))


class VisionBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: MolmoActVitConfig) -> None:
        super().__init__()
        self.attention = VisionAttention(config)
        self.feed_forward = VisionMLP(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))


class VisionBlocks(nn.Module):
    def __init__(self, config: MolmoActVitConfig, num_blocks: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(VisionBlock(config) for _ in range(num_blocks))

    def forward(self, x: Tensor, tapped: list[int]) -> list[Tensor]:
        """The outputs of the tapped blocks, in the order asked for."""
        outputs: dict[int, Tensor] = {}
        for i, block in enumerate(self.resblocks):
            x = block(x)
            if i in tapped:
                outputs[i] = x
        return [outputs[i] for i in tapped]


class VisionTransformer(nn.Module):
    """SigLIP2 or CLIP image encoder up to its deepest tapped block; there is no final norm."""

    def __init__(self, config: MolmoActVitConfig, num_blocks: int) -> None:
        super().__init__()
        self.config = config
        pixels = config.image_patch_size**2 * 3
        self.patch_embedding = nn.Linear(pixels, config.hidden_size, bias=config.patch_bias)
        self.positional_embedding = nn.Parameter(
            torch.zeros(config.image_num_pos, config.hidden_size)
        )
        if config.use_cls_token:
            self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        if config.pre_layernorm:
            self.pre_ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.transformer = VisionBlocks(config, num_blocks)

    def forward(self, crops_UPC: Tensor, tapped: list[int]) -> list[Tensor]:
        """Tapped hidden states, each [U, P, W], the class token dropped."""
        x = self.patch_embedding(crops_UPC.to(self.patch_embedding.weight.dtype))
        if self.config.use_cls_token:
            cls = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
            x = torch.cat([cls, x], dim=1)
        x = x + self._positions().to(x.dtype)
        if self.config.pre_layernorm:
            x = self.pre_ln(x)
        skip = int(self.config.use_cls_token)
        return [hidden[:, skip:] for hidden in self.transformer(x, tapped)]

    def _positions(self) -> Tensor:
        """Stored positions, resampled where the crop's patch grid is not the stored square one."""
        skip = int(self.config.use_cls_token)
        stored = self.positional_embedding
        side = int((stored.shape[0] - skip) ** 0.5)
        if (side, side) == self.config.grid_hw:
            return stored
        grid = stored[skip:].view(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(
            grid, size=self.config.grid_hw, mode="bicubic", align_corners=False, antialias=True
        )
        return torch.cat([stored[:skip], grid.flatten(2)[0].T])


class Projector(nn.Module):
    """SwiGLU from pooling width to LLM width, no biases."""

    def __init__(self, config: MolmoActAdapterConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.text_hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.act(self.w1(x)) * self.w3(x))


class VisionBackbone(nn.Module):
    """Image encoder and connector."""

    def __init__(
        self,
        vit: MolmoActVitConfig,
        adapter: MolmoActAdapterConfig,
        *,
        ignore_image_masks: bool = False,
    ) -> None:
        super().__init__()
        self.ignore_image_masks = ignore_image_masks
        self.masked_pooling = adapter.pooling_attention_mask
        # A negative layer counts from the declared number of layers, not from the instantiated one.
        self.tapped = [i if i >= 0 else vit.num_hidden_layers + i for i in adapter.vit_layers]
        width = vit.hidden_size * len(self.tapped)
        self.image_vit = VisionTransformer(vit, num_blocks=max(self.tapped) + 1)
        self.image_pooling_2d = VisionAttention(adapter, width_in=width)
        self.image_projector = Projector(adapter)
        self.feature_dropout = nn.Dropout(adapter.image_feature_dropout)
        if adapter.image_padding_embed not in (None, "pad_and_partial_pad"):
            raise ValueError(f"unknown image_padding_embed {adapter.image_padding_embed!r}")
        if adapter.image_padding_embed:
            self.pad_embed = nn.Parameter(torch.zeros(2, width))

    def encode(self, crops_UPC: Tensor) -> Tensor:
        """Concatenated hidden states of the tapped blocks, [U, P, 2W]."""
        return torch.cat(self.image_vit(crops_UPC, self.tapped), dim=-1)

    def forward(
        self,
        crops: CropBatch,
        pooled_patches_idx_BM4: Tensor,
        image_masks_BTP: Tensor | None = None,
        *,
        deduplicate: bool = True,
    ) -> Tensor:
        """Visual vectors [V, L] for the rows of `pooled_patches_idx` that name a patch, in order.

        The index counts patches over the T crop slots of its row; -1 = no patch there. With
        `deduplicate`, windows made of the same patches are pooled and projected once.
        """
        windows_V4, masks_V4 = _resolve(crops, pooled_patches_idx_BM4, image_masks_BTP)
        return self.pool_windows(crops.crops_UPC, windows_V4, masks_V4, deduplicate=deduplicate)

    def pool_windows(
        self,
        crops_UPC: Tensor,
        windows_V4: Tensor,
        masks_V4: Tensor | None = None,
        *,
        deduplicate: bool = True,
    ) -> Tensor:
        """Visual vectors [V, L] of windows given as rows of all U*P patches; -1 = no patch there."""
        copies_V = None
        if deduplicate and masks_V4 is None:
            windows_V4, copies_V = torch.unique(windows_V4, dim=0, return_inverse=True)
        patches = self.feature_dropout(self.encode(crops_UPC)).flatten(0, 1)
        present_V4 = windows_V4 >= 0
        gathered_V4W = patches[windows_V4.clamp(min=0)]
        if masks_V4 is not None and self._uses_masks:
            gathered_V4W = gathered_V4W + self._padding_term(masks_V4).to(gathered_V4W.dtype)
        gathered_V4W = gathered_V4W * present_V4.unsqueeze(-1).to(gathered_V4W.dtype)
        query_V1W, mask_V114 = self._pooling_query(gathered_V4W, present_V4)
        pooled_VW = self.image_pooling_2d(gathered_V4W, query_V1W, mask_V114)[:, 0]
        visual_VL = self.image_projector(pooled_VW)
        return visual_VL if copies_V is None else visual_VL[copies_V]

    def _pooling_query(
        self, gathered_V4W: Tensor, present_V4: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The mean patch of each window [V, 1, W] and what it may attend to.

        MolmoAct averages over four slots, absent ones being zeros; MolmoAct2 over the patches that are there.
        """
        if not self.masked_pooling:
            return gathered_V4W.mean(dim=1, keepdim=True), None
        count_V11 = present_V4.sum(dim=1).clamp(min=1)[:, None, None]
        mean_V1W = gathered_V4W.sum(dim=1, keepdim=True) / count_V11.to(gathered_V4W.dtype)
        return mean_V1W, present_V4[:, None, None]

    @property
    def _uses_masks(self) -> bool:
        return hasattr(self, "pad_embed") and not self.ignore_image_masks

    def _padding_term(self, masks_V4: Tensor) -> Tensor:
        """What is added to a patch that is all (mask 0) or partly (0 < mask < 1) letterbox padding."""
        whole = (masks_V4 == 0).unsqueeze(-1) * self.pad_embed[0]
        part = ((masks_V4 > 0) & (masks_V4 < 1)).unsqueeze(-1) * self.pad_embed[1]
        return whole + part


def _resolve(
    crops: CropBatch, index_BM4: Tensor, image_masks_BTP: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Windows as rows of all encoded patches [V, 4] (-1 = none), and the mask value of each patch."""
    num_patches = crops.crops_UPC.shape[1]
    used_BM = (index_BM4 >= 0).any(dim=-1)
    rows_V, _ = used_BM.nonzero(as_tuple=True)
    index_V4 = index_BM4[used_BM].long()
    safe_V4 = index_V4.clamp(min=0)
    slots_V4 = crops.slot_BT[rows_V[:, None], safe_V4 // num_patches]
    absent_V4 = (index_V4 < 0) | (slots_V4 < 0)
    windows_V4 = (slots_V4 * num_patches + safe_V4 % num_patches).masked_fill(absent_V4, -1)
    if image_masks_BTP is None:
        return windows_V4, None
    return windows_V4, image_masks_BTP.flatten(1)[rows_V[:, None], safe_V4]
