"""Train the small depth VQ-VAE that ships in the package (same interface as the released one, 10 x 10 codes).

    MUJOCO_GL=egl python scripts/train_embedded_vqvae.py --work-dir runs/embedded-vqvae

Needs the `sim` and `train` extras; renders its own data. The weights are stored as float16 and read back
as float32, so the file gives the same codes everywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path

import torch

from molmoact_data.config import build
from vqvae import checkpoint
from vqvae.config import PRESETS, TrainConfig
from vqvae.training.train import train

TARGET = Path(__file__).parent.parent / "molmoact_data/teachers/weights/embedded_vqvae.safetensors"
DATA = ("simulator:3000:train", "procedural:60:1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--target", type=Path, default=TARGET)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--data", nargs="+", default=DATA)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)

    values = {**PRESETS["embedded"], "data": arguments.data, "max_steps": arguments.steps}
    config = build(TrainConfig, {**values, "epochs": 1000, "max_eval_maps": 192})
    result = train(config, arguments.work_dir, resume=arguments.resume)
    if result.best is None or result.stopped_by_signal:
        raise SystemExit("stopped before the end; run again with --resume")
    best = checkpoint.load(arguments.work_dir)
    # The averages of the codebook only matter to further training.
    for name in ("embed_sum", "cluster_size"):
        getattr(best.model, name).zero_()
    made = dataclasses.replace(best, training={**best.training, "data": list(arguments.data)})
    checkpoint.save_ours(arguments.target, made, dtype=torch.float16)
    print(arguments.target.stat().st_size, "bytes", result.best)


if __name__ == "__main__":
    main()
