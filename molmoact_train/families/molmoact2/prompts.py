"""The sentences of MolmoAct2: what is asked about a robot, and what is answered. Pure text, no ids.

The quoted strings are the released protocol; a checkpoint understands no others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from molmoact_data.labels.instructions import plain_instruction

Style: TypeAlias = Literal["robot_action", "robot_depth", "robot_depth_action"]
STYLES: tuple[Style, ...] = ("robot_action", "robot_depth", "robot_depth_action")

IMAGE = "<|image|>"
TURN_START, TURN_END, PADDING = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SETUP = ("<setup_start>", "<setup_end>")
CONTROL = ("<control_start>", "<control_end>")
STATE = ("<state_start>", "<state_end>")
ACTION = ("<action_start>", "<action_end>")
DEPTH = ("<depth_start>", "<depth_end>")
ACTION_OUTPUT, DEPTH_OUTPUT = "<action_output>", "<depth_output>"
TRIGGERS: dict[Style, str] = {
    "robot_action": ACTION_OUTPUT,
    "robot_depth": DEPTH_OUTPUT,
    "robot_depth_action": DEPTH_OUTPUT + ACTION_OUTPUT,
}
_ASKED: dict[Style, str] = {
    "robot_action": "what action should the robot take to complete the task?",
    "robot_depth": "what is the depth map of the main image?",
    "robot_depth_action": "first predict the depth map of the main image and then predict the action the robot "
    "should take to complete the task?",
}
NUM_STATES, NUM_ACTIONS, NUM_DEPTHS = 256, 2048, 128


def state_token(i: int) -> str:
    return f"<state_{i}>"


def action_token(i: int) -> str:
    return f"<action_{i}>"


def depth_token(i: int) -> str:
    return f"<depth_{i}>"


def numbered(kind: Literal["state", "action", "depth"], values: Sequence[int]) -> str:
    """`<kind_start><kind_i>...<kind_end>`."""
    return f"<{kind}_start>" + "".join(f"<{kind}_{int(i)}>" for i in values) + f"<{kind}_end>"


def wrapped(text: str, markers: tuple[str, str], *, wanted: bool) -> str:
    """`text` between its markers; empty text, `wanted` false or text that has them already: as it is."""
    if not text or not wanted or (text.startswith(markers[0]) and text.endswith(markers[1])):
        return text
    return markers[0] + text + markers[1]


def images_part(count: int) -> str:
    """One image is unnamed, several are `Image 1`, `Image 2`, ...; nothing stands between them."""
    if count == 1:
        return IMAGE
    return "".join(f"Image {number}{IMAGE}" for number in range(1, count + 1))


def prompt(
    style: Style,
    task: str,
    *,
    setup: str,
    control: str,
    state_bins: Sequence[int] | None,
    num_images: int,
    setup_tokens: bool = True,
    control_tokens: bool = True,
) -> str:
    """Everything before the answer, the trigger included; `task` is used as it is given, and holds no special token."""
    task = plain_instruction(task)
    state = ""
    if state_bins is not None and len(state_bins):
        state = f" The current state of the robot is {numbered('state', state_bins)}."
    sentence = (
        f"The task is to {task}. The setup is {wrapped(setup, SETUP, wanted=setup_tokens)}.{state} "
        f"The expected control mode is {wrapped(control, CONTROL, wanted=control_tokens)}. "
        f"Given these, {_ASKED[style]}"
    )
    return (
        f"{images_part(num_images)}{TURN_START}user\n{sentence}{TURN_END}\n"
        f"{TURN_START}assistant\n{TRIGGERS[style]}"
    )


def answer(*, depth_codes: Sequence[int] | None, action_ids: Sequence[int] | None) -> str:
    """Depth, then actions, each where there is one; the closing `<|im_end|>` is the tokenizer's."""
    text = "" if depth_codes is None else numbered("depth", depth_codes)
    return text if action_ids is None else text + numbered("action", action_ids)


def state_bins(normalised: NDArray[np.floating], count: int = NUM_STATES) -> NDArray[np.int64]:
    """Bins 0..count-1 of values clipped to [-1, 1], rounded half to even."""
    values = np.asarray(normalised, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("a state is not finite: it has no bin")
    scaled = (np.clip(values, -1, 1) + np.float32(1)) / np.float32(2) * np.float32(count - 1)
    return np.rint(scaled).astype(np.int64).reshape(-1)


_SURROUNDING = "\"'`“”‘’[](){}"
_PREFIX = re.compile(
    r"^(?:(?:language instruction|language_instruction|instruction|task|goal)\s*[:\-]\s*"
    r"|(?:the|your) task is to\s+)",
    re.IGNORECASE,
)
_PUNCTUATION = ".,!?;:…"
_CLOSERS = "\"'”’)]}"


def normalise_task(text: str) -> str:
    """An instruction as the released models were trained to read it: one lower-case clause, no trappings."""
    text = " ".join(text.split())
    before = None
    while text != before:
        before = text
        text = text.strip().strip(_SURROUNDING).strip()
        text = _PREFIX.sub("", text, count=1).strip()
        for characters in (_PUNCTUATION, _CLOSERS, _PUNCTUATION):
            text = text.rstrip(characters).rstrip()
    sentences = [part.strip() for part in re.split(r"[.!?]+", text) if part.strip()]
    return ("; ".join(sentences) if len(sentences) > 1 else text).lower()


def sequence_budget(
    num_images: int, state_dim: int, action_dim: int, horizon: int, *, with_action_tokens: bool
) -> int:
    """LeRobot's length rule, a multiple of 64 tokens; what is not known (0) counts as two images or one number."""
    num_images, action_dim, horizon = num_images or 2, action_dim or 1, horizon or 1
    tokens = 196 * num_images + 80 + 32 + state_dim + 32
    if with_action_tokens:
        tokens += 4 + horizon * max(6, -(-95 * action_dim // 100))
    return -(-tokens // 64) * 64
