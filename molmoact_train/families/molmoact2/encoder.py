"""Rows of our record -> MolmoAct2's samples and batches: words, pictures, normalised chunks with their noise.

Everything random (style, augmentation, noise, times) comes from the generator of the sample's position, so a run that
was killed, or runs on other processes, draws the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from molmoact_data.errors import UserError
from molmoact_train.config import TrainConfig
from molmoact_train.data.augment import augment
from molmoact_train.data.base import Part, RobotRow, Row
from molmoact_train.data.rendering import decode_image
from molmoact_train.families.molmoact2 import prompts
from molmoact_train.families.molmoact2.fast import FastTokenizer
from molmoact_train.families.molmoact2.network.flow import draw_times
from molmoact_train.families.molmoact2.processor import MolmoAct2Processor
from molmoact_train.families.molmoact2.prompts import Style
from molmoact_train.families.molmoact2.robots import tag_for
from molmoact_train.families.molmoact2.samples import (
    Chunk,
    MicroBatch,
    MolmoAct2Sample,
    collate,
    loss_weights,
)
from molmoact_train.families.molmoact2.settings import Settings
from molmoact_train.families.molmoact2.statistics import Tag

STYLE_NEEDS: dict[Style, frozenset[Part]] = {
    "robot_action": frozenset({"action"}),
    "robot_depth": frozenset({"depth"}),
    "robot_depth_action": frozenset({"action", "depth"}),
}


@dataclass
class MolmoAct2Encoder:
    """An `Encoder`; see `data.base`."""

    processor: MolmoAct2Processor
    settings: Settings
    fast: FastTokenizer | None
    augmented: bool
    pack_to: int | None
    """Tokens of a packed row; None = one sample per row."""
    _tags: dict[str, Tag] = field(default_factory=dict)

    @classmethod
    def of_run(cls, folder: Path, config: TrainConfig, *, training: bool) -> MolmoAct2Encoder:
        """As the run's configuration says; evaluation never augments."""
        own: Settings = config.settings
        given = own.action_tokenizer
        fast = FastTokenizer.of_checkpoint(folder, given) if own.writes_actions else None
        return cls(
            processor=MolmoAct2Processor.from_folder(folder),
            settings=own,
            fast=fast,
            augmented=config.img_aug and training,
            pack_to=config.seq_len if own.packing else None,
        )

    def tag(self, row: RobotRow) -> Tag:
        """The robot of a row."""
        if row.statistics is None or row.actions_HD is None:
            raise UserError(f"{row.where}: the record has no actions or no statistics.")
        key = row.statistics.key
        if key not in self._tags:
            self._tags[key] = tag_for(
                row.statistics,
                [f"camera_{n}" for n in range(len(row.images))],
                len(row.actions_HD),
                self.processor.stats,
                self.processor.config,
                self.settings,
            )
        return self._tags[key]

    def sample(self, position: int, row: Row, rng: np.random.Generator) -> MolmoAct2Sample:
        """Tokens, weights, pictures and the noisy chunk of the row's sample."""
        if not isinstance(row, RobotRow):
            raise UserError(
                f"{row.where}: MolmoAct2 trains on preprocessed robot data, not on conversations."
            )
        style = self._style(row, rng)
        tag = self.tag(row)
        asked = self._prompt(row, style, tag, rng)
        chunk = self._chunk(row, tag, rng, wanted=style != "robot_depth")
        answer = self._answer(row, style, tag)
        tokens = np.concatenate([asked.input_ids, np.asarray(answer, dtype=np.int64)])
        targets = np.roll(tokens, -1)
        weights = loss_weights(tokens, len(asked.input_ids))
        return MolmoAct2Sample(
            position=position,
            style=style,
            input_tokens=self._with_depth_noise(tokens, rng),
            target_tokens=targets,
            loss_weights=weights,
            crops_UPC=asked.images.crops_UPC,
            windows_V4=asked.images.windows_V4,
            chunk=chunk,
        )

    def collate(self, samples: Sequence[MolmoAct2Sample]) -> MicroBatch:
        """One forward pass."""
        return collate(samples, seq_len=self.pack_to, text_first=self.settings.has_text_loss)

    def describe(self, row: Row, rng: np.random.Generator) -> dict[str, Any]:
        """The row's sample as people read it."""
        sample = self.sample(0, row, rng)
        first = int(np.argmax(sample.loss_weights > 0)) + 1 if sample.loss_weights.any() else None
        return {
            "where": row.where,
            "kind": sample.style,
            "images": [f"{len(sample.crops_UPC)} crops"],
            "question": self.processor.decode(sample.input_tokens[:first].tolist()),
            "answer": ""
            if first is None
            else self.processor.decode(sample.input_tokens[first:].tolist()),
            "chunk": f"{int(sample.chunk.steps_T.sum())} steps x {int(sample.chunk.dims_A.sum())} dimensions",
        }

    def normalised(self, row: RobotRow, tag: Tag) -> NDArray[np.float32]:
        """The chunk [H, D] of the tag's horizon; steps behind the episode's end repeat its last action."""
        assert row.actions_HD is not None, "checked by tag()"
        return tag.action.normalise(row.actions_HD[: tag.action_horizon], self.processor.stats.mode)

    def depth_target(self, row: RobotRow) -> tuple[int, ...] | None:
        """The codes that the answer spells."""
        if self.settings.depth_target == "depth_codes" or row.buffer_codes is None:
            return row.depth_codes
        return row.buffer_codes

    def _style(self, row: RobotRow, rng: np.random.Generator) -> Style:
        styles = [
            (style, weight)
            for style, weight in self.settings.styles.items()
            if weight > 0 and STYLE_NEEDS[style] <= row.parts
        ]
        if not styles:
            raise UserError(f"{row.where}: its labels allow none of the styles of this run.")
        weights = np.array([weight for _, weight in styles])
        edges = np.cumsum(weights / weights.sum())
        drawn = int(np.searchsorted(edges, rng.random(), side="right"))
        return styles[min(drawn, len(styles) - 1)][0]

    def _prompt(self, row: RobotRow, style: Style, tag: Tag, rng: np.random.Generator) -> Any:
        images: list[Image.Image] = [decode_image(encoded, row.where) for encoded in row.images]
        if self.augmented:
            images = augment(images, None, rng, crop_first="depth" not in style).images
        state = row.state if tag.state is not None else None
        if tag.state is not None and state is None:
            raise UserError(
                f"{row.where}: tag {tag.name!r} reads the robot's state, and the record has none."
            )
        return self.processor.prompt(style, row.instruction, tag, images, state)

    def _answer(self, row: RobotRow, style: Style, tag: Tag) -> list[int]:
        """Depth and action tokens, then EOS unless the expert goes on from here."""
        codes = self.depth_target(row) if "depth" in style else None
        ids = None
        if self.fast is not None and style != "robot_depth":
            ids = self.fast.encode(self.normalised(row, tag))
        text = prompts.answer(depth_codes=codes, action_ids=ids)
        goes_on = style != "robot_depth" and ids is None
        return self.processor.encode(text) + ([] if goes_on else [self.processor.config.eos_id])

    def _chunk(self, row: RobotRow, tag: Tag, rng: np.random.Generator, *, wanted: bool) -> Chunk:
        config, draws = self.processor.config, self.settings.num_flow_timesteps
        steps, dims = config.max_action_horizon, config.max_action_dim
        chunk = Chunk(
            actions_TA=np.zeros((steps, dims), dtype=np.float32),
            noise_FTA=np.zeros((draws, steps, dims), dtype=np.float32),
            times_F=np.zeros(draws, dtype=np.float32),
            steps_T=np.zeros(steps, dtype=bool),
            dims_A=np.arange(dims) < tag.action.dim,
        )
        if not wanted or config.flow is None or self.settings.action_mode == "discrete":
            return chunk
        actions = self.normalised(row, tag)
        chunk.actions_TA[: len(actions), : actions.shape[1]] = actions
        chunk.steps_T[: len(actions)] = True
        noise = rng.standard_normal((draws, steps, tag.action.dim), dtype=np.float32)
        chunk.noise_FTA[..., : tag.action.dim] = noise
        chunk.times_F[:] = draw_times(rng, draws, config.flow)
        return chunk

    def _with_depth_noise(
        self, tokens: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Some depth codes replaced by random ones where the model reads them."""
        depth, rate = self.processor.config.depth_tokens, self.settings.depth_input_noise
        if depth is None or not rate:
            return tokens
        is_code = (tokens >= depth.first) & (tokens < depth.first + depth.count)
        replaced = is_code & (rng.random(len(tokens)) < rate)
        return np.where(replaced, depth.first + rng.integers(0, depth.count, len(tokens)), tokens)
