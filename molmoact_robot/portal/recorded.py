"""Stepping through a recorded episode: what was done beside what the model would do. No page in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.outputs.output import Output
from molmoact_data.outputs.recorded import RecordedFrame, recorded_frames
from molmoact_data.pictures.overlay import draw_trace
from molmoact_data.policies import ActionChunk, Policy

Rgb = NDArray[np.uint8]


@dataclass(frozen=True)
class Beside:
    """One frame of an episode and the answer of the model to it."""

    recorded: RecordedFrame
    answer: ActionChunk

    @property
    def recorded_picture(self) -> Rgb:
        """The external camera with the labelled path."""
        return _drawn(next(iter(self.recorded.observation.images.values())), self.recorded.trace_P2)

    @property
    def answered_picture(self) -> Rgb:
        """The same with the path that the model plans."""
        return _drawn(next(iter(self.recorded.observation.images.values())), self.answer.trace_P2)

    @property
    def difference_HD(self) -> NDArray[np.float32]:
        """Answered minus recorded, as far as was recorded."""
        steps = min(len(self.recorded.actions_HD), len(self.answer.actions_HD))
        return self.answer.actions_HD[:steps] - self.recorded.actions_HD[:steps]

    def line(self) -> str:
        """For people: where we are, and how far the answer is from what was done."""
        error = float(np.abs(self.difference_HD).mean())
        frame = self.recorded
        return (
            f"episode {frame.episode}, frame {frame.frame}: {frame.observation.instruction}. "
            f"Mean difference from the recorded action: {error:.4f}"
        )

    def table(self) -> dict[str, Any]:
        """Rows for people: step by step what was recorded, what is answered, and the difference."""
        parts = {
            "recorded": self.recorded.actions_HD,
            "answered": self.answer.actions_HD,
            "difference": self.difference_HD,
        }
        dims = range(self.recorded.actions_HD.shape[1])
        rows = [
            [step, name, *(f"{values_HD[step, d]:.4f}" for d in dims)]
            for step in range(len(self.difference_HD))
            for name, values_HD in parts.items()
        ]
        return {"headers": ["step", "action", *(f"dim {d}" for d in dims)], "data": rows}


class Episodes:
    """The episodes of an output, one frame decoded at a time."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self._rows = {episode.index: episode for episode in output.episodes()}

    @property
    def numbers(self) -> list[int]:
        """The episodes that there are."""
        return list(self._rows)

    def length(self, episode: int) -> int:
        """Frames of an episode."""
        return self._rows[episode].num_rows

    def beside(self, policy: Policy, episode: int, position: int) -> Beside:
        """Ask the model about one frame. Raises `UserError` for a model of another robot, `PredictionFailed`."""
        info = policy.info
        if self.output.layout.action_dim != info.action_dim:
            raise UserError(
                f"the model answers {info.action_dim} action dimensions, the data have {self.output.layout.action_dim}."
            )
        position = max(0, min(position, self.length(episode) - 1))
        (frame,) = recorded_frames(
            self.output,
            self._rows[episode],
            steps=info.horizon,
            only=position,
            cameras=info.num_cameras,
        )
        policy.reset(0)
        return Beside(frame, policy.act(frame.observation))


def _drawn(rgb_HWC: Rgb, trace_P2: NDArray[np.float32] | None) -> Rgb:
    return rgb_HWC if trace_P2 is None else draw_trace(rgb_HWC, trace_P2)
