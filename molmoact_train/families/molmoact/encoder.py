"""Rows -> MolmoAct's samples and batches, with the tokenizer and the image processor of one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from molmoact_data import schema
from molmoact_data.outputs.output import Output
from molmoact_data.validate.run import CheckedSample, SampleCheck
from molmoact_train.config import TrainConfig
from molmoact_train.data.base import Row
from molmoact_train.data.rendering import Rendered, RenderSettings, kinds_of, render
from molmoact_train.data.sources import robot_row
from molmoact_train.families.molmoact.processor import MolmoActProcessor
from molmoact_train.families.molmoact.samples import (
    MicroBatch,
    MolmoActSample,
    build_sample,
    collate,
)
from molmoact_train.families.molmoact.settings import Settings

VALIDATED_IMAGES = 2
"""Cameras that `validate --processor` puts through the processor: an external and a wrist view."""


class MolmoActEncoder:
    """An `Encoder`; see `data.base`."""

    def __init__(
        self,
        processor: MolmoActProcessor,
        settings: RenderSettings,
        *,
        max_tokens: int | None = None,
    ) -> None:
        self.processor = processor
        self.settings = settings
        self.max_tokens = max_tokens

    @classmethod
    def of_run(
        cls, processor: MolmoActProcessor, config: TrainConfig, *, training: bool
    ) -> MolmoActEncoder:
        """As the run's configuration says; evaluation never augments."""
        own: Settings = config.settings
        settings = RenderSettings(
            kinds={kind: weight for kind, weight in own.kinds.items() if weight > 0},
            wording=own.wording,
            augment=config.img_aug and training,
            crop_depth=own.img_aug_crop_depth,
            max_side=max_image_side(processor),
        )
        return cls(processor, settings, max_tokens=config.seq_len)

    def rendered(self, row: Row, rng: np.random.Generator) -> Rendered:
        """Pictures and text of the row's sample."""
        return render(row, rng, self.settings)

    def sample(self, position: int, row: Row, rng: np.random.Generator) -> MolmoActSample:
        """Tokens, weights and crops of the row's sample."""
        rendered = self.rendered(row, rng)
        return build_sample(position, rendered, self.processor, max_tokens=self.max_tokens)

    def collate(self, samples: Sequence[MolmoActSample]) -> MicroBatch:
        """One forward pass, padded to the longest."""
        return collate(samples)

    def describe(self, row: Row, rng: np.random.Generator) -> dict[str, Any]:
        """The row's sample as people read it; action tokens as they are."""
        rendered = self.rendered(row, rng)
        return {
            "where": rendered.where,
            "kind": rendered.kind,
            "images": [f"{i.width}x{i.height}" for i in rendered.images],
            "question": rendered.question,
            "answer": rendered.answer,
        }


def max_image_side(processor: MolmoActProcessor) -> int:
    """The longest side at which a picture is one distinct crop for this checkpoint (378 or 336 px)."""
    return min(processor.image_processor.config.base_image_input_size)


def sample_check(processor_folder: Path, output: Output) -> SampleCheck:
    """What `validate --processor` asks: does training learn from a row, put through the real processor?"""
    processor = MolmoActProcessor.from_pretrained(processor_folder)
    max_side = max_image_side(processor)

    def check(
        values: Mapping[str, Any], following: Sequence[Sequence[float]]
    ) -> CheckedSample | None:
        names = [n for n in values if n.startswith(schema.IMAGE_PREFIX)][:VALIDATED_IMAGES]
        row = robot_row(values, [n.removeprefix(schema.IMAGE_PREFIX) for n in names])
        counts = []
        for kind in kinds_of(row):
            settings = RenderSettings(
                kinds={kind: 1.0},
                wording="released",
                augment=False,
                crop_depth=False,
                max_side=max_side,
            )
            sample = render(row, np.random.default_rng(0), settings)
            fields = processor.training_sample(sample.images, sample.question, sample.answer)
            counts.append(int((fields["loss_masks"] > 0).sum()))
        return CheckedSample(min(counts)) if counts else None

    return check
