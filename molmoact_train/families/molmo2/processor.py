"""Pictures or a clip, and a question -> what Molmo2 reads.

Stream: BOS, the pictures (each an overview and tiles) or the frames of the clip, each after its time in seconds, then
one turn of Qwen's chat without a system part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from molmoact_data.errors import UserError
from molmoact_data.files.inputs import is_git_lfs_pointer
from molmoact_train.families.fields import read_tokenizer
from molmoact_train.families.molmo.config import read_json
from molmoact_train.families.molmo2.network import Molmo2Config
from molmoact_train.families.molmoact.image_config import CONFIG_NAME
from molmoact_train.families.molmoact2 import images as pictures, prompts, vocabulary
from molmoact_train.families.molmoact2.images import PROCESSOR_FILE, CutImages, ImageLayout

VIDEO_FILE = "video_preprocessor_config.json"
VIDEO = "<|video|>"
FRAME_START, FRAME_END = "<frame_start>", "<frame_end>"
_TILED = "overlap-and-resize-c2"
_FRAME_POOLING = [3, 3]


@dataclass(frozen=True)
class Prompt:
    """One question, ready for the network."""

    input_ids: NDArray[np.int64]
    """[S], BOS first."""
    images: CutImages


class Molmo2Processor:
    """Tokenizer and pictures of one checkpoint folder."""

    def __init__(
        self, tokenizer: Tokenizer, config: Molmo2Config, picture: ImageLayout, frame: ImageLayout
    ) -> None:
        self.tokenizer, self.config, self.picture, self.frame = tokenizer, config, picture, frame
        start, end = (
            (FRAME_START, FRAME_END)
            if config.use_frame_tokens
            else (vocabulary.IM_START, vocabulary.IM_END)
        )
        names = (
            vocabulary.IM_START, vocabulary.IM_END, vocabulary.IM_PATCH, vocabulary.IM_COL, vocabulary.LOW_RES_START,
            start, end,
        )  # fmt: skip
        self._ids = {name: _id_of(tokenizer, name) for name in names}
        self._frame_marks = (start, end)
        if self._ids[vocabulary.IM_PATCH] != config.image_patch_id:
            raise UserError(
                f"the tokenizer puts <im_patch> at id {self._ids[vocabulary.IM_PATCH]}, config.json at "
                f"{config.image_patch_id}: these tokenizer files belong to another checkpoint."
            )

    @classmethod
    def from_folder(cls, folder: Path) -> Molmo2Processor:
        """Raises `UserError` where the folder's tokenizer or picture settings are missing or not Molmo2's."""
        path = folder / vocabulary.TOKENIZER_FILE
        if not path.is_file():
            raise UserError(f"{folder} holds no {vocabulary.TOKENIZER_FILE}.")
        if is_git_lfs_pointer(path):
            raise UserError(f"{path} is a Git LFS pointer; run `git lfs pull` in that folder.")
        tokenizer = read_tokenizer(path)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(tokenizer, Molmo2Config.from_folder(folder), *read_layouts(folder))

    def pictures(self, images: Sequence[NDArray[np.uint8]], question: str) -> Prompt:
        """RGB uint8 [H, W, 3] each; several are called Image 1, Image 2, ... and answered by number."""
        cut = pictures.cut(images, self.picture)
        pieces = prompts.images_part(len(images)).split(prompts.IMAGE)
        blocks = [[self._ids[token] for token in block] for block in cut.blocks]
        return self._prompt(pieces[:-1], blocks, cut, question)

    def clip(
        self, frames: Sequence[NDArray[np.uint8]], times_s: Sequence[float], question: str
    ) -> Prompt:
        """Frames of one clip in order, each told with its time, to a tenth of a second."""
        cut = pictures.cut(frames, self.frame)
        grid = self.frame.cut.crop_patches // self.frame.cut.image_pooling_h
        start, end = (self._ids[mark] for mark in self._frame_marks)
        row = [self._ids[vocabulary.IM_PATCH]] * grid
        row += [self._ids[vocabulary.IM_COL]] * self.frame.row_ends_of_overview
        block = [start, *row * grid, end]
        told = [f"{' ' if place else ''}{time:.1f} " for place, time in enumerate(times_s)]
        return self._prompt(told, [block] * len(told), cut, question)

    def _prompt(
        self, before: Sequence[str], blocks: Sequence[list[int]], cut: CutImages, question: str
    ) -> Prompt:
        turn = f"{prompts.TURN_START}user\n{question}{prompts.TURN_END}\n{prompts.TURN_START}assistant\n"
        ids = [self.config.bos_id]
        for text, block in zip(before, blocks, strict=True):
            ids += vocabulary.encode(self.tokenizer, text) + block
        ids += vocabulary.encode(self.tokenizer, turn)
        return Prompt(np.asarray(ids, dtype=np.int64), cut)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, special tokens included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)


def read_layouts(folder: Path) -> tuple[ImageLayout, ImageLayout]:
    """How pictures and how frames are cut: sections of processor_config.json, or files of their own."""
    fields = read_json(folder / PROCESSOR_FILE) if (folder / PROCESSOR_FILE).is_file() else {}
    sections = {}
    for name, file in (("image_processor", CONFIG_NAME), ("video_processor", VIDEO_FILE)):
        if name not in fields and (folder / file).is_file():
            sections[name] = read_json(folder / file)
        elif name in fields:
            sections[name] = fields[name]
        else:
            raise UserError(f"{folder} has neither {file} nor {name} in {PROCESSOR_FILE}.")
    image = {"crop_mode": _TILED, "resample": 2, **sections["image_processor"]}
    video = {
        "resample": 2, "max_crops": 1, "overlap_margins": [4, 4], "pooling_size": _FRAME_POOLING,
        **sections["video_processor"], "crop_mode": "resize",
    }  # fmt: skip
    common = {
        "image_use_col_tokens": True,
        "use_single_crop_col_tokens": None,
        "use_single_crop_start_token": True,
        **fields,
    }
    frame = {**common, "image_use_col_tokens": fields.get("video_use_col_tokens", False)}
    return _layout(folder, image, common), replace(
        _layout(folder, video, frame | {"use_single_crop_col_tokens": None}), low_res_start=False
    )


def _layout(folder: Path, section: dict[str, Any], fields: dict[str, Any]) -> ImageLayout:
    try:
        return ImageLayout.from_json({**fields, "image_processor": section})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: its picture settings cannot be read: {error!r}.") from error


def _id_of(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise UserError(f"the tokenizer has no {token!r}: it is not Molmo2's.")
    return int(found)
