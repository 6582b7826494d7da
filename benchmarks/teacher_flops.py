"""Floating-point operations per frame of the depth teachers and the VQ-VAE, counted on shapes alone.

What docs/cluster.md's sizing model starts from. Nothing is downloaded and no network is computed: those of the
published geometry live on torch's `meta` device. What a frame costs before the network is timed.

    python benchmarks/teacher_flops.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

DEPTH_SIDE = 518
ENCODERS = {"vits": (384, 6, 64, (48, 96, 192, 384)), "vitb": (768, 12, 128, (96, 192, 384, 768))}
LARGE = (1024, 16, 256, (256, 512, 1024, 1024))


def depth_anything(encoder: str) -> torch.nn.Module:
    """Depth-Anything-V2 of one size on `meta`."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    width, heads, fusion, necks = ENCODERS.get(encoder, LARGE)
    layers = 24 if encoder == "vitl" else 12
    taken = [5, 12, 18, 24] if encoder == "vitl" else [3, 6, 9, 12]
    backbone = Dinov2Config(
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=layers,
        image_size=DEPTH_SIDE,
        patch_size=14,
        out_indices=taken,
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=width,
        neck_hidden_sizes=list(necks),
        fusion_hidden_size=fusion,
    )
    with torch.device("meta"):
        return DepthAnythingForDepthEstimation(config).eval()


def vqvae_network() -> torch.nn.Module:
    """The released VQ-VAE geometry, its encoder as `forward`."""
    from vqvae.config import Geometry
    from vqvae.model import VQVAE

    with torch.device("meta"):
        return VQVAE(Geometry()).eval()


def gflops(forward: Callable[..., object], *inputs: torch.Tensor) -> str:
    """10^9 operations (a multiply-add is two) of one forward pass: all, and those of convolutions."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(*inputs)
    convolutions = counter.get_flop_counts()["Global"].get(torch.ops.aten.convolution, 0)
    return f"{counter.get_total_flops() / 1e9:.1f} ({convolutions / 1e9:.1f} in convolutions)"


def preprocessing_ms(height: int, width: int, frames: int = 20) -> float:
    """Processor time of one frame on its way into Depth-Anything, on one thread."""
    from molmoact_data.teachers.depth_anything import preprocess

    cv2.setNumThreads(1)
    rgb = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    preprocess(rgb)
    began = time.process_time()
    for _ in range(frames):
        preprocess(rgb)
    return (time.process_time() - began) / frames * 1000


def main() -> None:
    frame = torch.empty(1, 3, DEPTH_SIDE, DEPTH_SIDE, device="meta")
    for encoder in ("vits", "vitb", "vitl"):
        print(f"depth-anything-v2 {encoder} at 518x518: {gflops(depth_anything(encoder), frame)}")
    depth = torch.empty(1, 1, 320, 320, device="meta")
    print(f"VQ-VAE encoder at 320x320: {gflops(vqvae_network().encode, depth)}")
    for height, width in ((256, 256), (480, 640)):
        cost = preprocessing_ms(height, width)
        print(f"before the depth network, {width}x{height}: {cost:.1f} ms on one core")


if __name__ == "__main__":
    main()
