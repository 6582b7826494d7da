"""A Molmo checkpoint folder in the released layout, with tiny weights that say one point whatever they see.

The answer is a chain: every token of it makes the next one certain, and `:` (the end of the prompt) the first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from molmoact_train.families.molmo.config import network_config
from molmoact_train.families.molmo.folder import molmo_name
from molmoact_train.families.molmo.processor import MolmoProcessor, read_image_config
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning

SAID = " <point\tx='62'\ny=\"51\""
"""No token twice, in the byte tokenizer and in Qwen2's."""
POINT = (62.0, 51.0)
IMAGE_TOKENS = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>")
BASE_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VISION = {
    "image_emb_dim": 16, "image_mlp_dim": 16, "image_num_layers": 10, "image_num_heads": 2,
    "image_num_key_value_heads": 2, "image_head_dim": 8,
}  # fmt: skip
PREPROCESSOR = {
    "base_image_input_size": [336, 336], "do_normalize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_padding_mask": True, "image_patch_size": 14, "image_processor_type": "MolmoImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711], "image_token_length_h": 12, "image_token_length_w": 12,
    "max_crops": 12, "overlap_margins": [4, 4], "processor_class": "MolmoProcessor",
    "auto_map": {"AutoProcessor": "preprocessing_molmo.MolmoProcessor"},
}  # fmt: skip


def config_fields(vocab_size: int, *, olmo: bool = False) -> dict[str, Any]:
    """The fields of a released config.json, 7B-D's switches or 7B-O's, and the section of the tiny encoder."""
    return {
        "architectures": ["MolmoForCausalLM"], "model_type": "molmo", "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4 if olmo else 2,
        "vocab_size": vocab_size, "embedding_size": vocab_size, "layer_norm_eps": 1e-6, "layer_norm_type": "rms",
        "rope_theta": 1e6, "max_position_embeddings": 4096, "qkv_bias": not olmo, "norm_after": olmo,
        "attention_layer_norm": olmo, "clip_qkv": None, "tie_word_embeddings": False, "weight_tying": False,
        "use_position_ids": True, "vision_backbone": VISION,
        "auto_map": {"AutoModelForCausalLM": "modeling_molmo.MolmoForCausalLM"},
    }  # fmt: skip


def write_molmo(folder: Path, *, qwen2: Path | None = None, num_files: int = 1) -> Path:
    """The whole folder; `qwen2` = a folder with Qwen2's vocab.json and merges.txt, for the real vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = write_real_tokenizer(folder, qwen2) if qwen2 else write_byte_tokenizer(folder)
    fields = config_fields(vocab_size)
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    processor = MolmoProcessor.from_pretrained(folder)
    chain = [processor.encode(":")[-1], *processor.encode(SAID)]
    save_weights(folder, saying_network(fields, chain), num_files=num_files)
    assert read_image_config(folder).max_crops == 12
    return folder


def saying_network(fields: dict[str, Any], chain: Sequence[int]) -> MolmoActForActionReasoning:
    """A network with random weights but for the chain."""
    torch.manual_seed(0)
    model = MolmoActForActionReasoning(network_config(fields))
    say_chain(model, chain)
    return model


@torch.no_grad()
def say_chain(model: Any, chain: Sequence[int]) -> None:
    """Attention and MLP add nothing; each token of the chain has a direction, on which the next one's logit stands.

    `model` has the decoder of either family.
    """
    assert len(set(chain)) == len(chain), (
        f"{chain}: a token comes twice, so its successor is not certain"
    )
    assert len(chain) <= model.lm_head.weight.shape[1], "a direction for each token"
    for block in model.model.transformer.blocks:
        block.self_attn.attn_out.weight.zero_()
        block.mlp.ff_out.weight.zero_()
    model.model.transformer.wte.embedding.zero_()
    model.lm_head.weight.zero_()
    for place, (token, following) in enumerate(pairwise(chain)):
        model.model.transformer.wte.embedding[token, place] = 1.0
        model.lm_head.weight[following, place] = 3.0


def save_weights(folder: Path, model: MolmoActForActionReasoning, *, num_files: int = 1) -> None:
    """fp16, released names, with one image block that is stored and never run."""
    state = {molmo_name(n): p.detach().half() for n, p in model.named_parameters()}
    vit = "model.vision_backbone.image_vit.transformer.resblocks"
    state |= {
        n.replace(f"{vit}.8.", f"{vit}.9."): t.clone() for n, t in state.items() if f"{vit}.8." in n
    }
    names = sorted(state)
    if num_files == 1:
        save_file(state, folder / "model.safetensors")
        return
    weight_map = {}
    for number in range(num_files):
        file = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        part = {n: state[n] for n in names[number::num_files]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_byte_tokenizer(folder: Path) -> int:
    """256 bytes, two merges, the specials; returns the size of the embedding table (fillers up to 320)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("=", "'"), ("=", '"')]
    vocab = {s: i for i, s in enumerate([*alphabet, "='", '="'])}
    bare = Tokenizer(models.BPE(vocab, merges))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    missing = 320 - len(vocab) - len(BASE_SPECIALS)
    fillers = [f"|<EXTRA_TOKENS_{i}>|" for i in range(missing)]
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [*BASE_SPECIALS[1:], *fillers, *IMAGE_TOKENS]}
    )
    tokenizer.save_pretrained(folder)
    return 320


def write_real_tokenizer(folder: Path, qwen2: Path) -> int:
    """The vocabulary of Molmo-7B-D: Qwen2's entries, three specials, 418 fillers, five image tokens from 152064."""
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((qwen2 / name).read_bytes())
    fillers = [f"|<EXTRA_TOKENS_{i}>|" for i in range(418)]
    added = {151643 + i: token for i, token in enumerate([*BASE_SPECIALS, *fillers, *IMAGE_TOKENS])}
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    fields = {
        "added_tokens_decoder": {str(i): {"content": t, "special": True, **plain} for i, t in added.items()},
        "additional_special_tokens": list(added.values())[1:],
        "add_prefix_space": False, "bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
        "unk_token": None, "tokenizer_class": "Qwen2Tokenizer", "model_max_length": 32768,
        "processor_class": "MolmoProcessor", "auto_map": {"AutoProcessor": "preprocessing_molmo.MolmoProcessor"},
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    (folder / "added_tokens.json").write_text(json.dumps({t: i for i, t in added.items()}))
    return 152064
