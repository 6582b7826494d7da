"""Put one stored row through the real processor, to see that training would learn from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from molmoact_data import schema
from molmoact_train.data.dataset import max_image_side
from molmoact_train.data.rendering import RenderSettings, render
from molmoact_train.data.sources import MIN_TRACE_POINTS, RobotRow, possible_kinds
from molmoact_train.families.molmoact.processor import MolmoActProcessor

MAX_IMAGES = 2


def loss_counter(processor_folder: Path) -> Callable[[Mapping[str, Any]], int | None]:
    """A function: row -> the fewest tokens with loss over all samples that the row allows; None = it allows none."""
    processor = MolmoActProcessor.from_pretrained(processor_folder)
    max_side = max_image_side(processor)

    def count(values: Mapping[str, Any]) -> int | None:
        row = robot_row(values)
        kinds = possible_kinds(
            depth=row.depth_codes is not None,
            trace=row.traces is not None,
            action=row.action_bins is not None,
        )
        counts = []
        for kind in kinds:
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
        return min(counts) if counts else None

    return count


def robot_row(values: Mapping[str, Any]) -> RobotRow:
    """The record as plain Python values -> what training reads of it."""
    cameras = [name for name in values if name.startswith(schema.IMAGE_PREFIX)][:MAX_IMAGES]
    arms = values.get(schema.TRACE) or []
    usable = (
        bool(arms)
        and values[schema.TRACE_REJECT_REASON] is None
        and min(map(len, arms)) >= MIN_TRACE_POINTS
    )
    codes, bins = values.get(schema.DEPTH_CODES), values.get(schema.ACTION_BINS)
    return RobotRow(
        where=f"episode {values[schema.EPISODE_INDEX]}, frame {values[schema.FRAME_INDEX]}",
        images=tuple(values[name]["bytes"] for name in cameras),
        instruction=values[schema.INSTRUCTION],
        depth_codes=None if codes is None else tuple(codes),
        traces=arms if usable else None,
        action_bins=None if bins is None else np.asarray(bins, dtype=np.int16),
    )
