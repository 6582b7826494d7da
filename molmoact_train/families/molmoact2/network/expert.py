"""The action expert: one transformer block per decoder layer, attending to that layer's keys and values.

Legend: B rows of context, N noisy chunks per row (examples x flow timesteps), T action steps, A action dimensions,
S context tokens, D expert width, H heads, E width of the decoder's keys and values. RMS = RMSNorm without weight.
Chunks of one row share its context, which is projected once and never copied: in cross attention the N x T steps are
so many queries. Parameter names are those of the released checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from molmoact_train.families.molmoact.network.attention import attend
from molmoact_train.families.molmoact.network.language import rotary_factors, rotate
from molmoact_train.families.molmoact2.network.config import ActionExpertConfig

ROTARY_BASE = 10_000.0
MAX_PERIOD = 10_000.0
NORM_EPS = 1e-6


@dataclass(frozen=True)
class ExpertContext:
    """What the expert sees of an observation, projected once: per layer keys and values, each [B, H, S, D/H]."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    mask_B1QS: Tensor | None
    """True = may be seen; Q is 1 or N x T. None = everything."""


def rms(x: Tensor, eps: float = NORM_EPS) -> Tensor:
    """RMSNorm without weight over the last dimension, statistics in fp32."""
    with torch.autocast(x.device.type, enabled=False):
        exact = x.float()
        return (exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def sinusoid(times: Tensor, width: int) -> Tensor:
    """[...] in 0..1 -> [..., width]: sines then cosines of t x 10000^(-j/(half-1)), fp32; an odd width ends in 0."""
    half = width // 2
    j = torch.arange(half, dtype=torch.float32, device=times.device)
    frequencies = torch.exp(-math.log(MAX_PERIOD) * j / max(half - 1, 1))
    angles = times.float()[..., None] * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width - 2 * half))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """The unweighted norm of x, scaled and shifted."""
    return rms(x) * (1 + scale) + shift


class Modulation(nn.Module):
    """Time conditioning -> `count` vectors of the width of the stream."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, count * width)
        self.count = count

    def forward(self, condition_BND: Tensor) -> tuple[Tensor, ...]:
        """Each [B, N, 1, D]."""
        return self.linear(F.silu(condition_BND))[:, :, None].chunk(self.count, dim=-1)


class ExpertSelfAttention(nn.Module):
    """Over the T steps of one chunk, with rotary positions 0..T-1."""

    def __init__(self, config: ActionExpertConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BNTD: Tensor, mask_BN_11T: Tensor | None) -> Tensor:
        config = self.config
        query, key, value = (
            part.flatten(0, 1).unflatten(-1, (config.num_heads, -1)).transpose(1, 2)
            for part in self.qkv(x_BNTD).chunk(3, dim=-1)
        )
        if config.qk_norm:
            query, key = rms(query, config.qk_norm_eps), rms(key, config.qk_norm_eps)
        if config.rope:
            places = torch.arange(query.shape[2], device=query.device)[None]
            cos, sin = rotary_factors(places, config.head_dim, ROTARY_BASE)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        mixed = attend(
            query,
            key,
            value.to(query.dtype),
            mask_B1SK=_with_causal(mask_BN_11T, query) if config.causal_attn else mask_BN_11T,
            dropout=config.attn_dropout if self.training else 0.0,
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2).view_as(x_BNTD))


def _with_causal(mask: Tensor | None, query: Tensor) -> Tensor:
    steps = query.shape[2]
    causal = torch.ones(steps, steps, dtype=torch.bool, device=query.device).tril()[None, None]
    return causal if mask is None else causal & mask


class ExpertCrossAttention(nn.Module):
    """Over the context; keys and values come projected."""

    def __init__(self, config: ActionExpertConfig) -> None:
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x_BNTD: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, mask_B1QS: Tensor | None
    ) -> Tensor:
        config = self.config
        query = self.q_proj(x_BNTD).flatten(1, 2)
        query = query.unflatten(-1, (config.num_heads, -1)).transpose(1, 2)
        if config.qk_norm:
            query = rms(query, config.qk_norm_eps)
        mixed = attend(
            query,
            key_BHSD.to(query.dtype),
            value_BHSD.to(query.dtype),
            mask_B1SK=mask_B1QS,
            dropout=config.attn_dropout if self.training else 0.0,
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2).view_as(x_BNTD))


class ExpertMLP(nn.Module):
    def __init__(self, config: ActionExpertConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class ExpertBlock(nn.Module):
    def __init__(self, config: ActionExpertConfig) -> None:
        super().__init__()
        self.self_attn = ExpertSelfAttention(config)
        self.cross_attn = ExpertCrossAttention(config)
        self.mlp = ExpertMLP(config)
        self.modulation = Modulation(config.hidden_size, 9)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        h_BNTD: Tensor,
        condition_BND: Tensor,
        key_BHSD: Tensor,
        value_BHSD: Tensor,
        context_mask_B1QS: Tensor | None,
        step_mask_BN_11T: Tensor | None,
    ) -> Tensor:
        s1, g1, a1, s2, g2, a2, s3, g3, a3 = self.modulation(condition_BND)
        mixed = self.self_attn(modulate(h_BNTD, s1, g1), step_mask_BN_11T)
        h_BNTD = h_BNTD + a1 * self.dropout(mixed)
        seen = self.cross_attn(modulate(h_BNTD, s2, g2), key_BHSD, value_BHSD, context_mask_B1QS)
        h_BNTD = h_BNTD + a2 * self.dropout(seen)
        return h_BNTD + a3 * self.dropout(self.mlp(modulate(h_BNTD, s3, g3)))


class FinalLayer(nn.Module):
    def __init__(self, width: int, action_dim: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, 2)
        self.linear = nn.Linear(width, action_dim)

    def forward(self, h_BNTD: Tensor, condition_BND: Tensor) -> Tensor:
        shift, scale = self.modulation(condition_BND)
        return self.linear(modulate(h_BNTD, shift, scale))


class ActionExpert(nn.Module):
    """Noisy actions and a time -> the velocity towards the data, given the decoder's keys and values."""

    def __init__(self, config: ActionExpertConfig, context_width: int, action_dim: int) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.time_embed = nn.Sequential(
            nn.Identity(),  # the sinusoid, which has no parameters; keeps the released numbers 1 and 3
            nn.Linear(config.timestep_embed_dim, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )
        self.action_embed = nn.Linear(action_dim, width)
        self.context_k_proj = nn.Linear(context_width, width, bias=False)
        self.context_v_proj = nn.Linear(context_width, width, bias=False)
        self.blocks = nn.ModuleList(ExpertBlock(config) for _ in range(config.num_layers))
        self.final_layer = FinalLayer(width, action_dim)

    def context(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], mask_B1QS: Tensor | None
    ) -> ExpertContext:
        """Project the decoder's keys and values, each [B, S, E] per layer, in one product for all layers."""
        key_LBSE, value_LBSE = torch.stack(tuple(keys)), torch.stack(tuple(values))
        key = self.context_k_proj(key_LBSE.to(self.context_k_proj.weight.dtype))
        value = self.context_v_proj(value_LBSE.to(self.context_v_proj.weight.dtype))
        if self.config.context_layer_norm:
            key, value = rms(key), rms(value)
        key, value = (
            part.unflatten(-1, (self.config.num_heads, -1)).transpose(2, 3) for part in (key, value)
        )
        if self.config.qk_norm:
            key = rms(key, self.config.qk_norm_eps)
        return ExpertContext(key.unbind(), value.unbind(), mask_B1QS)

    def condition(self, times: Tensor) -> Tensor:
        """[B, N] in 0..1 -> [B, N, D]."""
        wave = sinusoid(times, self.config.timestep_embed_dim)
        return self.time_embed(wave.to(self.action_embed.weight.dtype))

    def forward(
        self,
        noisy_BNTA: Tensor,
        condition_BND: Tensor,
        context: ExpertContext,
        steps_BNT: Tensor | None = None,
    ) -> Tensor:
        """Velocity [B, N, T, A]; `steps_BNT` False = a padded step, which nothing sees and whose answer is 0."""
        h_BNTD = self.action_embed(noisy_BNTA.to(self.action_embed.weight.dtype))
        step_mask, real = None, None
        if steps_BNT is not None:
            step_mask = steps_BNT.flatten(0, 1)[:, None, None]
            real = steps_BNT.unsqueeze(-1).to(h_BNTD.dtype)
            h_BNTD = h_BNTD * real
        for block, key, value in zip(self.blocks, context.keys, context.values, strict=True):
            h_BNTD = block(h_BNTD, condition_BND, key, value, context.mask_B1QS, step_mask)
            if real is not None:
                h_BNTD = h_BNTD * real
        velocity = self.final_layer(h_BNTD, condition_BND)
        return velocity if real is None else velocity * real.to(velocity.dtype)

    @torch.no_grad()
    def initialise(self) -> None:
        """A fresh expert: Xavier matrices, residual outputs x (2L)^-1/2, modulations and answer zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        shrink = (2 * self.config.num_layers) ** -0.5
        for block in self.blocks:
            for out in (block.self_attn.out_proj, block.cross_attn.out_proj, block.mlp.down_proj):
                out.weight.mul_(shrink)
            nn.init.zeros_(block.modulation.linear.weight)
        nn.init.zeros_(self.final_layer.modulation.linear.weight)
        nn.init.zeros_(self.final_layer.linear.weight)
