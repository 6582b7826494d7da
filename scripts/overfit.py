"""Can it learn at all? Over-fit a tiny model on a preprocessed dataset and answer the training frames again.

    python scripts/overfit.py --data OUT_OF_PREPROCESS --work DIR [--frames 16] [--steps 600] [--width 128]

Trains with `molmoact train`'s own loop (LoRA off, dropout off), then generates constrained answers for the frames
it was trained on and prints how many depth codes, trace points and action bins come back exactly. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from molmoact_train.config import resolve
from molmoact_train.data.dataset import open_training_data
from molmoact_train.data.rendering import decode_image, shrink
from molmoact_train.data.sources import ShardSource
from molmoact_train.debug.tiny import TinySize, tiny_config, tiny_processor
from molmoact_train.families.molmoact.encoder import max_image_side
from molmoact_train.families.molmoact.family import MolmoActFamily
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.families.molmoact.predictor import PredictOptions, Predictor
from molmoact_train.train import train

FAMILY = MolmoActFamily()


def lively_checkpoint(folder: Path, size: TinySize) -> Path:
    """A tiny checkpoint whose pictures matter: with the published 0.02 at these widths they would vanish."""
    config = tiny_config(size)
    config.initializer_range = size.width**-0.5
    torch.manual_seed(0)
    MolmoActForActionReasoning(config).save_pretrained(folder)
    tiny_processor(size).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("molmoact_train").setLevel(logging.INFO)

    size = TinySize(width=arguments.width, layers=2, vit_width=64, image_size=84)
    checkpoint = lively_checkpoint(arguments.work / "checkpoint", size)
    config = resolve(
        "debug",
        {
            "checkpoint": str(checkpoint), "data": [arguments.data],
            "output_path": str(arguments.work / "run"), "duration": arguments.steps,
            "global_batch_size": arguments.batch, "device_batch_size": arguments.batch,
            "lr_llm": arguments.lr, "lr_vit": arguments.lr / 2, "lr_connector": arguments.lr,
            "warmup": min(50, arguments.steps // 4), "residual_dropout": 0.0, "max_images": 1,
            "kind_trajectory": 0.0, "save_interval": arguments.steps, "log_interval": 50,
            "max_samples": arguments.frames,
        },
    )  # fmt: skip
    started = time.perf_counter()
    outcome = train(config, overwrite=True, device="cpu")
    trained_s = time.perf_counter() - started

    encoder = FAMILY.encoder(checkpoint, config, training=False)
    (source,) = open_training_data(config, FAMILY, encoder).sources
    assert isinstance(source, ShardSource)
    predictor = Predictor.from_pretrained(outcome.folder, device="cpu")
    right = {"depth_codes": [], "trace_points": [], "action_bins": []}
    for index in range(source.size):
        row = source.row(index)
        pictures = [
            shrink(decode_image(e, row.where), max_image_side(encoder.processor))
            for e in row.images
        ]
        options = replace(PredictOptions(), chunk_size=len(row.action_bins))
        found = predictor.predict(pictures, row.instruction, options=options)
        right["depth_codes"].append(np.mean(np.equal(found.depth_codes[0], row.depth_codes)))
        same = found.traces[0] == row.traces[0] if found.traces else False
        right["trace_points"].append(float(same))
        right["action_bins"].append(np.mean(np.equal(found.action_bins, row.action_bins)))
    result = {
        "frames": source.size, "steps": arguments.steps, "train_seconds": round(trained_s, 1),
        "final_loss": outcome.metrics["train/loss"],
        **{f"{name}_exact": round(float(np.mean(values)), 4) for name, values in right.items()},
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
