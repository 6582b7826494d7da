"""FAST: an action chunk as few tokens: cosine transform along time, rounded coefficients, byte-pair encoding.

Encoding and decoding are neighbours; what cannot be decoded is an error and never a chunk of zeros.
Legend: T steps, D action dimensions (unpadded both), normalised actions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from molmoact_data.errors import UserError
from molmoact_data.files.typed import read_typed
from molmoact_train.families.fields import read_tokenizer
from molmoact_train.weights import resolve_model_folder

PROCESSOR_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE = (
    "processor_config.json", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip
FAST_FOLDER = "action_tokenizer"
"""Where an export of ours keeps the action tokenizer, inside the model's folder."""
SCALE = 10.0
NUM_IDS = 2048
MAX_TOKEN_LENGTH = 10_000


class Undecodable(ValueError):
    """The ids are no action chunk of the asked size."""


@cache
def _cosines(steps: int) -> NDArray[np.float64]:
    """The orthonormal DCT-II as a matrix [T, T]: coefficients = matrix @ values."""
    k, t = np.mgrid[:steps, :steps]
    matrix = np.cos(np.pi * (t + 0.5) * k / steps) * np.sqrt(2 / steps)
    matrix[0] /= np.sqrt(2)
    return matrix


@dataclass(frozen=True)
class _Fitted:
    """What is read of the tokenizer's settings."""

    scale: float
    min_token: int
    vocab_size: int

    def __post_init__(self) -> None:
        if not 0 < self.scale < 1e6 or not 0 < self.vocab_size < 1 << 24:
            raise ValueError(f"scale {self.scale} and vocab_size {self.vocab_size} cannot be")
        if abs(self.min_token) > 1 << 20:
            raise ValueError(f"min_token {self.min_token} is no coefficient")


class FastTokenizer:
    """A fitted tokenizer. Ids run from 0 to `num_ids` - 1; the checkpoint writes id i as `<action_i>`."""

    def __init__(self, tokenizer: Tokenizer, *, scale: float, min_token: int, num_ids: int) -> None:
        self.tokenizer, self.scale, self.min_token, self.num_ids = (
            tokenizer, scale, min_token, num_ids,
        )  # fmt: skip

    @classmethod
    def from_folder(cls, folder: Path) -> FastTokenizer:
        """The released file layout; `scale` and `min_token` are read, not assumed."""
        for name in (PROCESSOR_FILE, TOKENIZER_FILE):
            if not (folder / name).is_file():
                raise UserError(f"{folder} is no action tokenizer: it has no {name}.")
        said = read_typed(_Fitted, folder / PROCESSOR_FILE)
        tokenizer = read_tokenizer(folder / TOKENIZER_FILE)
        return cls(tokenizer, scale=said.scale, min_token=said.min_token, num_ids=said.vocab_size)

    @classmethod
    def of_checkpoint(cls, model_folder: Path, given: str | Path | None) -> FastTokenizer:
        """The action tokenizer asked for (a folder or a Hub id), or the one inside the model's folder."""
        if given is not None:
            return cls.from_folder(resolve_model_folder(str(given)))
        if (model_folder / FAST_FOLDER).is_dir():
            return cls.from_folder(model_folder / FAST_FOLDER)
        raise UserError(
            "discrete answers need the action tokenizer: give its folder or Hub id with --action-tokenizer "
            "(allenai/MolmoAct2-FAST-Tokenizer)."
        )

    def save(self, folder: Path) -> None:
        """The inverse of `from_folder`, in the files that the released loader reads."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / TOKENIZER_FILE))
        fields = {
            "processor_class": "UniversalActionProcessor",
            "scale": self.scale,
            "vocab_size": self.num_ids,
            "min_token": self.min_token,
            "time_horizon": None,
            "action_dim": None,
        }
        (folder / PROCESSOR_FILE).write_text(json.dumps(fields, indent=1), encoding="utf-8")
        config = {
            "backend": "tokenizers",
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps(config, indent=1), encoding="utf-8")

    @classmethod
    def fit(
        cls, chunks: Iterable[NDArray[np.floating]], *, scale: float = SCALE, num_ids: int = NUM_IDS
    ) -> FastTokenizer:
        """A tokenizer for chunks [T, D] of normalised actions.

        Every coefficient between the smallest and the largest one seen gets an id of its own, so that no chunk
        within that range loses a symbol.
        """
        coefficients = [
            np.rint(_cosines(len(c)) @ np.asarray(c, np.float64) * scale) for c in chunks
        ]
        if not coefficients:
            raise UserError("no action chunk to fit the action tokenizer on.")
        low = int(min(c.min() for c in coefficients))
        high = int(max(c.max() for c in coefficients))
        if high - low + 1 > num_ids:
            raise UserError(
                f"{high - low + 1} different coefficients do not fit into {num_ids} ids: lower the scale ({scale:g})."
            )
        alphabet = sorted({byte for n in range(high - low + 1) for byte in _spelled(chr(n))})
        trainer = trainers.BpeTrainer(
            vocab_size=num_ids,
            min_frequency=2,
            show_progress=False,
            special_tokens=[],
            initial_alphabet=alphabet,
            max_token_length=MAX_TOKEN_LENGTH,
        )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        texts = ("".join(chr(int(n) - low) for n in c.ravel()) for c in coefficients)
        tokenizer.train_from_iterator(texts, trainer=trainer)
        return cls(tokenizer, scale=scale, min_token=low, num_ids=num_ids)

    def encode(self, actions_TD: NDArray[np.floating]) -> list[int]:
        """Ids of a normalised chunk; coefficients below the fitted range are clipped, as in the original."""
        coefficients = _cosines(len(actions_TD)) @ np.asarray(actions_TD, np.float64)
        symbols = np.maximum(np.rint(coefficients * self.scale) - self.min_token, 0).astype(int)
        text = "".join(map(chr, symbols.ravel()))
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], steps: int, dim: int) -> NDArray[np.float64]:
        """Normalised chunk [T, D]; `Undecodable` where the ids do not spell exactly T x D coefficients."""
        if not ids:
            raise Undecodable("no action token")
        beyond = [i for i in ids if not 0 <= i < self.tokenizer.get_vocab_size()]
        if beyond:
            raise Undecodable(f"action token {beyond[0]} has no meaning")
        symbols = list(map(ord, self.tokenizer.decode(list(ids), skip_special_tokens=False)))
        if len(symbols) != steps * dim:
            raise Undecodable(f"{len(symbols)} coefficients instead of {steps} x {dim}")
        if 0xFFFD in symbols:
            raise Undecodable("a coefficient is cut in half")
        coefficients = (np.array(symbols) + self.min_token).reshape(steps, dim) / self.scale
        return _cosines(steps).T @ coefficients

    def survives(self, actions_TD: NDArray[np.floating]) -> bool:
        """Whether a chunk decodes after encoding: symbols outside the fitted alphabet vanish in BPE."""
        try:
            self.decode(self.encode(actions_TD), *actions_TD.shape)
        except Undecodable:
            return False
        return True

    def token_bytes(self) -> list[bytes]:
        """What each id spells, in bytes of UTF-8; empty for ids that encoding never gives.

        The public `fit` puts control characters into the alphabet as they are, which byte-level text never holds.
        """
        to_byte = {spelling: byte for byte, spelling in enumerate(_BYTE_SPELLING)}
        vocabulary = self.tokenizer.get_vocab()
        out = [b""] * (max(vocabulary.values()) + 1)
        for text, number in vocabulary.items():
            if all(character in to_byte for character in text):
                out[number] = bytes(to_byte[character] for character in text)
        return out


def _byte_spelling() -> list[str]:
    """How byte-level BPE writes each byte: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {byte: chr(byte) for byte in printable}
    spelled |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [spelled[byte] for byte in range(256)]


_BYTE_SPELLING = _byte_spelling()


def _spelled(character: str) -> list[str]:
    return [_BYTE_SPELLING[byte] for byte in character.encode()]


def read_answer(ids: Sequence[int], *, start: int, end: int, first: int, count: int) -> list[int]:
    """FAST ids in a generated id stream: from the first start marker (or the beginning) to the next end marker.

    Other ids inside are skipped, as in the original.
    """
    ids = list(ids)
    begin = ids.index(start) + 1 if start in ids else 0
    stop = ids.index(end, begin) if end in ids[begin:] else len(ids)
    return [i - first for i in ids[begin:stop] if first <= i < first + count]
