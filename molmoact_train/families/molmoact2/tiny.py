"""A tiny random MolmoAct2 in the released layout: the `debug` stage and the tests start from it.

Everything a released folder has is there (configuration, safetensors, tokenizer, processor, statistics, and an action
tokenizer beside them); only the numbers are small. Nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn

from molmoact_data.files.folders import write_json
from molmoact_train.families.molmoact.network.language import RMSNorm
from molmoact_train.families.molmoact.tiny import SPLIT_PATTERN
from molmoact_train.families.molmoact2 import prompts, vocabulary
from molmoact_train.families.molmoact2.fast import FAST_FOLDER, FastTokenizer
from molmoact_train.families.molmoact2.images import PROCESSOR_FILE
from molmoact_train.families.molmoact2.network import MolmoAct2, MolmoAct2Config
from molmoact_train.families.molmoact2.network.depth_gate import DepthGate
from molmoact_train.families.molmoact2.network.folder import inverse_frequencies, released_tensors
from molmoact_train.families.molmoact2.statistics import NormStats

NUM_ACTION_TOKENS = 256
MULTIPLE = 128
_SIZE, _PATCH = 70, 14


def write_tiny_checkpoint(
    folder: Path,
    *,
    statistics: Mapping[str, Any] | None = None,
    seed: int = 0,
    depth: bool = True,
    horizon: int = 12,
) -> Path:
    """Write the folder; `statistics` is the content of norm_stats.json (default: no tag yet)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    embedding = vocabulary.extend(tokenizer, num_actions=NUM_ACTION_TOKENS, multiple=MULTIPLE)
    fields = _config(tokenizer, embedding, depth=depth, horizon=horizon)
    config = MolmoAct2Config.from_json(fields)
    model = random_model(config, seed)
    tensors = {name: tensor.contiguous() for name, tensor in released_tensors(model)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", fields)
    write_json(
        folder / "generation_config.json",
        {k: fields[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    tokenizer.save(str(folder / vocabulary.TOKENIZER_FILE))
    write_json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG)
    write_json(folder / PROCESSOR_FILE, _processor_fields())
    stats = statistics or NormStats("q01_q99", {}).to_json()
    (folder / config.norm_stats_filename).write_text(json.dumps(stats))
    _fast().save(folder / FAST_FOLDER)
    return folder


@torch.no_grad()
def random_model(config: MolmoAct2Config, seed: int) -> MolmoAct2:
    """The network with fresh weights: N(0, 0.02) matrices, unit norms, the expert as published."""
    with torch.device("meta"):
        model = MolmoAct2(config)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    for module in model.modules():
        if isinstance(module, (RMSNorm, nn.LayerNorm)):
            nn.init.ones_(module.weight)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(module.bias)
    model.model.transformer.rotary_emb.inv_freq.copy_(inverse_frequencies(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.expert is not None:
            model.expert.initialise()
        for module in model.modules():
            if isinstance(module, DepthGate):
                module.initialise()
    return model


def _tokenizer() -> Tokenizer:
    """Byte-level BPE with Qwen's splitter, trained on a few prompts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [
        prompts.prompt(
            style, task, setup="single arm", control="pose", state_bins=None, num_images=2
        )
        for style in prompts.STYLES
        for task in ("move the square", "close the drawer", "put the bowl on the plate")
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=456,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.add_special_tokens([prompts.PADDING, prompts.TURN_START, prompts.TURN_END])
    return tokenizer


def _fast() -> FastTokenizer:
    """Fitted on smooth chunks in [-1, 1]."""
    rng = np.random.default_rng(0)
    chunks = [rng.normal(size=(8, 7)).cumsum(axis=0).clip(-1, 1) for _ in range(200)]
    extremes = [np.ones((12, 7)), -np.ones((12, 7)), np.sign(rng.normal(size=(12, 7)))]
    return FastTokenizer.fit([*chunks, *extremes], num_ids=NUM_ACTION_TOKENS)


def _config(tokenizer: Tokenizer, embedding: int, *, depth: bool, horizon: int) -> dict[str, Any]:
    def token(text: str) -> int:
        return vocabulary.id_of(tokenizer, text)

    end = token(prompts.TURN_END)
    numbered: dict[str, Any] = {}
    for kind, count in (
        ("state", prompts.NUM_STATES),
        ("action", NUM_ACTION_TOKENS),
        ("depth", prompts.NUM_DEPTHS),
    ):
        numbered |= {
            f"{kind}_start_token_id": token(f"<{kind}_start>"),
            f"{kind}_end_token_id": token(f"<{kind}_end>"),
            f"{kind}_token_start_id": token(f"<{kind}_0>"),
            f"num_{kind}_tokens": count,
        }
    patch = token(vocabulary.IM_PATCH)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2,
              "head_dim": 16, "initializer_range": 0.02, "attention_dropout": 0.0, "residual_dropout": 0.0,
              "float32_attention": True, "attn_implementation": "sdpa", "model_type": "molmoact2"}  # fmt: skip
    return {
        "model_type": "molmoact2",
        "architectures": ["MolmoAct2ForConditionalGeneration"],
        "vit_config": {
            **vision, "num_hidden_layers": 4, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
            "image_default_input_size": [_SIZE, _SIZE], "image_patch_size": _PATCH,
            "image_num_pos": (_SIZE // _PATCH) ** 2,
        },
        "adapter_config": {
            **vision, "vit_layers": [-1, -3], "pooling_attention_mask": True, "hidden_act": "silu",
            "text_hidden_size": 48, "image_feature_dropout": 0.0,
        },
        "text_config": {
            "model_type": "molmoact2_text", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64, "hidden_act": "silu",
            "vocab_size": embedding, "additional_vocab_size": 16, "qkv_bias": False, "use_qk_norm": True,
            "qk_norm_type": "qwen3", "layer_norm_eps": 1e-6, "norm_after": False, "tie_word_embeddings": False,
            "rope_theta": 1e6, "rope_scaling": None, "rope_scaling_layers": None, "max_position_embeddings": 4096,
            "attention_dropout": 0.0, "embedding_dropout": 0.0, "residual_dropout": 0.0,
            "initializer_range": 0.02, "use_cache": True, "attn_implementation": "sdpa",
        },
        "action_expert_config": {
            "model_type": "molmoact2_action_expert", "hidden_size": 48, "num_layers": 2, "num_heads": 3,
            "mlp_ratio": 8 / 3, "ffn_multiple_of": 16, "timestep_embed_dim": 32, "dropout": 0.0,
            "attn_dropout": 0.0, "context_layer_norm": True, "qk_norm": True, "qk_norm_eps": 1e-6, "rope": True,
            "causal_attn": False,
        },
        **numbered,
        "action_output_token_id": token(prompts.ACTION_OUTPUT),
        "depth_output_token_id": token(prompts.DEPTH_OUTPUT),
        "image_patch_id": patch, "image_high_res_id": patch,
        "image_col_id": token(vocabulary.IM_COL), "image_start_token_id": token(vocabulary.IM_START),
        "image_end_token_id": token(vocabulary.IM_END), "image_low_res_id": token("<im_low>"),
        "low_res_image_start_token_id": token(vocabulary.LOW_RES_START),
        "frame_start_token_id": token("<frame_start>"), "frame_end_token_id": token("<frame_end>"),
        "use_frame_special_tokens": True,
        "bos_token_id": end, "eos_token_id": end, "pad_token_id": token(prompts.PADDING),
        "add_action_expert": True, "action_mode": "both", "state_format": "discrete",
        "max_action_dim": 32, "max_action_horizon": horizon, "n_obs_steps": 1, "mask_action_dim_padding": True,
        "flow_matching_num_steps": 10, "flow_matching_cutoff": 1.0, "flow_matching_time_offset": 0.001,
        "flow_matching_time_scale": 0.999, "flow_matching_beta_alpha": 1.0, "flow_matching_beta_beta": 1.5,
        "enable_depth_reasoning": depth, "num_depth_codes": 100, "depth_mode": 2,
        "action_expert_depth_gate": False, "action_expert_depth_gate_per_layer": False,
        "action_expert_depth_gate_init_bias": -4.0,
        "add_setup_tokens": True, "add_control_tokens": True, "norm_stats_filename": "norm_stats.json",
        "initializer_range": 0.02, "dtype": "float32",
    }  # fmt: skip


def _processor_fields() -> dict[str, Any]:
    size = {"height": _SIZE, "width": _SIZE}
    common = {"size": size, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_convert_rgb": True,
              "patch_size": _PATCH}  # fmt: skip
    return {
        "processor_class": "MolmoAct2Processor",
        "image_processor": {
            **common, "max_crops": 8, "overlap_margins": [1, 1], "crop_mode": "resize", "pooling_size": [2, 2],
            "image_processor_type": "MolmoAct2ImageProcessor",
        },
        "video_processor": {
            **common, "pooling_size": [3, 3], "frame_sample_mode": "uniform_last_frame", "num_frames": 8, "max_fps": 2,
            "sampling_fps": 2, "video_processor_type": "MolmoAct2VideoProcessor",
        },
        "image_use_col_tokens": True,
        "use_single_crop_col_tokens": False,
        "use_single_crop_start_token": True,
        "video_use_col_tokens": False,
        "use_frame_special_tokens": True,
    }  # fmt: skip


_TOKENIZER_CONFIG = {
    "tokenizer_class": "Qwen2Tokenizer",
    "bos_token": prompts.TURN_END,
    "eos_token": prompts.TURN_END,
    "pad_token": prompts.PADDING,
    "padding_side": "left",
    "unk_token": None,
    "add_prefix_space": None,
    "model_max_length": 1000000000000000019884624838656,
}
