"""Which token may come next in a valid answer: an automaton over token ids, built from the codec.

The language: the fixed wording of `molmoact_data.text.prompts`, exactly one depth code per grid cell,
0 to 5 trace points in 0..255, H x D action strings, end of text. It holds token sequences exactly as the
tokenizer writes them, because a
model that is only asked for valid *text* may drift into spellings that it never saw in training.

An answer is a graph of pieces; each piece is a set of alternative token sequences (a trie). Text is cut into pieces
only where the tokenizer cuts too: before a space, around digits and around depth tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from molmoact_data.errors import UserError
from molmoact_data.labels.traces import GRID_MAX
from molmoact_data.schema import DEPTH_GRID_CODES
from molmoact_data.text import prompts, tokens

Stage = Literal["wording", "depth", "trace", "action"]
Encode: TypeAlias = Callable[[Sequence[str]], list[list[int]]]
"""Texts -> token ids of each, nothing added."""
State: TypeAlias = frozenset[tuple[int, int]]
"""Places (piece, trie node) that the tokens so far may have led to; more than one only after a digit."""


@dataclass(frozen=True)
class Trie:
    """Alternative token sequences. Node 0 is the root."""

    children: tuple[dict[int, int], ...]
    """Per node: token id -> node."""
    final: frozenset[int]
    """Nodes where a sequence ends."""
    longest: int
    """Tokens of the longest sequence."""


def build_trie(sequences: Sequence[Sequence[int]]) -> Trie:
    """A trie of non-empty token sequences."""
    children: list[dict[int, int]] = [{}]
    final = set()
    for sequence in sequences:
        assert len(sequence), "an empty piece would let the automaton skip it"
        node = 0
        for token in sequence:
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
            node = children[node][token]
        final.add(node)
    return Trie(tuple(children), frozenset(final), max(map(len, sequences)))


@dataclass(frozen=True)
class Piece:
    """One place of the answer."""

    trie: Trie
    stage: Stage
    next: tuple[int, ...]
    """Pieces that may follow; none after the last."""


@dataclass(frozen=True)
class Grammar:
    """The automaton. `start` is before the first token of the answer; `is_end` after end of text."""

    pieces: tuple[Piece, ...]
    _allowed: dict[State, dict[int, State]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def start(self) -> State:
        return frozenset({(0, 0)})

    def is_end(self, state: State) -> bool:
        """Nothing may follow."""
        return not self.successors(state)

    def successors(self, state: State) -> dict[int, State]:
        """Each token that may come next, and the state it leads to."""
        known = self._allowed.get(state)
        if known is None:
            found: dict[int, set[tuple[int, int]]] = {}
            for piece, node in state:
                for token, place in self._edges(piece, node):
                    found.setdefault(token, set()).add(place)
            known = {token: frozenset(places) for token, places in found.items()}
            self._allowed[state] = known
        return known

    def _edges(self, piece: int, node: int) -> list[tuple[int, tuple[int, int]]]:
        """Moves out of a trie node, and out of the root of what follows if a sequence may end here."""
        trie = self.pieces[piece].trie
        edges = [(token, (piece, child)) for token, child in trie.children[node].items()]
        if node in trie.final:
            for following in self.pieces[piece].next:
                edges += self._edges(following, 0)
        return edges

    def forced(self, state: State) -> tuple[list[int], State]:
        """The run of tokens that leave no choice from here on, and where it ends."""
        run: list[int] = []
        while len(successors := self.successors(state)) == 1:
            ((token, state),) = successors.items()
            run.append(token)
        return run, state

    def accepts(self, token_ids: Sequence[int]) -> bool:
        """Whether this is a whole valid answer."""
        state = self.start
        for token in token_ids:
            successors = self.successors(state)
            if token not in successors:
                return False
            state = successors[token]
        return self.is_end(state)

    def stage(self, state: State) -> Stage:
        """What the next token belongs to."""
        piece, node = min(state)
        trie = self.pieces[piece].trie
        if not trie.children[node] and self.pieces[piece].next:
            piece = self.pieces[piece].next[0]
        return self.pieces[piece].stage

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest answer, end of text included: the generation budget."""
        longest = [0] * len(self.pieces)
        for i in reversed(range(len(self.pieces))):  # pieces only ever point forwards
            after = max((longest[j] for j in self.pieces[i].next), default=0)
            longest[i] = self.pieces[i].trie.longest + after
        return longest[0]


@dataclass(frozen=True)
class AnswerShape:
    """What an answer holds; the robot decides `action_dim`, the checkpoint the rest."""

    action_dim: int
    chunk_size: int | None = 8
    """Steps per answer; None = one flat list (published pre-training and mid-training checkpoints)."""
    kind: prompts.SampleKind = "reasoning"
    num_images: int = 2
    num_arms: int = 1
    min_points: int = 0
    max_points: int = 5
    depth_codes: int = DEPTH_GRID_CODES
    codebook_size: int = tokens.NUM_DEPTH_TOKENS
    num_bins: int = tokens.NUM_ACTION_TOKENS
    wording: prompts.Wording = "released"

    def __post_init__(self) -> None:
        if not 0 <= self.min_points <= self.max_points or self.max_points < 1:
            raise UserError(
                f"a trace of {self.min_points} to {self.max_points} points does not exist"
            )
        if self.action_dim < 1 or (self.chunk_size is not None and self.chunk_size < 1):
            raise UserError(f"no action has {self.action_dim} x {self.chunk_size} values")


def build_grammar(shape: AnswerShape, encode: Encode, eos_id: int) -> Grammar:
    """The automaton of all valid answers of this shape, checked against the tokenizer on random ones."""
    grammar = _Builder(shape, encode, eos_id).build()
    rng = np.random.default_rng(0)
    for number in range(2):
        text = random_answer(
            shape, rng, num_points=max(1, shape.min_points, shape.max_points - number)
        )
        if not grammar.accepts([*encode([f" {text}"])[0], eos_id]):
            raise UserError(
                "this tokenizer joins text across the places where answers are cut (before spaces, around digits "
                f"and depth tokens), so decoding cannot be constrained with it. Example: {text[-120:]!r}"
            )
    return grammar


def random_answer(shape: AnswerShape, rng: np.random.Generator, *, num_points: int) -> str:
    """A valid answer, rendered by the prompt code."""
    steps = 1 if shape.chunk_size is None else shape.chunk_size
    bins = rng.integers(1, shape.num_bins + 1, (steps, shape.action_dim)).tolist()
    return prompts.answer(
        shape.kind,
        depth_codes=rng.integers(0, shape.codebook_size, shape.depth_codes).tolist(),
        trace=[rng.integers(0, GRID_MAX + 1, (num_points, 2)).tolist()] * shape.num_arms,
        action_bins=bins[0] if shape.chunk_size is None else bins,
        num_images=shape.num_images,
        wording=shape.wording,
    )


_MARK_TRACE = ((11, 22), (33, 44))
_MARKED = re.compile(r"\[\[11(, ?)22(\], ?\[)33, ?44\]\]")


class _Builder:
    """Renders one marked answer with the prompt code and turns it, part by part, into pieces."""

    def __init__(self, shape: AnswerShape, encode: Encode, eos_id: int) -> None:
        self.shape, self.encode, self.eos_id = shape, encode, eos_id
        self.pieces: list[Piece] = []
        self.numbers = build_trie(encode([str(n) for n in range(GRID_MAX + 1)]))
        depth = tokens.depth_tokens(shape.codebook_size)
        self.codes = build_trie(encode(depth))
        self.marks = np.ones((shape.chunk_size or 1, shape.action_dim), dtype=int).tolist()

    def build(self) -> Grammar:
        shape = self.shape
        marked_depth = [0] * shape.depth_codes
        actions = self.marks[0] if shape.chunk_size is None else self.marks
        text = " " + prompts.answer(
            shape.kind,
            depth_codes=marked_depth,
            trace=[_MARK_TRACE] * shape.num_arms,
            action_bins=actions,
            num_images=shape.num_images,
            wording=shape.wording,
        )
        before, found, after = text.partition(tokens.encode_depth(marked_depth))
        if found:
            self._literal(before)
            self._depth()
            text = after
        while match := _MARKED.search(text):
            self._literal(text[: match.start()].removesuffix(" "))
            text = self._trace(text[match.end() :], comma=match[1], between=match[2])
        before, found, after = text.partition(prompts.format_actions(actions))
        if found:
            self._literal(before.removesuffix(" "))
            self._actions(after)
        else:
            self._literal(text)
        self._add(build_trie([[self.eos_id]]), "wording")
        return Grammar(tuple(self.pieces))

    def _add(self, trie: Trie, stage: Stage, *, at: int | None = None) -> int:
        """Append a piece that follows the previous one (`at`: its own successor instead of the next)."""
        place = len(self.pieces)
        if place and not self.pieces[-1].next:
            last = self.pieces[-1]
            self.pieces[-1] = Piece(last.trie, last.stage, (place,))
        self.pieces.append(Piece(trie, stage, () if at is None else (at,)))
        return place

    def _literal(self, text: str) -> None:
        if text:
            self._add(build_trie(self.encode([text])), "wording")

    def _depth(self) -> None:
        self._add(build_trie(self.encode([tokens.DEPTH_START])), "depth")
        for _ in range(self.shape.depth_codes):
            self._add(self.codes, "depth")
        self._add(build_trie(self.encode([tokens.DEPTH_END])), "depth")

    def _trace(self, rest: str, *, comma: str, between: str) -> str:
        """The points and what closes them up to the next space; returns the text behind."""
        tail, space, behind = rest.partition(" ")
        shape, first = self.shape, len(self.pieces)
        literal = {name: build_trie(self.encode([text])) for name, text in
                   {"open": " [[", "comma": comma, "between": between, "close": f"]]{tail}"}.items()}  # fmt: skip
        point = 4  # pieces per point: opening or separator, x, comma, y
        closing = first + point * shape.max_points
        for number in range(shape.max_points):
            self._add(literal["between" if number else "open"], "trace")
            for trie in (self.numbers, literal["comma"], self.numbers):
                self._add(trie, "trace")
            following = [] if number + 1 == shape.max_points else [first + point * (number + 1)]
            if number + 1 >= shape.min_points:
                following.append(closing)
            self.pieces[-1] = Piece(self.numbers, "trace", tuple(following))
        self._add(literal["close"], "trace")
        if shape.min_points == 0:
            self._allow_empty_trace(first, closing, f" []{tail}")
        return f"{space}{behind}"

    def _allow_empty_trace(self, first: int, closing: int, text: str) -> None:
        """A second way from the piece before the trace to the piece behind it."""
        behind = closing + 2
        empty = self._add(build_trie(self.encode([text])), "trace", at=behind)
        close = self.pieces[closing]
        self.pieces[closing] = Piece(close.trie, close.stage, (behind,))
        before = self.pieces[first - 1]
        self.pieces[first - 1] = Piece(before.trie, before.stage, (first, empty))

    def _actions(self, tail: str) -> None:
        """One piece per value, with the brackets and commas that touch it."""
        flat = self.shape.chunk_size is None
        opening, closing = ("[", "]") if flat else ("[[", "]]")
        num_rows, num_columns = len(self.marks), len(self.marks[0])
        suffix_end, space, behind = tail.partition(" ")
        tries: dict[tuple[str, str], Trie] = {}
        for row in range(num_rows):
            for column in range(num_columns):
                first, last = column == 0, column == num_columns - 1
                prefix = " " + (opening if first and row == 0 else "[" if first else "")
                suffix = ("]," if last else ",") if (row, last) != (num_rows - 1, True) else ""
                suffix = suffix or f"{closing}{suffix_end}"
                if (prefix, suffix) not in tries:
                    strings = [
                        f"{prefix}{t}{suffix}"
                        for t in tokens.action_tokens()[: self.shape.num_bins]
                    ]
                    tries[prefix, suffix] = build_trie(self.encode(strings))
                self._add(tries[prefix, suffix], "action")
        self._literal(f"{space}{behind}")
