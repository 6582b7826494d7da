"""Floating-point operations of one forward pass, from shapes alone (a multiply-add counts as two).

Training costs three times as much (the backward pass does each product twice), or four times with full activation
checkpointing; with LoRA the frozen weights' gradients fall away. Norms, activations, softmax and rotary positions are
left out: they move memory, not the count.
"""

from __future__ import annotations

from dataclasses import dataclass

from molmoact_train.families.molmoact.network import MolmoActConfig


@dataclass(frozen=True)
class Work:
    """What one sample asks of the network; means over samples too."""

    crops: float
    """Crops that are encoded."""
    windows: float
    """2x2 windows that are pooled and projected."""
    tokens: float
    """Positions of the decoder."""
    logit_rows: float
    """Positions that reach the LM head."""


@dataclass(frozen=True)
class ForwardFlops:
    """By part of the network."""

    vit: float
    connector: float
    decoder: float
    head: float

    @property
    def total(self) -> float:
        return self.vit + self.connector + self.decoder + self.head


def forward_flops(config: MolmoActConfig, work: Work) -> ForwardFlops:
    """Operations of one forward pass. Causal attention is counted at half of its square."""
    return ForwardFlops(
        vit=work.crops * _vit_crop(config),
        connector=work.windows * _connector_window(config),
        decoder=_decoder(config, work.tokens),
        head=2.0 * work.logit_rows * config.llm_config.hidden_size * config.llm_config.vocab_size,
    )


def _vit_crop(config: MolmoActConfig) -> float:
    vit, layers = config.vit_config, config.adapter_config.vit_layers
    blocks = max(i if i >= 0 else vit.num_hidden_layers + i for i in layers) + 1
    rows, columns = vit.grid_hw
    patches = rows * columns
    tokens = patches + vit.use_cls_token
    width, inner = vit.hidden_size, vit.num_attention_heads * vit.head_dim
    linear = 4 * width * inner + 2 * width * vit.intermediate_size
    block = 2 * tokens * linear + 4 * tokens * tokens * inner
    return blocks * block + 2.0 * patches * 3 * vit.image_patch_size**2 * width


def _connector_window(config: MolmoActConfig) -> float:
    adapter = config.adapter_config
    width_in = config.vit_config.hidden_size * len(adapter.vit_layers)
    inner = adapter.num_attention_heads * adapter.head_dim
    pooling = width_in * inner * (1 + 4 + 4) + inner * adapter.hidden_size + 2 * 4 * inner
    projector = adapter.intermediate_size * (2 * adapter.hidden_size + adapter.text_hidden_size)
    return 2.0 * (pooling + projector)


def _decoder(config: MolmoActConfig, tokens: float) -> float:
    llm = config.llm_config
    inner = llm.num_attention_heads * llm.head_dim
    fused = inner + 2 * llm.num_key_value_heads * llm.head_dim
    linear = llm.hidden_size * (fused + inner + 3 * llm.intermediate_size)
    attention = 4.0 * inner * tokens * tokens / 2
    return llm.num_hidden_layers * (2.0 * tokens * linear + attention)
