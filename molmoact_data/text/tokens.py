"""Every special-token string of the model, and the action-token table. Text only: no tokenizer is loaded.

Depth: `<DEPTH_START>` + one `<DEPTH_k>` per code (row-major grid) + `<DEPTH_END>`, no separators.
Actions: bin d (1..256) is spelled as the byte-level string of Qwen2 id 151643 - d. To the language model
these strings are ordinary text. They must never be NFKC-normalised (118 of them would change).
"""

from __future__ import annotations

import bisect
import hashlib
import json
import re
import sys
from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Literal

from molmoact_data.errors import UserError

DEPTH_START = "<DEPTH_START>"
DEPTH_END = "<DEPTH_END>"
NUM_DEPTH_TOKENS = 128

IM_START = "<im_start>"
IM_END = "<im_end>"
IM_PATCH = "<im_patch>"
IM_COL = "<im_col>"
IMAGE = "<|image|>"
IM_LOW = "<im_low>"

NUM_ACTION_TOKENS = 256

_DEPTH_CODE = re.compile(r"<DEPTH_(0|[1-9][0-9]{0,5})>")
"""As `depth_token` spells it. No codebook has seven digits; a longer number is no token but text."""

TokenKind = Literal["action", "out_of_range", "unknown"]


def depth_token(code: int) -> str:
    """The token of one codebook id."""
    return f"<DEPTH_{code}>"


def depth_tokens(codebook_size: int = NUM_DEPTH_TOKENS) -> tuple[str, ...]:
    """The tokens of a codebook, in id order."""
    return tuple(depth_token(code) for code in range(codebook_size))


def image_tokens() -> tuple[str, ...]:
    """The six image tokens in vocabulary order; they sit at embedding_size + 0..5."""
    return (IM_START, IM_END, IM_PATCH, IM_COL, IMAGE, IM_LOW)


def filler_token(index: int) -> str:
    """The token that pads the vocabulary up to the embedding size."""
    return f"|<EXTRA_TOKENS_{index}>|"


def encode_depth(codes: Sequence[int]) -> str:
    """Codebook ids -> depth string."""
    return DEPTH_START + "".join(depth_token(code) for code in codes) + DEPTH_END


def depth_places(text: str) -> Iterator[tuple[int, int]]:
    """Where every depth span lies, both marks included. Reads each character about once, whatever the text is."""
    start = text.find(DEPTH_START)
    while start >= 0:
        end = text.find(DEPTH_END, start + len(DEPTH_START))
        if end < 0:
            return
        yield start, end + len(DEPTH_END)
        start = text.find(DEPTH_START, end + len(DEPTH_END))


def depth_spans(text: str) -> list[str]:
    """What stands between every `<DEPTH_START>` and the next `<DEPTH_END>`."""
    return [
        text[start + len(DEPTH_START) : end - len(DEPTH_END)] for start, end in depth_places(text)
    ]


def decode_depth(text: str) -> list[list[int]]:
    """The codes of every depth span in a text; the inverse of `encode_depth`."""
    return [[int(code) for code in _DEPTH_CODE.findall(span)] for span in depth_spans(text)]


def codes_in(text: str) -> list[list[int]]:
    """Codes as a person gives them: depth spans with nothing between their tokens, or plain integers (one list).

    Raises `UserError` for anything else, and for spans of different length.
    """
    spans = depth_spans(text)
    for residue in map(depth_residue, spans):
        if residue:
            raise UserError(f"between the depth tokens stands {residue[:60]!r}.")
    rows = decode_depth(text) if spans else [_plain_integers(text)]
    if len({len(row) for row in rows}) > 1:
        raise UserError(f"the depth spans differ in length: {[len(row) for row in rows]}.")
    return rows


def _plain_integers(text: str) -> list[int]:
    numbers = re.findall(r"[0-9]+", text)
    if not numbers or re.search(r"[^\s,\[\]0-9]", text):
        raise UserError(
            "no codes found: write <DEPTH_START><DEPTH_0>...<DEPTH_END>, or integers such as '12 5 99'."
        )
    for number in numbers:
        if len(number) > 6:
            raise UserError(f"{number[:20]}... is no depth code: it has {len(number)} digits.")
    return [int(number) for number in numbers]


def depth_residue(span: str) -> str:
    """What a depth span holds besides depth tokens; empty for a well-formed one."""
    return _DEPTH_CODE.sub("", span)


@cache
def action_tokens() -> tuple[str, ...]:
    """The 256 action strings; index d - 1 is bin d."""
    table = resources.files("molmoact_data.text").joinpath("action_tokens.json")
    return tuple(json.loads(table.read_text(encoding="utf-8")))


def action_token(action_bin: int) -> str:
    """The string of bin 1..256. Raises ValueError outside."""
    if not 1 <= action_bin <= NUM_ACTION_TOKENS:
        raise ValueError(f"action bin {action_bin} has no token: bins are 1..{NUM_ACTION_TOKENS}")
    return action_tokens()[action_bin - 1]


def action_bin(token: str) -> int | None:
    """The bin of an action string; None when it is not one of the 256."""
    return action_bins().get(token)


@cache
def action_bins() -> dict[str, int]:
    """Action string -> bin 1..256."""
    return {token: index + 1 for index, token in enumerate(action_tokens())}


def classify_action_token(token: str) -> TokenKind:
    """Tells a Qwen2 vocabulary string that is no action token from a string that is in no vocabulary.

    The reference decodes the first as bin 256 and the second as bin 1, so parsing like it needs to know.
    """
    if token in action_bins():
        return "action"
    known = _known_token_hashes()
    wanted = _token_hash(token)
    place = bisect.bisect_left(known, wanted)
    return "out_of_range" if place < len(known) and known[place] == wanted else "unknown"


def _token_hash(token: str) -> int:
    spelled = token.encode(errors="surrogatepass")  # JSON can hold half a character
    return int.from_bytes(hashlib.blake2b(spelled, digest_size=4).digest(), "little")


@cache
def _known_token_hashes() -> array[int]:
    """Sorted 32-bit hashes of the Qwen2 tokens with id below 151387 (`scripts/hash_qwen2_vocabulary.py`)."""
    hashes = array("I")
    hashes.frombytes(
        resources.files("molmoact_data.text").joinpath("qwen2_known_tokens.bin").read_bytes()
    )
    if sys.byteorder == "big":
        hashes.byteswap()
    return hashes
