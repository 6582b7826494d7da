"""Molmo as a gripper pointer (allenai/Molmo-7B-D-0924, Apache-2.0), batched and greedy.

The checkpoint has no code in transformers: it runs the Python files of its own repository, which is why a
revision is pinned. Its `generate_from_batch` breaks with every second transformers release, so the
few lines of greedy decoding are here and only the network's `forward` is used. Generation stops as soon as
the points are told. A 7B model wants about 17 GB of GPU memory in bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor

from molmoact_data.errors import UserError
from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.processes import pick_device
from molmoact_data.teachers.answers import answer_confidence, arms_from_percent, parse_points

MOLMO_7B_D = "allenai/Molmo-7B-D-0924"
PINNED_REVISIONS = {MOLMO_7B_D: "ac032b93b84a7f10c9578ec59f9f20ee9a8990a2"}


class MolmoPointer:
    """`GripperPointer`: one prompt, N frames of one size, the first point(s) of every answer.

    Confidence is the geometric mean of the probabilities of the tokens that spell the coordinates.
    The last batch is filled up by repetition, so that answers do not depend on how frames were grouped.
    """

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
        """`checkpoint`: Hub id or folder, None = Molmo-7B-D. Its Python code is executed; a Hub id other
        than the default needs an explicit `revision`."""
        checkpoint = checkpoint if checkpoint is not None else MOLMO_7B_D
        self.num_arms = num_arms
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.device = pick_device(device)
        self._checkpoint = checkpoint
        self._revision = revision or _pinned_revision(checkpoint)
        self.processor, self.model = _load(checkpoint, self._revision, self.device)

    def describe(self) -> dict[str, str]:
        """`name`, `revision` and `licence` of the teacher, for the manifest."""
        name = Path(self._checkpoint)
        return {
            "name": f"molmo/{name.name if name.is_dir() else self._checkpoint}",
            "revision": self._revision or "local",
            "licence": "Apache-2.0",
        }

    def point(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
        """RGB uint8 [N,H,W,3] -> points of the N frames; NaN where the answer has no well-formed point."""
        xy_NA2 = np.full((len(rgb_NHWC), self.num_arms, 2), np.nan, np.float32)
        confidence_NA = np.zeros((len(rgb_NHWC), self.num_arms), np.float32)
        for row, answer in enumerate(self.answers(rgb_NHWC, prompt)):
            image_hw = (rgb_NHWC.shape[1], rgb_NHWC.shape[2])
            xy_NA2[row] = arms_from_percent(parse_points(answer.text), self.num_arms, image_hw)
            found_A = ~np.isnan(xy_NA2[row, :, 0])
            confidence_NA[row] = found_A * answer_confidence(answer.tokens, answer.logprobs)
        return GripperPoints(xy_NA2, confidence_NA)

    def answers(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> list[Answer]:
        """What the model says about each frame."""
        answers: list[Answer] = []
        for start in range(0, len(rgb_NHWC), self.batch_size):
            batch = list(rgb_NHWC[start : start + self.batch_size])
            filled = batch + [batch[-1]] * (self.batch_size - len(batch))
            answers += self._generate(self._inputs(filled, prompt))[: len(batch)]
        return answers

    def _inputs(self, frames: list[NDArray[np.uint8]], prompt: str) -> dict[str, torch.Tensor]:
        """The processor's tensors of every frame, stacked; equal sizes and one prompt give equal shapes."""
        prepared = [
            self.processor.process(images=[Image.fromarray(rgb)], text=prompt) for rgb in frames
        ]
        stacked = {name: torch.stack([p[name] for p in prepared]) for name in prepared[0]}
        return {
            name: tensor.to(self.device, self.model.dtype if name == "images" else tensor.dtype)
            for name, tensor in stacked.items()
        }

    @torch.inference_mode()
    def _generate(self, inputs: Mapping[str, torch.Tensor]) -> list[Answer]:
        """Greedy decoding; a row ends with the model's end token or when its points are told."""
        answers = [Answer() for _ in inputs["input_ids"]]
        step = _first_step(inputs, self.max_new_tokens)
        for _ in range(self.max_new_tokens):
            output = self.model(**step, use_cache=True, last_logits_only=True)
            logprobs, tokens = output.logits[:, -1].float().log_softmax(-1).max(-1)
            for answer, token, logprob in zip(
                answers, tokens.tolist(), logprobs.tolist(), strict=True
            ):
                self._append(answer, token, logprob)
            if all(answer.complete for answer in answers):
                break
            step = _next_step(step, tokens, output.past_key_values)
        return answers

    def _append(self, answer: Answer, token: int, logprob: float) -> None:
        if answer.complete:
            return
        if token == self.processor.tokenizer.eos_token_id:
            answer.complete = True
            return
        answer.ids.append(token)
        answer.logprobs.append(logprob)
        answer.tokens.append(self.processor.tokenizer.decode([token]))
        answer.text = self.processor.tokenizer.decode(answer.ids)
        answer.complete = len(parse_points(answer.text)) >= self.num_arms


@dataclass
class Answer:
    """One generated answer: its text, token by token, with natural-log probabilities."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    complete: bool = False


def _first_step(inputs: Mapping[str, torch.Tensor], max_new_tokens: int) -> dict[str, Any]:
    batch, length = inputs["input_ids"].shape
    device = inputs["input_ids"].device
    # The network cuts the mask to the length so far.
    mask = torch.ones((batch, length + max_new_tokens), dtype=torch.bool, device=device)
    positions = torch.arange(length, device=device).expand(batch, length)
    return {**inputs, "attention_mask": mask, "position_ids": positions}


def _next_step(step: Mapping[str, Any], tokens: torch.Tensor, cache: Any) -> dict[str, Any]:
    """Only the new token goes in; the images are in the cache."""
    return {
        "input_ids": tokens[:, None],
        "attention_mask": step["attention_mask"],
        "position_ids": step["position_ids"][:, -1:] + 1,
        "past_key_values": cache,
    }


def _pinned_revision(checkpoint: str) -> str | None:
    if Path(checkpoint).is_dir():
        return None
    if checkpoint not in PINNED_REVISIONS:
        raise UserError(
            f"loading {checkpoint!r} runs Python code from that repository, so a commit must be named "
            f"(pinned for {', '.join(PINNED_REVISIONS)} only). Give a revision or a local folder."
        )
    return PINNED_REVISIONS[checkpoint]


def _load(checkpoint: str, revision: str | None, device: torch.device) -> tuple[Any, Any]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pinned: dict[str, Any] = {
        "revision": revision,
        "code_revision": revision,
        "trust_remote_code": True,
    }
    try:
        processor = AutoProcessor.from_pretrained(checkpoint, **pinned)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, torch_dtype=dtype, **pinned)
    except OSError as error:
        raise UserError(
            f"cannot load the pointer {checkpoint!r} ({str(error).splitlines()[0]}). It is fetched once "
            f"(about 32 GB, licence Apache-2.0); on a machine without network run `huggingface-cli "
            f"download {MOLMO_7B_D} --revision {PINNED_REVISIONS[MOLMO_7B_D]}` elsewhere and pass the "
            "folder, or use the pointer 'server' with a machine that serves it."
        ) from error
    return processor, model.to(device).eval()
