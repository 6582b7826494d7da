"""It can learn: a tiny model over-fitted on a few frames answers them again, to the last code and bin.

`scripts/overfit.py` does the same on the demo dataset; docs/training.md has its numbers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from made_training import open_training_data

from molmoact_train.config import resolve
from molmoact_train.data.rendering import decode_image
from molmoact_train.data.sources import ShardSource
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.debug.tiny import TinySize, tiny_config, tiny_processor
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.families.molmoact.predictor import PredictOptions, Predictor
from molmoact_train.train import train

SIZE = TinySize(width=64, layers=1, vit_width=32, image_size=56)


def test_constrained_answers_reproduce_the_training_frames(tmp_path: Path) -> None:
    """Both frames share their instruction, so only the picture can tell them apart."""
    data = write_debug_dataset(tmp_path / "data", episodes=2, frames=2, size=56, chunk_size=2)
    model_config = tiny_config(SIZE)
    model_config.initializer_range = (
        SIZE.width**-0.5
    )  # at 0.02 so small a network ignores its pictures
    torch.manual_seed(0)
    MolmoActForActionReasoning(model_config).save_pretrained(tmp_path / "checkpoint")
    tiny_processor(SIZE).save_pretrained(tmp_path / "checkpoint")
    config = resolve(
        "debug",
        {
            "checkpoint": str(tmp_path / "checkpoint"), "data": [str(data)],
            "output_path": str(tmp_path / "run"), "duration": 90, "save_interval": 90,
            "global_batch_size": 2, "device_batch_size": 2, "max_images": 1,
            "lr_llm": 4e-3, "lr_vit": 2e-3, "lr_connector": 4e-3, "warmup": 10,
            "residual_dropout": 0.0, "kind_trajectory": 0.0, "log_interval": 90,
        },
    )  # fmt: skip
    outcome = train(config, device="cpu")
    assert outcome.metrics["train/accuracy"] == 1.0
    (source,) = open_training_data(config, tiny_processor(SIZE)).sources
    assert isinstance(source, ShardSource)
    assert source.size == 2
    rows = [source.row(index) for index in range(source.size)]
    assert rows[0].depth_codes != rows[1].depth_codes
    predictor = Predictor.from_pretrained(outcome.folder, device="cpu")
    for row in rows:
        (picture,) = (decode_image(encoded, row.where) for encoded in row.images)
        found = predictor.predict(
            [picture], row.instruction, options=PredictOptions(chunk_size=len(row.action_bins))
        )
        assert found.depth_codes == [list(row.depth_codes)]
        assert found.traces == row.traces
        assert found.action_bins == row.action_bins.tolist()
        assert found.problems == []
