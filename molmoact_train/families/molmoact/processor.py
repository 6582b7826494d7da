"""Text and pictures -> what the network reads: the vocabulary, the prompt and the training sample.

Token stream: BOS, image block(s), `User: {question} Assistant:`, ` {answer}`, EOS; the pieces are tokenised
separately. An image block is one or two grids of `<im_start>` rows of `<im_patch>` + `<im_col>` `<im_end>`;
with several images each block follows the text `Image k`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from molmoact_data.errors import UserError
from molmoact_data.files.typed import read_typed
from molmoact_data.text import tokens
from molmoact_train.families.fields import Size, TokenId
from molmoact_train.families.molmoact.image_config import CONFIG_NAME, ImageProcessorConfig
from molmoact_train.families.molmoact.images import (
    ImageBatch,
    ImageLike,
    MolmoActImageProcessor as MolmoActImageProcessor,
    ProcessedImages as ProcessedImages,
    as_samples,
    stack_padded,
    to_rgb,
)
from molmoact_train.families.molmoact.vocabulary import (
    extend_vocabulary,
    id_of,
    load_tokenizer,
    save_tokenizer,
)

PROCESSOR_NAME = "processor_config.json"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{%- if (loop.index0 % 2 == 0) != (message['role'] == 'user') -%}"
    "{{ raise_exception('roles must alternate user, assistant, and start with user') }}"
    "{%- endif -%}"
    "{%- if not loop.first -%}{{ ' ' }}{%- endif -%}"
    "{{ message['role'].capitalize() + ': ' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{{ message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text')"
    " | join(' ') }}{%- endif -%}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' Assistant:' }}{% endif %}"
)
"""The released `demo_role` format in our own words: `User: ... Assistant: ...`."""


@dataclass(frozen=True)
class ImageTokenIds:
    """Ids of the tokens that make an image block."""

    start: int
    end: int
    patch: int
    column: int


def grid_ids(grids_G2: NDArray[np.int64], ids: ImageTokenIds) -> list[int]:
    """The tokens of patch grids, each (rows, columns) of windows: `<im_start>` rows with `<im_col>` `<im_end>`."""
    stream: list[int] = []
    for rows, columns in grids_G2.tolist():
        row = [ids.patch] * columns + [ids.column]
        stream += [ids.start, *row * rows, ids.end]
    return stream


class MolmoActProcessor:
    """Tokenizer and image processor of one checkpoint."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: MolmoActImageProcessor,
        *,
        padding_side: Literal["left", "right"] = "left",
    ) -> None:
        """`tokenizer` already holds the depth and image tokens, see `extend_vocabulary`."""
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.padding_side = padding_side
        self.eos_id = id_of(tokenizer, tokenizer.eos_token)
        # Qwen has no BOS and starts with its EOS.
        self.bos_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.eos_id
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_id
        self.image_ids = ImageTokenIds(
            *(
                id_of(tokenizer, token)
                for token in (tokens.IM_START, tokens.IM_END, tokens.IM_PATCH, tokens.IM_COL)
            )
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, padding_side: Literal["left", "right"] = "left"
    ) -> MolmoActProcessor:
        """From a released checkpoint's folder or a bare tokenizer folder.

        The embedding size, which fixes the image tokens' ids, is read from `config.json`; without one it is
        the next multiple of 512 that holds the vocabulary (152064 for Qwen2.5, 100864 for OLMo-2). Without
        `preprocessor_config.json` the 7B-D image parameters are used.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: expected a checkpoint or a tokenizer")
        tokenizer = load_tokenizer(folder)
        extend_vocabulary(tokenizer, _embedding_size(folder))
        if (folder / CONFIG_NAME).is_file():
            image_processor = MolmoActImageProcessor.from_pretrained(folder)
        else:
            image_processor = MolmoActImageProcessor(ImageProcessorConfig())
        processor = cls(tokenizer, image_processor, padding_side=padding_side)
        processor._check_network(folder)
        return processor

    def save_pretrained(self, folder: str | Path) -> None:
        """Tokenizer, `preprocessor_config.json` and `processor_config.json`, readable by the released code."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.chat_template = CHAT_TEMPLATE
        self.tokenizer.padding_side = "left"
        save_tokenizer(self.tokenizer, folder)
        self.image_processor.save_pretrained(folder)
        fields = {
            "processor_class": "MolmoActProcessor",
            "prompt_templates": "uber_model",
            "message_format": "role",
            "system_prompt": "demo_or_style",
            "style": "demo",
            "always_start_with_space": False,
            "default_inference_len": 65,
            "use_col_tokens": True,
            "image_padding_mask": self.image_processor.config.resize_mode == "default",
        }
        (folder / PROCESSOR_NAME).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")

    # Text

    @staticmethod
    def prompt(question: str) -> str:
        """The user's turn as text: what `apply_chat_template` gives for one user message."""
        return f"User: {question} Assistant:"

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tokenize: bool = False,
    ) -> str:
        """Messages as one text; tokenising is `__call__`'s, which also places BOS and images."""
        if tokenize:
            raise ValueError("tokenize=False only: pass the text and the images to the processor")
        self.tokenizer.chat_template = CHAT_TEMPLATE
        return self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def encode(self, text: str) -> list[int]:
        """Plain text -> ids; no BOS or EOS is added."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, for many texts at once (ten times faster)."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int] | NDArray[np.int64] | torch.Tensor) -> str:
        """Ids -> text without special tokens; depth tokens stay."""
        return self.tokenizer.decode(
            [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    # Pictures

    def image_block(self, images: ProcessedImages) -> list[int]:
        """Ids of all image blocks; several images are announced by `Image 1`, `Image 2`, ..."""
        ids: list[int] = []
        first_grid = 0
        for number, num_grids in enumerate(images.num_grids, start=1):
            if len(images.num_grids) > 1:
                ids += self.encode(f"Image {number}")
            ids += grid_ids(images.grids_G2[first_grid : first_grid + num_grids], self.image_ids)
            first_grid += num_grids
        return ids

    # The two entrances

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: ImageBatch | None = None,
        *,
        padding: bool = True,
        apply_chat_template: bool = False,
        return_tensors: Literal["pt", "np"] = "pt",
    ) -> dict[str, Any]:
        """A batch for inference: `input_ids`, `attention_mask` and, with images, what the network needs.

        `images` is as for `MolmoActImageProcessor`, one entry per text. With `apply_chat_template` the text is
        the bare question. One image gets no `Image 1`, however it is nested: as in training, unlike the
        released processor.
        """
        texts = [text] if isinstance(text, str) else list(text if text is not None else [])
        if not texts:
            raise ValueError("no text: a prompt asks for something")
        texts = [self.prompt(t) if apply_chat_template else t for t in texts]
        samples = self._samples(images, len(texts))
        rows = [self._inference_ids(t, s) for t, s in zip(texts, samples, strict=True)]
        if not padding and len({len(row) for row in rows}) > 1:
            raise ValueError("rows of different length need padding=True")
        batch: dict[str, Any] = self._pad(rows)
        present = [sample for sample in samples if sample is not None]
        if present:
            batch |= batch_images(present)
        if return_tensors == "np":
            return batch
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def training_sample(
        self,
        images: Sequence[ImageLike],
        question: str,
        answer: str,
        trace: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """One unpadded sample: `input_tokens`, `target_tokens`, `position_ids` int64 [S], `loss_masks` f32 [S],
        `images` [T, P, C], `image_masks` [T, P], `pooled_patches_idx` [M, 4].

        Targets are the inputs shifted by one; loss is on the answer and EOS. `trace` (x, y on 0..255) is drawn
        on the first image.
        """
        pictures = list(images)
        if trace is not None:
            from molmoact_data.pictures.overlay import draw_trace

            pictures[0] = draw_trace(to_rgb(pictures[0]), trace)
        processed = self.image_processor.sample(pictures)
        asked = [self.bos_id, *self.image_block(processed), *self.encode(self.prompt(question))]
        answered = [*self.encode(f" {answer}"), self.eos_id]
        stream = np.array(asked + answered, dtype=np.int64)
        loss_masks = np.zeros(len(stream) - 1, dtype=np.float32)
        loss_masks[len(asked) - 1 :] = 1.0
        return {
            "input_tokens": stream[:-1],
            "target_tokens": stream[1:],
            "loss_masks": loss_masks,
            "position_ids": np.arange(len(stream) - 1),
            "images": processed.crops_TPC,
            "image_masks": processed.masks_TP,
            "pooled_patches_idx": processed.pooled_patches_idx_M4,
        }

    def annotated_sample(
        self,
        images: Sequence[ImageLike],
        conversations: Sequence[Sequence[str]],
        *,
        max_tokens: int | None = None,
    ) -> dict[str, NDArray[Any]]:
        """As `training_sample` for several annotations of the same pictures, with `branch_ids` int64 [S].

        A conversation is question, answer, question, ...; each is a branch that sees the pictures and itself. Every
        branch ends with EOS and loses weight by the square root of how many there are, as published. Branches that
        would lead past `max_tokens` are left out, the first excepted.
        """
        processed = self.image_processor.sample(list(images))
        trunk = [self.bos_id, *self.image_block(processed)]
        branches: list[tuple[list[int], list[bool]]] = []
        used = len(trunk)
        for conversation in conversations:
            ids, answered = self._branch(conversation)
            if branches and max_tokens is not None and used + len(ids) - 1 > max_tokens:
                break
            branches.append((ids, answered))
            used += len(ids) - 1
        inputs = [*trunk, *(i for ids, _ in branches for i in ids[:-1])]
        targets = [*trunk[1:], branches[0][0][0], *(i for ids, _ in branches for i in ids[1:])]
        is_answer = [False] * len(trunk) + [a for _, answered in branches for a in answered[1:]]
        branch_ids = [0] * len(trunk)
        for number, (ids, _) in enumerate(branches, start=1):
            branch_ids += [number] * (len(ids) - 1)
        return {
            "input_tokens": np.array(inputs, dtype=np.int64),
            "target_tokens": np.array(targets, dtype=np.int64),
            "loss_masks": np.array(is_answer, dtype=np.float32)
            / np.sqrt(np.float32(len(branches))),
            "branch_ids": np.array(branch_ids, dtype=np.int64),
            "images": processed.crops_TPC,
            "image_masks": processed.masks_TP,
            "pooled_patches_idx": processed.pooled_patches_idx_M4,
        }

    def _branch(self, conversation: Sequence[str]) -> tuple[list[int], list[bool]]:
        """Token ids of question, answer, EOS, ... and which of them the model writes."""
        ids: list[int] = []
        answered: list[bool] = []
        for number, text in enumerate(conversation):
            is_answer = number % 2 == 1
            # Every message but the first begins with a space.
            told = f" {text}" if is_answer else " " * (number > 0) + self.prompt(text)
            tokens_of_it = self.encode(told) + [self.eos_id] * is_answer
            ids += tokens_of_it
            answered += [is_answer] * len(tokens_of_it)
        return ids, answered

    def _samples(self, images: ImageBatch | None, count: int) -> list[ProcessedImages | None]:
        """The pictures of each text."""
        if images is None:
            return [None] * count
        # [a, b] with one text is a mistake that would silently drop a camera.
        samples = as_samples(images)
        if len(samples) != count:
            raise ValueError(
                f"{len(samples)} image entries for {count} texts: nest the images of one sample, [[a, b]]"
            )
        return [self.image_processor.sample(pictures) for pictures in samples]

    def _inference_ids(self, text: str, images: ProcessedImages | None) -> list[int]:
        """BOS, image block, text; a `<|image|>` in the text is replaced by the block instead."""
        block = self.image_block(images) if images is not None else []
        before, found, after = text.partition(tokens.IMAGE)
        if not found:
            return [self.bos_id, *block, *self.encode(text)]
        if images is None:
            raise ValueError(f"the text holds {tokens.IMAGE} but no image was given")
        return [self.bos_id, *self.encode(before), *block, *self.encode(after)]

    def _pad(self, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        longest = max(len(row) for row in rows)
        input_ids = np.full((len(rows), longest), self.pad_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), longest), dtype=np.int64)
        for place, row in enumerate(rows):
            area = np.s_[longest - len(row) :] if self.padding_side == "left" else np.s_[: len(row)]
            input_ids[place, area] = row
            attention_mask[place, area] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _check_network(self, folder: Path) -> None:
        """The image token's id by name, and the pictures' crops, must be those the checkpoint was trained with."""
        path = folder / "config.json"
        if not path.is_file():
            return
        config, cut = read_typed(_Config, path), self.image_processor.config
        for said, done in (
            (config.vit_config.image_default_input_size, cut.base_image_input_size),
            (config.vit_config.image_patch_size, cut.image_patch_size),
        ):
            if said not in (None, done):
                raise UserError(
                    f"{folder}: pictures are cut into {done} pixels ({CONFIG_NAME}), config.json says {said}: the "
                    f"network cannot read them. Take both files from one checkpoint."
                )
        expected = config.image_patch_id
        if expected is not None and expected != self.image_ids.patch:
            raise UserError(
                f"{folder}: the tokenizer puts {tokens.IM_PATCH} at id {self.image_ids.patch}, config.json says "
                f"{expected}: image features would land on other tokens. Use the checkpoint's own tokenizer."
            )


def batch_images(samples: Sequence[ProcessedImages]) -> dict[str, NDArray[Any]]:
    """`images` [B, T, P, C], `pooled_patches_idx` [B, M, 4], `image_masks` [B, T, P]; -1 pads."""
    return {
        "images": stack_padded([s.crops_TPC for s in samples]),
        "pooled_patches_idx": stack_padded([s.pooled_patches_idx_M4 for s in samples]),
        "image_masks": stack_padded([s.masks_TP for s in samples]),
    }


@dataclass(frozen=True)
class _Section:
    vocab_size: Size


@dataclass(frozen=True)
class _Vit:
    image_default_input_size: tuple[Size, Size] | None = None
    image_patch_size: Size | None = None


@dataclass(frozen=True)
class _Config:
    """What is read of config.json here."""

    llm_config: _Section
    vit_config: _Vit = field(default_factory=_Vit)
    image_patch_id: TokenId | None = None


def _embedding_size(folder: Path) -> int | None:
    path = folder / "config.json"
    if not path.is_file():
        return None
    return read_typed(_Config, path).llm_config.vocab_size
