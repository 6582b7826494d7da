"""The small MolmoAct of the table-top world: the released architecture and layout, a few million weights, random.

What makes it small is the vocabulary and the pictures. One crop per camera (`crop_mode` `resize`), and a tokenizer that
knows our own sentences: a fixed phrase, a whole number, a word of an instruction and an action value with the comma
that follows it are one token each, so that an answer of 100 depth codes, five points and eight steps has some 200
tokens and a sample 280. Letters are still there, so that any instruction can be written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import AddedToken

from molmoact_data.labels.traces import GRID_MAX
from molmoact_data.text import prompts, tokens
from molmoact_train.families.molmoact.image_config import ImageProcessorConfig
from molmoact_train.families.molmoact.images import MolmoActImageProcessor
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.families.molmoact.processor import MolmoActProcessor
from molmoact_train.families.molmoact.start import order_values, place_patches, start_awake
from molmoact_train.families.molmoact.tiny import END_OF_TEXT, TinySize, tiny_config
from molmoact_train.families.molmoact.vocabulary import extend_vocabulary

SIZE = TinySize(width=128, layers=3, vit_width=64, vit_layers=3, image_size=126, vocabulary=2048)
"""1.1 million weights. A picture is nine patches a side."""
WORDS = (
    "pick", "up", "put", "on", "in", "stack", "turn", "a", "quarter", "to", "the", "left", "right", "pour", "from",
    "into", "red", "green", "blue", "yellow", "orange", "purple", "white", "black", "grey", "cube", "block", "can",
    "plate", "bowl",
)  # fmt: skip
"""Of the instructions of the training split; other words are spelled."""
ACTION_FORMS = (" [[{},", " [{},", " {},", " {}")
_INSTRUCTION = "INSTRUCTION"
_VARYING = re.compile(rf"{_INSTRUCTION}|<DEPTH_START>.*<DEPTH_END>|\[\[.*?\]\]\.")


def tabletop_tokenizer(size: TinySize = SIZE) -> PreTrainedTokenizerBase:
    """Bytes, then our phrases, numbers, words and action values as one token each, then what every MolmoAct adds."""
    alphabet = [END_OF_TEXT, *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({text: number for number, text in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[^\s]+|\s+"), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
    whole = dict.fromkeys([*_phrases(), *_words(), *_numbers(), *_action_values()])
    fast.add_tokens([AddedToken(text, special=False) for text in whole])
    extend_vocabulary(fast, size.vocabulary)
    return fast


def _phrases() -> Iterable[str]:
    """What stands around the parts that differ, in the questions and answers of every kind."""
    for number in (1, 2):
        for kind in ("reasoning", "trajectory", "action", "depth", "trace"):
            question = prompts.question(_INSTRUCTION, kind, number)
            answer = prompts.answer(
                kind, depth_codes=[0], trace=[[[0, 0]]], action_bins=[[1, 1]], num_images=number
            )
            for text in (f"User: {question} Assistant:", f" {answer}"):
                yield from (piece.rstrip() for piece in _VARYING.split(text) if piece.rstrip(" ."))


def _words() -> Iterable[str]:
    return (f" {word}" for word in WORDS)


def _numbers() -> Iterable[str]:
    """And what stands between them in a trace."""
    return (" [[", "],[", "]].", ",", " [", "],", *map(str, range(GRID_MAX + 1)))


def _action_values() -> Iterable[str]:
    """First of a chunk, first, middle and last of a step.

    Each with its space: without one, the byte-level decoder would read these strings as bytes.
    """
    for form in ACTION_FORMS:
        yield from (form.format(text) for text in tokens.action_tokens())


def ordered_tokens(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of the tokens that are numbers, ascending: those of a trace, and the action bins in each of their forms."""
    texts = [list(map(str, range(GRID_MAX + 1)))]
    texts += [[form.format(text) for text in tokens.action_tokens()] for form in ACTION_FORMS]
    return [tokenizer.convert_tokens_to_ids(family) for family in texts]


def tabletop_processor(size: TinySize = SIZE) -> MolmoActProcessor:
    """One crop per picture."""
    images = ImageProcessorConfig(
        crop_mode="resize", base_image_input_size=(size.image_size, size.image_size)
    )
    return MolmoActProcessor(tabletop_tokenizer(size), MolmoActImageProcessor(images))


def write_tabletop_checkpoint(folder: str | Path, size: TinySize = SIZE, *, seed: int = 0) -> Path:
    """Random weights in the released layout, where `train --stage tabletop` starts; the same seed, the same weights."""
    folder = Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MolmoActForActionReasoning(tiny_config(size))
        start_awake(model)
    processor = tabletop_processor(size)
    place_patches(model)
    order_values(model, ordered_tokens(processor.tokenizer), torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
