"""A Molmo2 checkpoint folder in the released layout, with tiny weights that say one track whatever they see.

The answer is a chain: every token of it makes the next one certain, and the line's end behind `assistant` the first.
A piece of the track is a token of its own, so that no token comes twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from made_molmo import say_chain, write_byte_tokenizer
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer

from molmoact_train.families.molmo2.network import Molmo2, Molmo2Config

IMAGE_TOKENS = (
    "<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>", "<im_low>",
    "<frame_start>", "<frame_end>", "<|video|>",
)  # fmt: skip
VOCABULARY = 400
WIDTH = 64
NORMALISED = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 14,
              "resample": 2, "size": {"height": 378, "width": 378}}  # fmt: skip
PROCESSOR = {
    "image_processor": {**NORMALISED, "max_crops": 8, "overlap_margins": [4, 4], "pooling_size": [2, 2]},
    "video_processor": {**NORMALISED, "pooling_size": [3, 3], "max_fps": 2, "num_frames": 64},
    "image_use_col_tokens": True, "use_single_crop_col_tokens": None, "use_single_crop_start_token": True,
    "use_frame_special_tokens": False, "video_use_col_tokens": False, "processor_class": "Molmo2Processor",
}  # fmt: skip


def write_molmo2(folder: Path, said: Sequence[str]) -> Path:
    """The whole folder; `said` = the pieces of the answer, each of them another one."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = write_tokenizer(folder, said)
    fields = config_fields(ids)
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "processor_config.json").write_text(json.dumps(PROCESSOR))
    save_weights(folder, [ids["\n"], *(ids[piece] for piece in said), ids["<|im_end|>"]])
    return folder


def write_tokenizer(folder: Path, said: Sequence[str]) -> dict[str, int]:
    """256 bytes, the pieces, Qwen's specials, fillers up to the end of the first table, then the image tokens."""
    write_byte_tokenizer(folder)
    small = json.loads((folder / "tokenizer.json").read_text())
    small["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(small))
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens(specials)
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in said])
    missing = VOCABULARY - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"|<EXTRA_TOKENS_{i}>|" for i in range(missing)])
    tokenizer.add_special_tokens(list(IMAGE_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = [*specials, *said, *IMAGE_TOKENS]
    return {"\n": tokenizer.encode("\n").ids[0], **{n: tokenizer.token_to_id(n) for n in names}}


def config_fields(ids: dict[str, int]) -> dict[str, Any]:
    """The fields of a released config.json."""
    names = {
        "image_start_token_id": "<im_start>", "image_end_token_id": "<im_end>", "image_patch_id": "<im_patch>",
        "image_col_id": "<im_col>", "low_res_image_start_token_id": "<low_res_im_start>",
        "image_low_res_id": "<im_low>", "frame_start_token_id": "<frame_start>", "frame_end_token_id": "<frame_end>",
        "bos_token_id": "<|im_end|>", "eos_token_id": "<|im_end|>", "pad_token_id": "<|endoftext|>",
    }  # fmt: skip
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    return {
        "model_type": "molmo2", "architectures": ["Molmo2ForConditionalGeneration"],
        "auto_map": {"AutoModelForImageTextToText": "modeling_molmo2.Molmo2ForConditionalGeneration"},
        **{key: ids[token] for key, token in names.items()}, "use_frame_special_tokens": False,
        "vit_config": {
            **heads, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 10,
            "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "image_default_input_size": [378, 378],
            "image_patch_size": 14, "image_num_pos": 729,
        },
        "adapter_config": {
            **heads, "vit_layers": [-3, -9], "pooling_attention_mask": True, "hidden_size": 16, "hidden_act": "silu",
            "intermediate_size": 16, "text_hidden_size": WIDTH,
        },
        "text_config": {
            "hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "vocab_size": VOCABULARY, "additional_vocab_size": 128, "qkv_bias": False, "num_hidden_layers": 2,
            "intermediate_size": 32, "hidden_act": "silu", "max_position_embeddings": 4096, "rope_theta": 5e6,
            "use_qk_norm": True, "qk_norm_type": "qwen3", "layer_norm_eps": 1e-6, "norm_after": False,
        },
    }  # fmt: skip


def save_weights(folder: Path, chain: Sequence[int]) -> None:
    """Random, but for the chain."""
    torch.manual_seed(0)
    model = Molmo2(Molmo2Config.from_folder(folder))
    say_chain(model, chain)
    state = {name: p.detach().half() for name, p in model.named_parameters()}
    save_file(state, folder / "model.safetensors")
