"""The causal decoder, in three arrangements: Qwen2.5 (norm before), OLMo-2 (norm after, q/k norm) and Qwen3
(norm before, q/k norm per head).

Legend: B batch, S sequence, L model width, H heads, G key/value heads, D head width.
Parameter names and the order of fused rows are those of the released checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache

from molmoact_train.families.molmoact.network.attention import RealTokens, attend
from molmoact_train.families.molmoact.network.config import MolmoActLlmConfig

KeysValues: TypeAlias = tuple[Tensor, Tensor]
"""What one layer attends to: keys after norm and rotation, values as projected, each [B, G, K, D]."""


@dataclass(frozen=True)
class Context:
    """What every block needs besides the hidden states: rotary angles, mask, cache."""

    cos_BSD: Tensor
    sin_BSD: Tensor
    """Rotary factors, fp32, broadcastable to [B, S, D]."""
    mask_B1SK: Tensor | None
    """True = may be seen; None = plain causal, or a single query that sees everything."""
    is_causal: bool
    cache: Cache | None
    tokens: RealTokens | None = None
    """Where the stream holds real tokens alone, [1, N, L]: how it becomes the rectangle that attention needs."""
    wanted_R: Tensor | None = None
    """Of the last block: the tokens whose answer anybody reads; of the others, keys and values alone are needed."""


class RMSNorm(nn.Module):
    """Statistics in fp32, cast back, then scaled."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            exact = x.float()
            exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * exact.to(x.dtype)


def rotary_factors(position_ids_BS: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency, fp32 [B, S, D], halves repeated (not interleaved)."""
    device = position_ids_BS.device
    with torch.autocast(device.type, enabled=False):
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        angles = position_ids_BS[..., None].float() * (1.0 / theta**exponents)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def rotate(x_BHSD: Tensor, cos_BSD: Tensor, sin_BSD: Tensor) -> Tensor:
    """Rotary positions applied in fp32, returned in the input's dtype."""
    low, high = x_BHSD.float().chunk(2, dim=-1)
    turned = torch.cat([-high, low], dim=-1)
    return (x_BHSD.float() * cos_BSD[:, None] + turned * sin_BSD[:, None]).to(x_BHSD.dtype)


class SelfAttention(nn.Module):
    def __init__(self, config: MolmoActLlmConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        self.widths = [
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        ]
        width = config.hidden_size
        self.att_proj = nn.Linear(width, sum(self.widths), bias=config.qkv_bias)
        self.attn_out = nn.Linear(self.widths[0], width, bias=False)
        self.use_qk_norm = config.use_qk_norm
        self.norm_per_head = config.qk_norm_type == "qwen3"
        if config.use_qk_norm:
            widths = [self.head_dim] * 2 if self.norm_per_head else self.widths
            self.q_norm = RMSNorm(widths[0], config.layer_norm_eps)
            self.k_norm = RMSNorm(widths[1], config.layer_norm_eps)

    def forward(self, x_BSL: Tensor, context: Context) -> tuple[Tensor, KeysValues]:
        """What is added to the stream, and the keys and values that were attended to."""
        projected = self.att_proj(x_BSL)
        if context.tokens is not None:
            projected = context.tokens.padded(projected)
        query, key, value = projected.split(self.widths, dim=-1)
        if self.use_qk_norm and not self.norm_per_head:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in (query, key, value)
        )
        if self.use_qk_norm and self.norm_per_head:
            query, key = self.q_norm(query), self.k_norm(key)
        query = rotate(query, context.cos_BSD, context.sin_BSD)
        key = rotate(key, context.cos_BSD, context.sin_BSD)
        if context.cache is not None:
            key, value = context.cache.update(key, value, self.layer)
        mixed = attend(
            query,
            key,
            value.to(query.dtype),
            mask_B1SK=context.mask_B1SK,
            is_causal=context.is_causal,
            dropout=self.dropout if self.training else 0.0,
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        if context.tokens is not None:
            mixed = context.tokens.flat(mixed)
        return self.attn_out(_wanted(mixed, context)), (key, value)


def _wanted(x_BSL: Tensor, context: Context) -> Tensor:
    return x_BSL if context.wanted_R is None else x_BSL[:, context.wanted_R]


class SiluGate(torch.autograd.Function):
    """[..., up ; gate] -> silu(gate) * up. Its gradient is written into one tensor, and only the input is kept."""

    @staticmethod
    def forward(ctx: Any, fused: Tensor) -> Tensor:  # type: ignore[override]
        up, gate = fused.chunk(2, dim=-1)
        ctx.save_for_backward(fused)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (fused,) = ctx.saved_tensors
        up, gate = fused.chunk(2, dim=-1)
        answer = torch.empty_like(fused)
        of_up, of_gate = answer.chunk(2, dim=-1)
        torch.mul(gradient, F.silu(gate), out=of_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=of_gate)
        return answer


class GatedMLP(nn.Module):
    """Fused rows are ordered [up ; gate]: the second half is the gate."""

    def __init__(self, config: MolmoActLlmConfig) -> None:
        super().__init__()
        self.ff_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.ff_out = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act = ACT2FN[config.hidden_act]
        self.is_silu = config.hidden_act == "silu"

    def forward(self, x_BSL: Tensor) -> Tensor:
        if self.is_silu:
            return self.ff_out(SiluGate.apply(self.ff_proj(x_BSL)))
        up, gate = self.ff_proj(x_BSL).chunk(2, dim=-1)
        return self.ff_out(self.act(gate) * up)


class Block(nn.Module):
    def __init__(self, config: MolmoActLlmConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, layer)
        self.mlp = GatedMLP(config)
        self.attn_norm = RMSNorm(config.hidden_size, config.layer_norm_eps)
        self.ff_norm = RMSNorm(config.hidden_size, config.layer_norm_eps)
        self.norm_after = config.norm_after
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x_BSL: Tensor, context: Context) -> tuple[Tensor, KeysValues]:
        if self.norm_after:
            mixed, keys_values = self.self_attn(x_BSL, context)
            x_BSL = _wanted(x_BSL, context) + self.dropout(self.attn_norm(mixed))
            return x_BSL + self.dropout(self.ff_norm(self.mlp(x_BSL))), keys_values
        mixed, keys_values = self.self_attn(self.attn_norm(x_BSL), context)
        x_BSL = _wanted(x_BSL, context) + self.dropout(mixed)
        return x_BSL + self.dropout(self.mlp(self.ff_norm(x_BSL))), keys_values


class TokenEmbedding(nn.Module):
    """Two tables read as one: ids from `vocab_size` on address `new_embedding` (the image tokens)."""

    def __init__(self, config: MolmoActLlmConfig) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(config.vocab_size, config.hidden_size))
        self.new_embedding = nn.Parameter(
            torch.zeros(config.additional_vocab_size, config.hidden_size)
        )

    def forward(self, input_ids_BS: Tensor) -> Tensor:
        """Rows [B, S, L]; id -1 (training padding) reads row 0."""
        ids = input_ids_BS.clamp(min=0)
        base = len(self.embedding)
        is_new = ids >= base
        # Two lookups instead of one over the concatenation: that would copy half a gigabyte per step.
        ordinary = F.embedding(ids.masked_fill(is_new, 0), self.embedding)
        added = F.embedding((ids - base).clamp(min=0), self.new_embedding)
        return torch.where(is_new.unsqueeze(-1), added, ordinary)


class LanguageModel(nn.Module):
    """Embedding, blocks and final norm; the LM head belongs to the class above."""

    def __init__(self, config: MolmoActLlmConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = TokenEmbedding(config)
        self.emb_drop = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self,
        embeddings_BSL: Tensor,
        position_ids_BS: Tensor,
        *,
        mask_B1SK: Tensor | None,
        is_causal: bool,
        cache: Cache | None = None,
        keys_values: list[KeysValues] | None = None,
        real_BS: Tensor | None = None,
        wanted_BS: Tensor | None = None,
    ) -> Tensor:
        """Normalised hidden states [B, S, L]; the layers' keys and values are appended to `keys_values`.

        With `real_BS` (no cache) padding costs nothing but its attention, and its hidden states are zeros. With
        `wanted_BS` too, the hidden states are those of the wanted tokens alone, [R, L].
        """
        cos, sin = rotary_factors(position_ids_BS, self.config.head_dim, self.config.rope_theta)
        context = Context(cos, sin, mask_B1SK, is_causal, cache)
        x_BSL = self.emb_drop(embeddings_BSL)
        tokens = None if real_BS is None else RealTokens.of(real_BS)
        if tokens is not None and (wanted_BS is not None or not tokens.are_all):
            x_BSL, context = tokens.flat(x_BSL), replace(context, tokens=tokens)
        for number, block in enumerate(self.blocks):
            if wanted_BS is not None and tokens is not None and number == len(self.blocks) - 1:
                context = replace(context, wanted_R=tokens.numbers(wanted_BS))
            x_BSL, of_layer = block(x_BSL, context)
            if keys_values is not None:
                keys_values.append(of_layer)
        x_BSL = self.ln_f(x_BSL)
        if context.wanted_R is not None:
            return x_BSL[0]
        return x_BSL if context.tokens is None else context.tokens.padded(x_BSL)
