"""MolmoAct2 at the size of the published models, and made samples of any size: what the benchmarks run on."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from molmoact_train.families.molmoact2.network import MolmoAct2Config
from molmoact_train.families.molmoact2.samples import Chunk, MolmoAct2Sample, loss_weights
from molmoact_train.families.molmoact2.tiny import write_tiny_checkpoint

DIMS, REAL_DIMS = 32, 7
HORIZON = 30
"""Steps of the longest action chunk."""


def made_config(*, real: bool) -> MolmoAct2Config:
    """The published widths (5.36 B parameters), or those of the tiny model; depth tokens either way."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_tiny_checkpoint(Path(scratch) / "tiny", horizon=HORIZON)
        fields = json.loads((folder / "config.json").read_text())
    if real:
        vision = {
            "hidden_size": 1152,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 72,
        }
        fields["vit_config"] |= vision | {
            "intermediate_size": 4304, "num_hidden_layers": 27, "image_default_input_size": [378, 378],
            "image_num_pos": 729,
        }  # fmt: skip
        fields["adapter_config"] |= vision | {
            "intermediate_size": 9728, "text_hidden_size": 2560, "vit_layers": [-3, -9],
        }  # fmt: skip
        fields["text_config"] |= {
            "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 128, "intermediate_size": 9728, "vocab_size": 154624, "additional_vocab_size": 128,
        }  # fmt: skip
        fields["action_expert_config"] |= {
            "hidden_size": 768, "num_layers": 36, "num_heads": 8, "ffn_multiple_of": 256, "timestep_embed_dim": 256,
        }  # fmt: skip
    return MolmoAct2Config.from_json(fields)


def make_samples(config: MolmoAct2Config, lengths: list[int], draws: int) -> list[MolmoAct2Sample]:
    """Two cameras, a prompt and an answer of given lengths, a chunk with its noise."""
    rng, horizon = np.random.default_rng(0), config.max_action_horizon
    patches = config.vit.image_num_pos
    side = round(patches**0.5)
    half = -(-side // 2)
    index = np.pad(
        np.arange(patches).reshape(side, side), ((0, side % 2), (0, side % 2)), constant_values=-1
    )
    windows = index.reshape(half, 2, half, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
    image = [
        int(config.fields["image_start_token_id"]),
        *[config.image_patch_id] * len(windows),
        config.image_end_id,
    ]
    assert config.action_tokens is not None
    actions = config.action_tokens
    found = []
    for number, length in enumerate(lengths):
        answer = [
            actions.start,
            *(actions.first + rng.integers(0, 200, 20)),
            actions.end,
            config.eos_id,
        ]
        text = rng.integers(0, 200, length - 2 * len(image) - 1 - len(answer))
        ids = np.array([config.bos_id, *image, *image, *text, *answer], dtype=np.int64)
        chunk = Chunk(
            actions_TA=np.zeros((horizon, DIMS), np.float32),
            noise_FTA=rng.standard_normal((draws, horizon, DIMS), dtype=np.float32),
            times_F=rng.random(draws, dtype=np.float32),
            steps_T=np.ones(horizon, bool),
            dims_A=np.arange(DIMS) < REAL_DIMS,
        )
        chunk.actions_TA[:, :REAL_DIMS] = rng.uniform(-1, 1, (horizon, REAL_DIMS))
        chunk.noise_FTA[..., REAL_DIMS:] = 0
        found.append(
            MolmoAct2Sample(
                position=number,
                style="robot_action",
                input_tokens=ids,
                target_tokens=np.roll(ids, -1),
                loss_weights=loss_weights(ids, len(ids) - len(answer)),
                crops_UPC=rng.integers(0, 256, (2, patches, 588), dtype=np.uint8),
                windows_V4=np.concatenate([windows, np.where(windows >= 0, windows + patches, -1)]),
                chunk=chunk,
            )
        )
    return found
