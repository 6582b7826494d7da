"""The files that `preprocess` downloads, in their released layouts and under their real names, with tiny weights; and a
Hub cache that holds them, so that the Hub's own client finds them without a network.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from vqvae.checkpoint import RELEASED, Checkpoint, save_released
from vqvae.config import Geometry
from vqvae.model import VQVAE

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_depth_anything(folder: Path, *, width: int = 384) -> Path:
    """Depth-Anything-V2-Small-hf, four shallow blocks; the width is the real one, by which the licence is known."""
    torch.manual_seed(0)
    backbone = Dinov2Config(
        image_size=518, patch_size=14, hidden_size=width, num_hidden_layers=4, num_attention_heads=6, mlp_ratio=1,
        out_indices=[1, 2, 3, 4], apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, patch_size=14, reassemble_hidden_size=width, neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    return folder


def write_vqvae(path: Path) -> Path:
    """`vae-final.pt`: {"weights": state dict under `module.`}, its codebook random."""
    torch.manual_seed(0)
    model = VQVAE(Geometry())
    model.codebook.normal_()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_released(path, Checkpoint(model, RELEASED))
    return path


def into_cache(home: Path, repository: str, folder: Path, commit: str = COMMIT) -> None:
    """The folder as the snapshot of a model repository in the Hub cache under `HF_HOME`; `main` points to it."""
    root = home / "hub" / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, root / "snapshots" / commit)
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
