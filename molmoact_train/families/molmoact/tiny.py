"""Tiny random checkpoints in the released layout: the `debug` preset, the demo and the tests start from them.

Everything a 7B checkpoint has is there (config, safetensors, tokenizer, image processor), so that no code path
knows the difference; only the numbers are small. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from molmoact_data.text import prompts, tokens
from molmoact_train.families.molmoact.image_config import ImageProcessorConfig
from molmoact_train.families.molmoact.images import MolmoActImageProcessor
from molmoact_train.families.molmoact.network import (
    MolmoActAdapterConfig,
    MolmoActConfig,
    MolmoActForActionReasoning,
    MolmoActLlmConfig,
    MolmoActVitConfig,
)
from molmoact_train.families.molmoact.processor import MolmoActProcessor
from molmoact_train.families.molmoact.vocabulary import extend_vocabulary

END_OF_TEXT = "<|endoftext|>"
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts text before merging: digits stand alone, a space goes with the word after it."""


@dataclass(frozen=True)
class TinySize:
    """How small. The defaults train a step in tens of milliseconds on one CPU core."""

    width: int = 64
    """Of the decoder; its heads are 16 wide."""
    layers: int = 2
    """Decoder blocks."""
    vit_width: int = 32
    vit_layers: int = 2
    image_size: int = 84
    """Pixels of a crop's side, a multiple of 14; an image is one overview and one tile."""
    vocabulary: int = 1024
    """Rows of the embedding: text, 130 depth tokens and fillers."""


def tiny_config(
    size: TinySize | None = None,
    *,
    variant: Literal["D", "O"] = "D",
    norm_stats: Mapping[str, Any] | None = None,
) -> MolmoActConfig:
    """The released architecture of either variant at `size`."""
    size = size or TinySize()
    is_d = variant == "D"
    grid = size.image_size // 14
    heads = size.vit_width // 8
    vit = MolmoActVitConfig(
        hidden_size=size.vit_width, intermediate_size=2 * size.vit_width,
        num_hidden_layers=size.vit_layers, num_attention_heads=heads, num_key_value_heads=heads,
        head_dim=8, image_default_input_size=(size.image_size, size.image_size),
        hidden_act="gelu_pytorch_tanh" if is_d else "quick_gelu",
        layer_norm_eps=1e-6 if is_d else 1e-5, image_num_pos=grid * grid + (not is_d),
        use_cls_token=not is_d, patch_bias=is_d, pre_layernorm=not is_d,
    )  # fmt: skip
    adapter = MolmoActAdapterConfig(
        vit_layers=(-1, -2), hidden_size=size.vit_width, num_attention_heads=heads,
        num_key_value_heads=heads, head_dim=8, intermediate_size=2 * size.width,
        text_hidden_size=size.width, image_padding_embed=None if is_d else "pad_and_partial_pad",
    )  # fmt: skip
    llm_heads = size.width // 16
    llm = MolmoActLlmConfig(
        hidden_size=size.width, num_hidden_layers=size.layers, num_attention_heads=llm_heads,
        num_key_value_heads=max(1, llm_heads // 2) if is_d else llm_heads, head_dim=16,
        vocab_size=size.vocabulary, intermediate_size=2 * size.width,
        rope_theta=1e6 if is_d else 5e5, qkv_bias=is_d, use_qk_norm=not is_d, norm_after=not is_d,
    )  # fmt: skip
    return MolmoActConfig(
        vit, adapter, llm,
        image_patch_id=size.vocabulary + tokens.image_tokens().index(tokens.IM_PATCH),
        norm_stats=dict(norm_stats or {}),
    )  # fmt: skip


def tiny_tokenizer(vocabulary: int = 1024) -> PreTrainedTokenizerBase:
    """A byte-level BPE trained on our own prompts; depth and image tokens at the places of the real one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - tokens.NUM_DEPTH_TOKENS - 2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
    extend_vocabulary(fast, vocabulary)
    return fast


def tiny_processor(
    size: TinySize | None = None, *, variant: Literal["D", "O"] = "D"
) -> MolmoActProcessor:
    size = size or TinySize()
    images = ImageProcessorConfig(
        resize_mode="siglip" if variant == "D" else "default",
        normalize_mode="siglip" if variant == "D" else "openai",
        max_crops=1,
        max_multi_image_crops=1,
        overlap_margins=(1, 1),
        base_image_input_size=(size.image_size, size.image_size),
    )
    return MolmoActProcessor(tiny_tokenizer(size.vocabulary), MolmoActImageProcessor(images))


def write_tiny_checkpoint(
    folder: str | Path,
    size: TinySize | None = None,
    *,
    variant: Literal["D", "O"] = "D",
    norm_stats: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """A folder that `from_pretrained` of the model and of the processor take; the same seed, the same weights."""
    folder = Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MolmoActForActionReasoning(
            tiny_config(size, variant=variant, norm_stats=norm_stats)
        )
    model.save_pretrained(folder)
    tiny_processor(size, variant=variant).save_pretrained(folder)
    return folder


def _corpus() -> Iterator[str]:
    """Questions and answers of every kind, each action string equally often."""
    rng = np.random.default_rng(0)
    bins = np.concatenate([rng.permutation(256) + 1 for _ in range(8)]).reshape(-1, 8, 8)
    for number, chunk in enumerate(bins):
        trace = rng.integers(0, 256, (5, 2)).tolist()
        for num_images in (1, 2):
            yield prompts.question("pick up the red cube", "reasoning", num_images)
            yield prompts.question("push the blue block to the left", "trajectory", num_images)
            yield prompts.format_trace(trace)
            kind: prompts.SampleKind = "reasoning" if number % 2 else "trajectory"
            text = prompts.answer(
                kind,
                depth_codes=[0],
                trace=[trace],
                action_bins=chunk.tolist(),
                num_images=num_images,
            )
            yield text.replace(tokens.encode_depth([0]), "")
