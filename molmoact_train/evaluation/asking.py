"""One question to any checkpoint, through its family's policy: pictures and words in, numbers for a person out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from molmoact_data.errors import UserError
from molmoact_data.policies import Observation, PredictionFailed, load_policy


def ask(
    checkpoint: Path,
    pictures: Sequence[Image.Image],
    instruction: str,
    *,
    state: str | None = None,
    trace: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """The next actions in the robot's units, and what was thought; `options` go to the policy's `from_folder`."""
    policy = load_policy(checkpoint, **options)
    policy.reset(seed)
    images = {f"camera_{n}": np.asarray(picture) for n, picture in enumerate(pictures)}
    try:
        done = policy.act(Observation(images, instruction, read_state(state)), trace=trace)
    except PredictionFailed as failed:
        raise UserError(f"{checkpoint} gave no action: {failed}.") from failed
    return {
        "unnorm_key": policy.info.statistics_key,
        "actions": done.actions_HD.tolist(),
        "depth_codes": None if done.depth_codes is None else done.depth_codes.tolist(),
        "text": done.text,
        "seconds": dict(done.seconds),
        "num_tokens": done.num_tokens,
    }


def read_state(text: str | None) -> NDArray[np.float32] | None:
    """`[0.1, 0.2, ...]` -> float32 [S]; None stays None."""
    if text is None:
        return None
    try:
        values = np.asarray(json.loads(text), dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise UserError(f"--state wants a JSON list of numbers, got {text!r}: {error}.") from error
    if values.ndim != 1:
        raise UserError(f"--state wants a JSON list of numbers, got {text!r}.")
    return values
