"""A checkpoint's tokenizer, pictures and words: observations and answers -> what the network reads.

Legend: S tokens of one sample, D state dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from molmoact_data.errors import UserError
from molmoact_train.families.molmoact.pictures import ImageLike
from molmoact_train.families.molmoact2 import images as pictures, prompts, vocabulary
from molmoact_train.families.molmoact2.images import CutImages, ImageLayout
from molmoact_train.families.molmoact2.network.config import MolmoAct2Config
from molmoact_train.families.molmoact2.prompts import Style
from molmoact_train.families.molmoact2.statistics import NormStats, Tag


@dataclass(frozen=True)
class Prompt:
    """One question, ready for the network."""

    input_ids: NDArray[np.int64]
    """[S], BOS first."""
    images: CutImages
    text: str


class MolmoAct2Processor:
    """Everything beside the weights that turns a moment into ids and pixels."""

    def __init__(
        self, tokenizer: Tokenizer, layout: ImageLayout, config: MolmoAct2Config, stats: NormStats
    ) -> None:
        self.tokenizer, self.layout, self.config, self.stats = tokenizer, layout, config, stats
        self._image_ids = {t: vocabulary.id_of(tokenizer, t) for t in vocabulary.IMAGE_TOKENS}

    @classmethod
    def from_folder(cls, folder: Path) -> MolmoAct2Processor:
        """From a folder in the released layout."""
        config = MolmoAct2Config.from_folder(folder)
        tokenizer = vocabulary.load(folder, config)
        stats = NormStats.read(folder / config.norm_stats_filename)
        return cls(tokenizer, ImageLayout.from_folder(folder), config, stats)

    def encode(self, text: str) -> list[int]:
        """Plain text -> ids; nothing is added."""
        return vocabulary.encode(self.tokenizer, text)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, special tokens included."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def state_bins(self, state_D: NDArray[np.floating], tag: Tag) -> NDArray[np.int64]:
        """The robot's state in its own units -> the bins the prompt names."""
        if tag.state is None or self.config.state_tokens is None:
            raise UserError(
                f"tag {tag.name!r} has no state statistics: this robot is shown no state."
            )
        return prompts.state_bins(
            tag.state.normalise(state_D, self.stats.mode), self.config.state_tokens.count
        )

    def prompt_text(
        self, style: Style, task: str, tag: Tag, bins: Sequence[int] | None, num_images: int
    ) -> str:
        """The question as text, the task normalised as in training."""
        return prompts.prompt(
            style,
            prompts.normalise_task(task),
            setup=tag.setup_type,
            control=tag.control_mode,
            state_bins=bins,
            num_images=num_images,
            setup_tokens=self.config.add_setup_tokens,
            control_tokens=self.config.add_control_tokens,
        )

    def ids_of(self, text: str, images: CutImages | None) -> list[int]:
        """BOS, then the text with each `<|image|>` replaced by that picture's block."""
        parts = text.split(prompts.IMAGE)
        blocks = images.blocks if images is not None else ()
        if len(parts) != len(blocks) + 1:
            raise ValueError(f"{len(parts) - 1} {prompts.IMAGE} in the text, {len(blocks)} images")
        ids = self.encode(parts[0])
        for tokens, part in zip(blocks, parts[1:], strict=True):
            ids += [self._image_ids[token] for token in tokens] + self.encode(part)
        return ids if ids and ids[0] == self.config.bos_id else [self.config.bos_id, *ids]

    def prompt(
        self,
        style: Style,
        task: str,
        tag: Tag,
        images: Sequence[ImageLike],
        state_D: NDArray[np.floating] | None,
    ) -> Prompt:
        """The question about one moment; images in the order of the tag's cameras."""
        if not images:
            raise UserError("no image: MolmoAct2 acts on at least one.")
        cut = pictures.cut(images, self.layout)
        bins = None if state_D is None else self.state_bins(state_D, tag).tolist()
        text = self.prompt_text(style, task, tag, bins, len(images))
        return Prompt(np.asarray(self.ids_of(text, cut), dtype=np.int64), cut, text)
