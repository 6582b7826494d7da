"""Writing a discrete answer: action tokens under the grammar, or freely as the original does.

Under the grammar an answer always spells exactly H x D coefficients: each token stands for some bytes of UTF-8, so
what may follow is decided by how many symbols are complete and whether one is begun.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from molmoact_data.policies import PredictionFailed
from molmoact_train.families.molmoact2.decoding import Decoding
from molmoact_train.families.molmoact2.fast import FastTokenizer

_ASCII, _CONTINUES, _OPENS = range(0x80), range(0x80, 0xC0), range(0xC2, 0xE0)


@dataclass(frozen=True)
class ActionGrammar:
    """Per FAST id and per state (0 = between symbols, 1 = a symbol is begun): what it does."""

    valid: NDArray[np.bool_]
    """[2, ids]."""
    symbols: NDArray[np.int64]
    """[2, ids] symbols completed."""
    begun: NDArray[np.int64]
    """[2, ids] the state afterwards."""

    @classmethod
    def of(cls, tokenizer: FastTokenizer, num_ids: int) -> ActionGrammar:
        """From the bytes of the tokenizer's ids; ids beyond them mean nothing and are never allowed."""
        spelled = tokenizer.token_bytes()[:num_ids]
        spelled += [b""] * (num_ids - len(spelled))
        steps = [[_read(text, begun) for text in spelled] for begun in (0, 1)]
        table = np.array([[s or (0, 0) for s in row] for row in steps])
        valid = np.array([[s is not None for s in row] for row in steps])
        return cls(valid, table[..., 0], table[..., 1])

    def allowed(self, begun: int, missing: int) -> NDArray[np.bool_]:
        """[ids]: which may follow where `missing` symbols are still to be completed."""
        after = missing - self.symbols[begun]
        return self.valid[begun] & (after >= 0) & ((after > 0) | (self.begun[begun] == 0))


def _read(text: bytes, begun: int) -> tuple[int, int] | None:
    """(symbols completed, state afterwards); None where the bytes cannot stand here."""
    if not text:
        return None
    completed = 0
    for byte in text:
        if begun and byte in _CONTINUES:
            completed, begun = completed + 1, 0
        elif not begun and byte in _ASCII:
            completed += 1
        elif not begun and byte in _OPENS:
            begun = 1
        else:
            return None
    return completed, begun


def write_actions(
    decoding: Decoding,
    grammar: ActionGrammar,
    pending: list[list[int]],
    *,
    start: int,
    first: int,
    num_symbols: int,
) -> list[list[int]]:
    """FAST ids per row, the most likely valid one at each place; `pending` tokens are fed before the answer."""
    rows = range(len(pending))
    pending = [[*ids, start] for ids in pending]
    answers: list[list[int]] = [[] for _ in rows]
    missing, begun = [num_symbols for _ in rows], [0 for _ in rows]
    count = grammar.valid.shape[1]
    while any(missing):
        logits = decoding.logits(decoding.feed(pending), slice(first, first + count))
        may = np.stack([grammar.allowed(b, m) for b, m in zip(begun, missing, strict=True)])
        stuck = [r for r in rows if missing[r] and not may[r].any()]
        if stuck:
            raise PredictionFailed("no_valid_token", f"{missing[stuck[0]]} coefficients are left")
        forbidden = torch.from_numpy(~may).to(logits.device)
        chosen = logits.masked_fill(forbidden, -torch.inf).argmax(dim=-1).tolist()
        pending = [[] for _ in rows]
        for r in rows:
            if missing[r]:
                answers[r].append(chosen[r])
                pending[r] = [first + chosen[r]]
                missing[r] -= int(grammar.symbols[begun[r], chosen[r]])
                begun[r] = int(grammar.begun[begun[r], chosen[r]])
    return answers


def write_freely(
    decoding: Decoding, pending: list[int], *, eos_id: int, max_tokens: int
) -> list[int]:
    """The most likely token of the whole vocabulary until EOS, which is not returned; one row."""
    written: list[int] = []
    while len(written) < max_tokens:
        token = int(decoding.logits(decoding.feed([pending])).argmax())
        if token == eos_id:
            return written
        written.append(token)
        pending = [token]
    raise PredictionFailed("no_end", f"the answer has no end after {max_tokens} tokens")
