"""`config.json` of a released Molmo -> the configuration of our network.

The file describes the decoder alone; the image encoder (CLIP ViT-L/14 at 336 px, its blocks 21 and 14 read) and the
connector are fixed in the checkpoint's code, so they are stated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molmoact_data.errors import UserError
from molmoact_data.files.inputs import is_git_lfs_pointer
from molmoact_data.files.typed import read_typed
from molmoact_train.families.fields import Size, check_fields
from molmoact_train.families.molmoact.network.config import (
    MolmoActAdapterConfig,
    MolmoActConfig,
    MolmoActLlmConfig,
    MolmoActVitConfig,
)

CONFIG = "config.json"
ADDED_TOKENS = 128
"""Rows of the second embedding table; the five image tokens are its first."""
PATCH_PLACE = 2
"""`<im_patch>` is the third image token: `<im_start>`, `<im_end>`, `<im_patch>`, `<im_col>`, `<|image|>`."""
CLIP_L_336 = {
    "image_emb_dim": 1024, "image_mlp_dim": 4096, "image_num_layers": 23, "image_num_heads": 16,
    "image_num_key_value_heads": 16, "image_head_dim": 64,
}  # fmt: skip
"""The image encoder; a section `vision_backbone` of the file overrides it (small models of tests)."""
_MUST_BE: Mapping[str, tuple[Any, ...]] = {
    "clip_qkv": (None,),
    "layer_norm_type": ("rms",),
    "weight_tying": (False, None),
    "tie_word_embeddings": (False, None),
    "moe_num_experts": (0, None),
}
_NEEDED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "layer_norm_eps",
    "layer_norm_type", "rope_theta", "qkv_bias", "norm_after", "attention_layer_norm",
)  # fmt: skip


_COUNTED = ("num_attention_heads", "hidden_size", "intermediate_size", "vocab_size")


def read_config(folder: Path) -> MolmoActConfig:
    """The configuration of a checkpoint folder. Raises `UserError` for what is no Molmo or cannot run here."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} is no checkpoint: it has no {CONFIG}.")
    fields = read_json(path)
    kind = fields.get("model_type")
    if kind != "molmo":
        raise UserError(
            f"{path} describes a model of type {kind!r}, not 'molmo': give Molmo-7B-D-0924, Molmo-7B-O-0924 or "
            "Molmo-72B-0924."
        )
    missing = [name for name in _NEEDED if name not in fields]
    if missing:
        raise UserError(f"{path} does not say {', '.join(missing)}; download it again.")
    for name, allowed in _MUST_BE.items():
        if fields.get(name) not in allowed:
            raise UserError(
                f"{path}: {name} is {fields.get(name)!r}; the network here runs with {allowed[0]!r} only (7B-D, 7B-O, "
                "72B)."
            )
    try:
        return network_config(fields)
    except ValueError as error:
        raise UserError(f"{path}: {error}; download it again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """One of the checkpoint's small files. Raises `UserError` for what is no JSON object."""
    if is_git_lfs_pointer(path):
        raise UserError(f"{path} is a Git LFS pointer; run `git lfs pull` in that folder.")
    return read_typed(dict[str, Any], path, "Download it again.")


def network_config(fields: Mapping[str, Any]) -> MolmoActConfig:
    """The fields of the file as our network's configuration; `intermediate_size` counts both fused halves."""
    check_fields(fields, dict.fromkeys(_COUNTED, Size))
    heads, width = fields["num_attention_heads"], fields["hidden_size"]
    if width % heads:
        raise ValueError(f"a width of {width} is not {heads} heads of equal size")
    table_rows = fields.get("embedding_size") or fields["vocab_size"]
    llm = MolmoActLlmConfig(
        hidden_size=width,
        num_hidden_layers=fields["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=fields.get("num_key_value_heads") or heads,
        head_dim=width // heads,
        vocab_size=table_rows,
        additional_vocab_size=ADDED_TOKENS,
        intermediate_size=fields["intermediate_size"] // 2,
        layer_norm_eps=fields["layer_norm_eps"],
        rope_theta=fields["rope_theta"],
        max_position_embeddings=fields.get("max_position_embeddings") or 4096,
        qkv_bias=fields["qkv_bias"],
        use_qk_norm=fields["attention_layer_norm"],
        norm_after=fields["norm_after"],
    )
    own = fields.get("vision_backbone", {})
    check_fields({"vision_backbone": own}, {"vision_backbone": dict[str, Size]})
    vit = CLIP_L_336 | own
    return MolmoActConfig(
        _vit(vit), _adapter(vit, llm), llm, image_patch_id=table_rows + PATCH_PLACE
    )


def _vit(vit: Mapping[str, int]) -> MolmoActVitConfig:
    return MolmoActVitConfig(
        hidden_size=vit["image_emb_dim"],
        intermediate_size=vit["image_mlp_dim"],
        num_hidden_layers=vit["image_num_layers"],
        num_attention_heads=vit["image_num_heads"],
        num_key_value_heads=vit["image_num_key_value_heads"],
        head_dim=vit["image_head_dim"],
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        image_default_input_size=(336, 336),
        image_num_pos=577,
        use_cls_token=True,
        patch_bias=False,
        pre_layernorm=True,
    )


def _adapter(vit: Mapping[str, int], llm: MolmoActLlmConfig) -> MolmoActAdapterConfig:
    return MolmoActAdapterConfig(
        vit_layers=(-2, -9),
        hidden_size=vit["image_emb_dim"],
        num_attention_heads=vit["image_num_heads"],
        num_key_value_heads=vit["image_num_key_value_heads"],
        head_dim=vit["image_head_dim"],
        intermediate_size=llm.intermediate_size,
        text_hidden_size=llm.hidden_size,
        image_padding_embed="pad_and_partial_pad",
    )
