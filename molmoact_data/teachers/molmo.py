"""Molmo as a gripper pointer (Molmo-7B-D-0924 by default), batched and greedy.

The network is that of MolmoAct, found through the registry; no Python file of the checkpoint is fetched or run.
Generation stops as soon as the points are told. A 7B model wants about 17 GB of GPU memory in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.processes import pick_device
from molmoact_data.teachers import registry
from molmoact_data.teachers.answers import (
    Answer,
    PointingModel,
    answer_confidence,
    arms_from_percent,
    parse_points,
    tokens_of,
)
from molmoact_data.teachers.published import (
    COMMIT,
    MOLMO_7B_D,
    POINTING_WEIGHTS,
    Published,
    fetch,
    is_hub_id,
)


@dataclass(frozen=True)
class MolmoSettings:
    """What a run says of this teacher; fields are `TeacherConfig`'s."""

    pointer_checkpoint: str | None = None
    arms: int = 1


class MolmoPointer:
    """`GripperPointer`: one question, N frames, the first point(s) of every answer.

    Confidence is the geometric mean of the probabilities of the tokens that spell the coordinates.
    On an accelerator the last batch is filled up by repetition, on a CPU frames go one by one, so that answers do
    not depend on how frames were grouped.
    """

    Settings = MolmoSettings
    answers_are_dear = True
    family = "molmo"
    """Name in `registry.POINTING_MODELS`."""
    default: ClassVar[Published] = MOLMO_7B_D
    known: ClassVar[Mapping[str, Published]] = POINTING_WEIGHTS
    """Hub ids that need no explicit revision."""

    @classmethod
    def load(cls, settings: MolmoSettings, device: str) -> MolmoPointer:
        """As a run asks for it."""
        return cls(settings.pointer_checkpoint, device=device, num_arms=settings.arms)

    def __init__(
        self,
        checkpoint: str | None = None,
        *,
        revision: str | None = None,
        device: str = "auto",
        batch_size: int = 8,
        max_new_tokens: int = 64,
        num_arms: int = 1,
    ) -> None:
        """`checkpoint`: a folder, or a Hub id (None = Molmo-7B-D); an id other than Molmo's own three needs an explicit
        `revision`, the commit that the labels are to be known by."""
        self.num_arms = num_arms
        self.max_new_tokens = max_new_tokens
        self.device = pick_device(device)
        self.batch_size = batch_size if self.device.type != "cpu" else 1
        self._name, self._revision, self._licence, folder = _locate(
            checkpoint, revision, self.default, self.known
        )
        factory = registry.resolve("pointing model", self.family, registry.POINTING_MODELS)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.model: PointingModel = factory(folder, device=self.device, dtype=dtype)

    def describe(self) -> dict[str, str]:
        """`name`, `revision` and `licence` of the teacher, for the manifest."""
        return {
            "name": f"{self.family}/{self._name}",
            "revision": self._revision,
            "licence": self._licence,
        }

    def point(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
        """RGB uint8 [N,H,W,3] -> points of the N frames; NaN where the answer has no well-formed point."""
        xy_NA2 = np.full((len(rgb_NHWC), self.num_arms, 2), np.nan, np.float32)
        confidence_NA = np.zeros((len(rgb_NHWC), self.num_arms), np.float32)
        answers = self.answers(list(rgb_NHWC), prompt)
        for row, answer in enumerate(answers):
            image_hw = rgb_NHWC[row].shape[:2]
            xy_NA2[row] = arms_from_percent(self.read(answer.text), self.num_arms, image_hw)
            found_A = ~np.isnan(xy_NA2[row, :, 0])
            confidence_NA[row] = found_A * answer_confidence(answer.tokens, answer.logprobs)
        return GripperPoints(xy_NA2, confidence_NA, tokens_of(answers))

    def answers(self, frames: Sequence[NDArray[np.uint8]], prompt: str) -> list[Answer]:
        """What the model says about each frame, RGB uint8 [H, W, 3], of any sizes."""
        answers: list[Answer] = []
        for start in range(0, len(frames), self.batch_size):
            batch = list(frames[start : start + self.batch_size])
            filled = batch + [batch[-1]] * (self.batch_size - len(batch))
            answers += self.model.answer(
                filled,
                prompt,
                is_complete=self._is_complete,
                max_new_tokens=self.max_new_tokens,
            )[: len(batch)]
        return answers

    def read(self, text: str) -> list[tuple[float, float]]:
        """The points of an answer, whole or in the making, per cent of the picture."""
        return parse_points(text)

    def _is_complete(self, text: str) -> bool:
        return len(self.read(text)) >= self.num_arms


def _locate(
    checkpoint: str | None,
    revision: str | None,
    default: Published,
    published: Mapping[str, Published],
) -> tuple[str, str, str, Path]:
    """Name, revision and licence for the manifest, and the folder. Raises `UserError`."""
    checkpoint = checkpoint if checkpoint is not None else default.repository
    folder = Path(checkpoint)
    if folder.is_dir():
        return folder.resolve().name, "local", "that of the local files", folder
    if not is_hub_id(checkpoint):
        raise UserError(
            f"the pointer's checkpoint {checkpoint!r} is no folder here and no Hub id (owner/name)."
        )
    known = published.get(checkpoint)
    if revision is None and known is None:
        raise UserError(
            f"{checkpoint!r} is not one of {', '.join(published)}: name its commit (revision), so that the "
            "labels can be made again, or give a local folder."
        )
    wanted = known or Published(checkpoint, str(revision), "that of the repository", 0)
    if revision is not None:
        wanted = Published(
            wanted.repository, revision, wanted.licence, wanted.num_bytes, wanted.files
        )
    folder = fetch(wanted)
    # A snapshot's folder is named after the commit, whatever branch was asked for.
    commit = folder.name if COMMIT.fullmatch(folder.name) else wanted.revision
    return checkpoint, commit, wanted.licence, folder
