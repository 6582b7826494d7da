"""MolmoAct2: image features added at the `<im_patch>` tokens of a causal decoder, and an action expert over it.

`VisionLanguageModel` alone is Molmo2 (vision tower, masked attention pooling, Qwen3 decoder): it is built from the
sections of a configuration, knows nothing of robots, and with an LM head on top it is the whole pointing model.

Legend: B batch, S new tokens, K all tokens so far, U distinct crops, P patches per crop, C numbers per patch,
V visual tokens, L model width, E width of keys and values, R rows that carry loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from molmoact_train.families.molmoact.loss import Z_LOSS_SCALE, TokenLoss, token_loss
from molmoact_train.families.molmoact.network.config import (
    MolmoActAdapterConfig,
    MolmoActLlmConfig,
    MolmoActVitConfig,
)
from molmoact_train.families.molmoact.network.language import KeysValues, LanguageModel
from molmoact_train.families.molmoact.network.vision import VisionBackbone
from molmoact_train.families.molmoact2.network.cache import KeyValueCache, flat
from molmoact_train.families.molmoact2.network.config import ImageAttention, MolmoAct2Config
from molmoact_train.families.molmoact2.network.depth_gate import DepthGate, gate_depth
from molmoact_train.families.molmoact2.network.expert import ActionExpert, ExpertContext
from molmoact_train.families.molmoact2.network.flow import ActionChunks, flow_loss
from molmoact_train.families.molmoact2.network.layout import DocumentRows
from molmoact_train.families.molmoact2.network.visibility import (
    decoder_mask,
    expert_visible,
    is_one_of,
    positions,
)


@dataclass(frozen=True)
class Encoded:
    """What the decoder made of a batch."""

    hidden_BSL: Tensor
    """After the final norm; [R, L] where only the wanted tokens were asked for."""
    keys: list[Tensor]
    """Per layer, rotated, [B, K, E]."""
    values: list[Tensor]
    """Per layer, [B, K, E]."""


@dataclass(frozen=True)
class Losses:
    """The parts of a training step; what was not asked for is None."""

    text: TokenLoss | None
    flow_BE: Tensor | None
    """Flow loss per action chunk."""
    loss: Tensor
    """Scalar: cross-entropy + z-loss + flow, each over its own divisor."""
    logits: Tensor | None = None
    """[B, S, V], where no loss was asked for."""
    text_weights: Tensor | None = None
    """Loss weight of each row of `text`, [R]."""


class RotaryFrequencies(nn.Module):
    """What released files hold beside weights: numbers that follow from `rope_theta`, checked and written back.

    Nothing reads them: positions are rotated with frequencies computed in full precision.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.inv_freq = nn.Parameter(torch.zeros(head_dim // 2), requires_grad=False)


class VisionLanguageModel(nn.Module):
    """Vision tower, connector and decoder, without an LM head."""

    def __init__(
        self,
        vit: MolmoActVitConfig,
        adapter: MolmoActAdapterConfig,
        llm: MolmoActLlmConfig,
        *,
        image_patch_id: int,
        image_token_ids: tuple[int, ...],
        image_attention: ImageAttention,
    ) -> None:
        super().__init__()
        self.image_patch_id = image_patch_id
        self.image_token_ids = image_token_ids
        self.image_attention = image_attention
        self.transformer = LanguageModel(llm)
        self.transformer.rotary_emb = RotaryFrequencies(llm.head_dim)
        self.vision_backbone = VisionBackbone(vit, adapter)

    def image_features(self, pixels_UPC: Tensor, windows_V4: Tensor) -> Tensor:
        """Visual vectors [V, L]; pixels are uint8 levels, windows rows of all U*P patches (-1 = absent)."""
        if pixels_UPC.dtype != torch.uint8:
            raise ValueError(f"pixels are uint8 levels 0..255, got {pixels_UPC.dtype}")
        crops = pixels_UPC.float() / 255 * 2 - 1
        return self.vision_backbone.pool_windows(crops, windows_V4)

    def embed(self, input_ids_BS: Tensor, features_VL: Tensor | None) -> Tensor:
        """Token embeddings [B, S, L] with the visual vectors added, in order, at the `<im_patch>` ids."""
        embeddings = self.transformer.wte(input_ids_BS)
        if features_VL is None:
            return embeddings
        rows = (input_ids_BS.flatten() == self.image_patch_id).nonzero()[:, 0]
        if len(rows) != len(features_VL):
            raise ValueError(
                f"{len(rows)} <im_patch> tokens (id {self.image_patch_id}) but {len(features_VL)} visual vectors: "
                "text and images are not of the same sample"
            )
        flat_embeddings = embeddings.flatten(0, 1)
        added = flat_embeddings.index_add(0, rows, features_VL.to(flat_embeddings.dtype))
        return added.view_as(embeddings)

    def forward(
        self,
        input_ids_BS: Tensor,
        pixels_UPC: Tensor | None = None,
        windows_V4: Tensor | None = None,
        *,
        real_BK: Tensor | None = None,
        documents_BS: Tensor | None = None,
        position_ids_BS: Tensor | None = None,
        cache: KeyValueCache | None = None,
        wanted_BS: Tensor | None = None,
    ) -> Encoded:
        """One pass over new tokens; with a cache they follow what it holds.

        `real_BK` marks the tokens that are no padding (default: ids that are not negative), past ones included.
        `wanted_BS` (without a cache): whose hidden states are needed; all others are spared the end of the network.
        """
        past = cache.length if cache is not None else 0
        if real_BK is None:
            if past:
                raise ValueError("with a filled cache, real_BK must say which past tokens are real")
            real_BK = input_ids_BS >= 0
        features = None
        if pixels_UPC is not None and windows_V4 is not None:
            features = self.image_features(pixels_UPC, windows_V4)
        image_BK = None
        if self.image_attention == "bidirectional" and features is not None:
            image_BK = is_one_of(input_ids_BS, self.image_token_ids)
            if past:
                raise ValueError("images belong to the first pass")
        num_queries = input_ids_BS.shape[1]
        if position_ids_BS is None:
            position_ids_BS = positions(real_BK, num_queries, documents_BS)
        mask, is_causal = decoder_mask(
            real_BK, num_queries, image_BK=image_BK, documents_BK=documents_BS
        )
        keys_values: list[KeysValues] = []
        hidden = self.transformer(
            self.embed(input_ids_BS, features),
            position_ids_BS,
            mask_B1SK=mask,
            is_causal=is_causal,
            cache=cache,
            keys_values=keys_values,
            real_BS=real_BK if cache is None else None,
            wanted_BS=wanted_BS,
        )
        return Encoded(hidden, [flat(k) for k, _ in keys_values], [flat(v) for _, v in keys_values])


class MolmoAct2(nn.Module):
    """The released class: everything under `model.`, and the LM head. Without an expert it is the VLM alone."""

    def __init__(self, config: MolmoAct2Config) -> None:
        super().__init__()
        self.config = config
        llm = config.llm
        self.model = VisionLanguageModel(
            config.vit,
            config.adapter,
            llm,
            image_patch_id=config.image_patch_id,
            image_token_ids=config.image_token_ids,
            image_attention=config.image_attention,
        )
        self.lm_head = nn.Linear(llm.hidden_size, llm.vocab_size, bias=False)
        width = llm.num_key_value_heads * llm.head_dim
        if config.expert is not None:
            self.model.action_expert = ActionExpert(config.expert, width, config.max_action_dim)
        if config.depth_gate:
            bias = config.depth_gate_init_bias
            gates = [DepthGate(width, bias) for _ in range(llm.num_hidden_layers)]
            self.model.action_expert_depth_gate = (
                nn.ModuleList(gates) if config.depth_gate_per_layer else gates[0]
            )

    @property
    def expert(self) -> ActionExpert:
        """The action expert; `ValueError` where the checkpoint has none."""
        if self.config.expert is None:
            raise ValueError("this checkpoint has no action expert")
        return self.model.action_expert

    def visible(
        self, input_ids_BS: Tensor, real_BS: Tensor, documents_BS: Tensor | None = None
    ) -> Tensor:
        """What the expert may read, bool [B, S]."""
        return expert_visible(
            input_ids_BS,
            real_BS,
            hide_answer=self.config.action_mode == "both",
            eos_id=self.config.eos_id,
            action_tokens=self.config.action_tokens,
            documents_BS=documents_BS,
        )

    def expert_context(
        self,
        encoded: Encoded,
        input_ids_BK: Tensor,
        visible_BK: Tensor,
        mask_B1QK: Tensor | None = None,
        *,
        documents_BK: Tensor | None = None,
        insulated: bool = False,
    ) -> ExpertContext:
        """The decoder's keys and values as the expert reads them; `insulated` stops the gradient here.

        `mask_B1QK` replaces `visible_BK` as the mask (packed rows); the depth gate always reads `visible_BK`.
        """
        keys, values = encoded.keys, encoded.values
        if insulated:
            keys, values = [k.detach() for k in keys], [v.detach() for v in values]
        if self.config.depth_gate:
            depth = self._is_depth(input_ids_BK)
            gates = self.model.action_expert_depth_gate
            keys, values = gate_depth(gates, keys, values, visible_BK, depth, documents_BK)
        mask = visible_BK[:, None, None] if mask_B1QK is None else mask_B1QK
        return self.expert.context(keys, values, mask)

    def _is_depth(self, input_ids: Tensor) -> Tensor:
        depth = self.config.depth_tokens
        if depth is None:
            return torch.zeros_like(input_ids, dtype=torch.bool)
        found = (input_ids >= depth.first) & (input_ids < depth.first + depth.count)
        markers = tuple(i for i in (depth.start, depth.end, depth.output) if i is not None)
        return found | is_one_of(input_ids, markers)

    def forward(
        self,
        input_ids: Tensor,
        pixels: Tensor | None = None,
        windows: Tensor | None = None,
        *,
        real: Tensor | None = None,
        documents: Tensor | None = None,
        position_ids: Tensor | None = None,
        targets: Tensor | None = None,
        loss_weights: Tensor | None = None,
        loss_divisor: Tensor | float | None = None,
        z_loss_scale: float = Z_LOSS_SCALE,
        loss_chunk_rows: int | None = 1024,
        with_accuracy: bool = False,
        chunks: ActionChunks | None = None,
        chunk_divisor: Tensor | float | None = None,
        insulated: bool = False,
    ) -> Losses:
        """The training losses: text (with `targets` [B, S] and `loss_weights`), flow (with `chunks`), or both.

        One decoder pass serves both. Divisors default to those of this batch; training gives those of the
        global one.
        """
        if documents is not None and position_ids is None and real is None:
            rows = DocumentRows.of(documents, chunks)
            if rows.saves_attention:
                input_ids, documents = rows.of_tokens(input_ids, -1), None
                targets = None if targets is None else rows.of_tokens(targets, 0)
                loss_weights = None if loss_weights is None else rows.of_tokens(loss_weights, 0)
                chunks = None if chunks is None else rows.of_chunks(chunks)
        real = input_ids >= 0 if real is None else real
        wanted = None
        if targets is not None and loss_weights is not None:
            wanted = loss_weights != 0
        elif chunks is not None:
            wanted = torch.zeros_like(real)
        encoded = self.model(
            input_ids,
            pixels,
            windows,
            real_BK=real,
            documents_BS=documents,
            position_ids_BS=position_ids,
            wanted_BS=wanted,
        )
        if targets is None and chunks is None:
            logits = self.lm_head(encoded.hidden_BSL)
            return Losses(text=None, flow_BE=None, loss=logits.new_zeros(()), logits=logits)
        parts: list[Tensor] = []
        text, text_weights, flow = None, None, None
        if targets is not None:
            if loss_weights is None:
                raise ValueError(
                    "targets need loss_weights: which tokens carry loss is never guessed"
                )
            weights = loss_weights.flatten()
            text_rows = weights.nonzero()[:, 0]
            text_weights = weights[text_rows]
            text = token_loss(
                encoded.hidden_BSL,
                self.lm_head,
                targets.flatten()[text_rows],
                text_weights,
                divisor=weights.sum().clamp(min=1e-12) if loss_divisor is None else loss_divisor,
                z_loss_scale=z_loss_scale,
                chunk_rows=loss_chunk_rows,
                with_accuracy=with_accuracy,
            )
            parts.append(text.loss)
        if chunks is not None:
            visible = self.visible(input_ids, real, documents)
            mask = _chunk_mask(visible, documents, chunks)
            context = self.expert_context(
                encoded, input_ids, visible, mask, documents_BK=documents, insulated=insulated
            )
            flow = flow_loss(self.expert, context, chunks)
            divisor = (
                chunks.exists_BE.sum().clamp(min=1) if chunk_divisor is None else chunk_divisor
            )
            parts.append(flow.sum() / divisor)
        return Losses(
            text=text, flow_BE=flow, loss=torch.stack(parts).sum(), text_weights=text_weights
        )


def _chunk_mask(visible_BS: Tensor, documents_BS: Tensor | None, chunks: ActionChunks) -> Tensor:
    """bool [B, 1, 1 or E*F*T, S]: each chunk reads its own document; a place without a chunk reads anything."""
    if documents_BS is None or chunks.documents_BE is None:
        return visible_BS[:, None, None]
    own_BES = chunks.documents_BE[:, :, None] == documents_BS[:, None]
    seen_BES = (visible_BS[:, None] & own_BES) | ~chunks.exists_BE[..., None]
    repeats = chunks.times_BEF.shape[2] * chunks.actions_BETA.shape[2]
    return seen_BES.repeat_interleave(repeats, dim=1)[:, None]
