"""A record's numbers -> the question and the answer a model sees, and a generated answer -> numbers.

Wording is protocol: `released` is what the published models were trained on ("these information" is
literal), `reference` is what the public fine-tuning code writes. Traces are [x, y] on the 0..255 grid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError, unknown_name
from molmoact_data.labels.instructions import plain_instruction
from molmoact_data.labels.traces import GRID_MAX
from molmoact_data.schema import DEPTH_GRID_CODES
from molmoact_data.text import tokens

SampleKind = Literal["reasoning", "trajectory", "action", "depth", "trace"]
Wording = Literal["released", "reference"]
Trace = Sequence[Sequence[int]]
"""Points of one arm, each (x, y)."""
ActionBins = Sequence[Sequence[int]] | Sequence[int] | NDArray[np.integer]
"""A chunk [H][D] or one action [D] of bins 1..256."""
Given = TypeVar("Given")

_OTHER_VIEWS = ", along with other images from different camera views as additional information"
LONGEST_ANSWER = 1_000_000
"""Characters; one of two images and eight actions has some 3,000."""
_INNER_BLOCK = re.compile(r"\[([^\[\]]*)\]")
OUTER_BLOCK = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)


def question(
    instruction: str, kind: SampleKind, num_images: int, *, wording: Wording = "released"
) -> str:
    """The user's text without role words. The reference asks about "the first image" even for one image.

    The wording of `depth`, `trace` and `action` is ours: the published auxiliary rows are not public as text, and
    published models give no action without its reasons.
    Raises `UserError` for an instruction that holds a special token.
    """
    _check_kind(kind)
    instruction = plain_instruction(instruction)
    several = num_images > 1 or wording == "reference"
    first = "the first image" if several else "this image"
    views = _OTHER_VIEWS if several else ""
    if kind == "trajectory":
        where = "the first image" if several else "the image"
        return (
            f"The task is {instruction}. Notice that the trajectory of the end effector is annotated on "
            f"{where}. Based on the trajectory annotated on the image{views}, what is the action that the "
            "robot should take?"
        )
    if kind == "action":
        return f"The task is {instruction}. What is the action that the robot should take?"
    if kind == "depth":
        return f"The task is {instruction}. What is the depth map for {first}?"
    scope = " in the first image" if several else ""
    if kind == "trace":
        return f"The task is {instruction}. What is the trajectory of the end effector{scope}?"
    depth = "the first image" if several else "the image"
    return (
        f"The task is {instruction}. What is the action that the robot should take. To figure out the "
        f"action that the robot should take to {instruction}, let's think through it step by step. First, "
        f"what is the depth map for {first}? Second, what is the trajectory of the end effector{scope}? "
        f"Based on the depth map of {depth} and the trajectory of the end effector{scope}{views}, what is "
        "the action that the robot should take?"
    )


def answer(
    kind: SampleKind,
    *,
    depth_codes: Sequence[int] | None = None,
    trace: Sequence[Trace] | None = None,
    action_bins: ActionBins | None = None,
    num_images: int,
    wording: Wording = "released",
) -> str:
    """The assistant's text without the leading space and without EOS.

    `trace` is per arm, as in the record. `action_bins` [H][D] gives a chunk, a flat [D] a single action
    (the published pre-training and mid-training rows). Raises ValueError where a needed part is absent.
    """
    _check_kind(kind)
    several = num_images > 1 and wording == "released"
    actions = None if action_bins is None else format_actions(action_bins)
    if kind == "trajectory":
        return (
            "Based on the image and the annotated trajectory of the end effector, the action that the robot "
            f"should take is {_needed(actions, 'action_bins', kind)}."
        )
    if kind == "action":
        needed = _needed(actions, "action_bins", kind)
        return f"The action that the robot should take is {needed}."
    image = "the first image" if several else "the image"
    sentences = []
    if kind in ("reasoning", "depth"):
        depth = tokens.encode_depth(_needed(depth_codes, "depth_codes", kind))
        sentences.append(f"The depth map of {image} is {depth}.")
    if kind in ("reasoning", "trace"):
        arms = _needed(trace, "trace", kind)
        scope = " in the first image" if several else ""
        sentences += _trace_sentences(arms, scope, wording)
    if kind == "reasoning":
        connective = "this information" if wording == "reference" else "these information"
        views = _OTHER_VIEWS if several else ""
        action = _needed(actions, "action_bins", kind)
        sentences.append(
            f"Based on {connective}{views}, the action that the robot should take is {action}."
        )
    return " ".join(sentences)


def check_speakable(
    where: str, *, depth_codes: int | None, codebook_size: int, num_bins: int | None
) -> None:
    """Raise `UserError` for labels that the model has no words for; None = not there, or not asked about.

    The vocabulary is fixed: 100 codes to a picture out of 128, and 256 action bins at most. A code without a token of
    its own would be trained letter by letter, as text.
    """
    if num_bins is not None and num_bins > tokens.NUM_ACTION_TOKENS:
        raise UserError(
            f"{where}: {num_bins} action bins have no tokens (there are {tokens.NUM_ACTION_TOKENS}). Run "
            f"`molmoact retokenize --action-bins {tokens.NUM_ACTION_TOKENS}` first."
        )
    if depth_codes is not None and depth_codes != DEPTH_GRID_CODES:
        raise UserError(
            f"{where}: {depth_codes} depth codes per frame, the model says {DEPTH_GRID_CODES}. Run `molmoact "
            "preprocess` with a VQ-VAE of the released grid, or do without depth."
        )
    if depth_codes is not None and codebook_size > tokens.NUM_DEPTH_TOKENS:
        raise UserError(
            f"{where}: a codebook of {codebook_size}, the model has {tokens.NUM_DEPTH_TOKENS} depth tokens. Run "
            "`molmoact preprocess` with a VQ-VAE of that many codes, or do without depth."
        )


def format_trace(trace: Trace) -> str:
    """`[[x,y],[x,y]]`, no spaces."""
    return "[" + ",".join(f"[{x},{y}]" for x, y in trace) + "]"


def format_actions(action_bins: ActionBins) -> str:
    """`[t1, t2]` for a flat list of bins, `[[t1, t2], [t1, t2]]` for a chunk."""
    parts = [
        format_actions(part) if isinstance(part, Sequence) else tokens.action_token(int(part))
        for part in np.asarray(action_bins).tolist()
    ]
    return "[" + ", ".join(parts) + "]"


def _trace_sentences(arms: Sequence[Trace], scope: str, wording: Wording) -> list[str]:
    """One sentence per arm. The reference writes a single arm twice, as left and right."""
    if not arms or any(len(trace) == 0 for trace in arms):
        raise ValueError(
            "an arm has no trace: such a frame has no trace sentence and no sample of this kind"
        )
    texts = [format_trace(trace) for trace in arms]
    if wording == "reference":
        texts = [str([list(map(int, xy)) for xy in trace]) for trace in arms]
        texts = texts * 2 if len(texts) == 1 else texts
    names = {1: [""], 2: ["left ", "right "]}.get(
        len(texts), [f"number {arm + 1} " for arm in range(len(texts))]
    )
    return [
        f"The trajectory of the {name}end effector{scope} is {text}."
        for name, text in zip(names, texts, strict=True)
    ]


def _needed(value: Given | None, name: str, kind: str) -> Given:
    if value is None:
        raise ValueError(f"a {kind} answer needs {name}")
    return value


def _check_kind(kind: str) -> None:
    if kind not in get_args(SampleKind):
        raise unknown_name("sample kind", kind, get_args(SampleKind))


@dataclass(frozen=True)
class Parsed:
    """What a generated text says. Problems name everything that was dropped or replaced, in words."""

    depth_codes: list[list[int]]
    """Per depth span, its codes."""
    traces: list[list[list[float]]]
    """Well-formed traces, each a list of [x, y]; whole numbers where the text has whole numbers."""
    action_bins: list[list[int]]
    """Rows of D bins 1..256; an unknown string became 1 and an out-of-range token 256, as in the reference."""
    problems: list[str]


def parse(
    text: str,
    *,
    action_dim: int,
    codes_per_image: int = DEPTH_GRID_CODES,
    codebook_size: int = tokens.NUM_DEPTH_TOKENS,
    num_bins: int = tokens.NUM_ACTION_TOKENS,
) -> Parsed:
    """Read a generated answer the way the released models' own parser does, and say what was wrong."""
    if len(text) > LONGEST_ANSWER:
        why = f"the text has {len(text)} characters, no answer has more than {LONGEST_ANSWER}: not read"
        return Parsed([], [], [], [why])
    problems: list[str] = []
    depth_codes = _parse_depth(text, codes_per_image, codebook_size, problems)
    traces = _parse_traces(text, problems)
    action_bins = _parse_actions(text, action_dim, num_bins, problems)
    if text.count("[") != text.count("]"):
        problems.append("unbalanced brackets: the text was cut off or is malformed")
    return Parsed(depth_codes, traces, action_bins, problems)


def _parse_depth(
    text: str, codes_per_image: int, codebook_size: int, problems: list[str]
) -> list[list[int]]:
    spans = tokens.decode_depth(text)
    for span, codes in zip(tokens.depth_spans(text), spans, strict=True):
        if len(codes) != codes_per_image:
            problems.append(f"depth span has {len(codes)} codes, expected {codes_per_image}")
        if codes and max(codes) >= codebook_size:
            problems.append(f"depth code {max(codes)} is outside the codebook of {codebook_size}")
        if residue := tokens.depth_residue(span):
            problems.append(f"depth span holds other text: {residue[:40]!r}")
    if text.count(tokens.DEPTH_START) != len(spans):
        problems.append("depth span without an end")
    return spans


def _parse_traces(text: str, problems: list[str]) -> list[list[list[float]]]:
    traces = []
    for block in OUTER_BLOCK.findall(text):
        groups = [_split(group) for group in _INNER_BLOCK.findall(block[1:-1])]
        if not any(any(_NUMBER.fullmatch(part) for part in group) for group in groups):
            continue
        if not all(len(g) == 2 and all(map(_NUMBER.fullmatch, g)) for g in groups):
            problems.append(f"malformed trace dropped: {block[:80]}")
            continue
        trace = [[_number(part) for part in group] for group in groups]
        if not all(math.isfinite(value) for xy in trace for value in xy):
            problems.append(f"malformed trace dropped: {block[:80]}")  # not a number in JSON either
            continue
        if not all(0 <= value <= GRID_MAX for xy in trace for value in xy):
            problems.append(f"trace leaves 0..{GRID_MAX}: {block[:80]}")
        traces.append(trace)
    return traces


def _parse_actions(
    text: str, action_dim: int, num_bins: int, problems: list[str]
) -> list[list[int]]:
    rows: list[list[int]] = []
    for group in _INNER_BLOCK.findall(text):
        strings = _split(group)
        if group.isascii() or all(map(_NUMBER.fullmatch, strings)):
            continue
        if len(strings) != action_dim:
            problems.append(f"action row has {len(strings)} values, expected {action_dim}: dropped")
            continue
        rows.append(
            [
                _bin_like_reference(s, len(rows), d, num_bins, problems)
                for d, s in enumerate(strings)
            ]
        )
    if not rows:
        problems.append(f"no action row of {action_dim} values")
    return rows


def _bin_like_reference(
    token: str, row: int, dimension: int, num_bins: int, problems: list[str]
) -> int:
    """The bin of a token; the reference clips out-of-range ids to one end and unknown strings to the other."""
    kind = tokens.classify_action_token(token)
    found = tokens.action_bins().get(token)
    if found is not None and found <= num_bins:
        return found
    if found is not None:
        kind = "out_of_range"
    end = num_bins if kind == "out_of_range" else 1
    words = "out-of-range" if kind == "out_of_range" else "unknown"
    problems.append(
        f"{words} action token {token!r} at row {row}, dimension {dimension}: read as bin {end}"
    )
    return end


def _split(group: str) -> list[str]:
    return [part.strip().strip("'\"").strip() for part in group.split(",")]


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value  # infinity is no integer
