"""Molmo2 as a gripper pointer (Molmo2-4B by default): a picture at a time with tiles, or many frames as a clip.

Half the size of Molmo-7B-D. Answers name pictures, times and things and count in thousandths (`timed_answers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from molmoact_data.labels.pointing import CLIP_PROMPT, ClipConfig, GripperPoints
from molmoact_data.teachers.answers import (
    Answer,
    ClipModel,
    answer_confidence,
    tokens_of,
    unit_from_percent,
)
from molmoact_data.teachers.molmo import MolmoPointer, MolmoSettings
from molmoact_data.teachers.published import MOLMO2_4B, MOLMO2_WEIGHTS, Published
from molmoact_data.teachers.timed_answers import (
    TimedPoint,
    is_told,
    points_of_clip,
    points_of_picture,
)


@dataclass(frozen=True)
class Molmo2Settings(MolmoSettings):
    """What a run says of this teacher; fields are `TeacherConfig`'s."""

    clip_frames: int = 1
    clip_overlap: int = 4
    clip_fps: float = 2.0
    clip_prompt: str = CLIP_PROMPT


class Molmo2Pointer(MolmoPointer):
    """As `MolmoPointer`, with the second family's network and words."""

    Settings = Molmo2Settings
    family = "molmo2"
    default: ClassVar[Published] = MOLMO2_4B
    known: ClassVar[Mapping[str, Published]] = MOLMO2_WEIGHTS

    @classmethod
    def load(cls, settings: MolmoSettings, device: str) -> Molmo2Pointer:
        """As a run asks for it."""
        assert isinstance(settings, Molmo2Settings)
        s, where, arms = settings, settings.pointer_checkpoint, settings.arms
        clips = ClipConfig.of(s.clip_frames, s.clip_overlap, s.clip_fps, s.clip_prompt)
        if clips is None:
            return cls(where, device=device, num_arms=arms)
        return Molmo2ClipPointer(where, clips, device=device, num_arms=arms)

    def read(self, text: str) -> list[tuple[float, float]]:
        """The points of an answer, whole or in the making, per cent of the picture."""
        return points_of_picture(text, streaming=True)


class Molmo2ClipPointer(Molmo2Pointer):
    """`ClipPointer`: the frames of a clip are told to be 1 / `clips.fps` seconds apart, whatever they are.

    Molmo2 was trained to answer twice a second, so frames and answers are one to one. Confidence is that of each
    point's own digits.
    """

    def __init__(
        self,
        checkpoint: str | None,
        clips: ClipConfig,
        *,
        device: str = "auto",
        num_arms: int = 1,
    ) -> None:
        """As `MolmoPointer`."""
        super().__init__(checkpoint, device=device, num_arms=num_arms)
        self.clips = clips

    def describe(self) -> dict[str, str]:
        """`name`, `revision` and `licence`, and what a clip's frames are told."""
        return {**super().describe(), "clips": f"told at {self.clips.fps:g} frames per second"}

    def point_clip(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
        """One question about N frames, RGB uint8 [N,H,W,3] in order; NaN where the answer tells no point."""
        times_s = [frame / self.clips.fps for frame in range(len(rgb_NHWC))]
        answer = cast(ClipModel, self.model).answer_clip(
            list(rgb_NHWC),
            times_s,
            prompt,
            is_complete=is_told,
            max_new_tokens=longest_answer(len(rgb_NHWC), self.num_arms),
        )
        # Not `answer.text`: places in it are those of the tokens.
        points_NA = points_of_clip("".join(answer.tokens), times_s, self.num_arms)
        nothing = (np.nan, np.nan)
        percent_NA2 = np.array([[(p.x, p.y) if p else nothing for p in row] for row in points_NA])
        confidence_NA = [
            [point_confidence(answer, p) if p else 0.0 for p in row] for row in points_NA
        ]
        return GripperPoints(
            unit_from_percent(percent_NA2, (rgb_NHWC.shape[1], rgb_NHWC.shape[2])),
            np.array(confidence_NA, np.float32),
            tokens_of([answer]),
        )


def longest_answer(num_frames: int, num_arms: int) -> int:
    """Tokens that tell every arm in every frame, and some words around it.

    `123.5` and `;` are six tokens, ` 1 635 442` is ten, and a larger number of a thing two more (Qwen spells digits).
    """
    return 64 + num_frames * (6 + 12 * num_arms)


def point_confidence(answer: Answer, point: TimedPoint) -> float:
    """`answer_confidence` over the tokens that spell x and y of one point."""
    stops = np.cumsum([len(token) for token in answer.tokens])
    starts = stops - [len(token) for token in answer.tokens]
    first, last = point.span
    rows = np.flatnonzero((starts < last) & (stops > first))
    return answer_confidence(
        [answer.tokens[row] for row in rows], [answer.logprobs[row] for row in rows]
    )
