"""The demo's training: the shipped table-top model goes on for a minute and answers about a held-out episode."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from molmoact_data.errors import UserError
from molmoact_data.files.folders import write_bytes
from molmoact_data.outputs.output import Output
from molmoact_data.outputs.recorded import recorded_frames
from molmoact_data.policies import EMBEDDED, PredictionFailed, load_policy
from molmoact_data.teachers.codebook import codebook_path
from molmoact_data.teachers.registry import DEPTH_TOKENIZERS, resolve as resolve_teacher
from molmoact_train.config import TrainConfig, resolve
from molmoact_train.data.split import SourceOptions, chosen_episodes
from molmoact_train.evaluation.comparing import compared, names_of, summarise
from molmoact_train.evaluation.picture import ANSWER_FILE, PICTURE_FILE, Shown, draw

STEPS = 160
"""About a minute on two cores."""
HOLDS_OUT_THE_PICK = 17
"""A seed of the split with which the episode that is held out is of the task that the shipped model knows."""


def demo_config(data: Path, run: Path, steps: int = STEPS) -> TrainConfig:
    """Small batches from the shipped weights; one episode in six is held out."""
    if steps < 2:
        raise UserError(f"--duration {steps}: the demo trains 2 steps or more, or none with 0.")
    return resolve(
        "tabletop",
        {
            "checkpoint": EMBEDDED,
            "data": (str(data),),
            "output_path": str(run),
            "duration": steps,
            "warmup": min(10, steps // 2),
            "global_batch_size": 8,
            "device_batch_size": 8,
            **dict.fromkeys(("lr_connector", "lr_vit", "lr_llm"), 3e-4),
            "data_seed": HOLDS_OUT_THE_PICK,
            "eval_fraction": 1 / 6,
            "eval_interval": max(1, steps // 4),
            "eval_samples": 8,
            "log_interval": max(1, steps // 10),
        },
    )


@dataclass(frozen=True)
class Answer:
    """One prediction beside what was recorded."""

    episode: int
    frame: int
    instruction: str
    mean_absolute_error: list[float]
    """Per action dimension over the chunk, in the robot's units."""
    trace_error: float | None
    """Mean distance from the labelled path on the 0..255 grid."""
    picture: str


def ask(config: TrainConfig, model: Path, folder: Path) -> Answer:
    """Ask the model about a frame of the held-out episode; writes `prediction.json` and `prediction.png` to `folder`.

    Raises `UserError` where the answer is no action.
    """
    output = Output.open(config.data[0])
    episodes = {episode.index: episode for episode in output.episodes()}
    split = SourceOptions(
        {}, held_out_fraction=config.eval_fraction, held_out=True, seed=config.data_seed
    )
    held_out = episodes[int(chosen_episodes(np.array(sorted(episodes)), split)[0])]
    policy = load_policy(model, device="cpu", statistics_key=output.manifest.dataset.name)
    info = policy.info
    (frame,) = recorded_frames(output, held_out, steps=info.horizon, only=0, cameras=info.num_cameras)  # fmt: skip
    try:
        found = policy.act(frame.observation)
    except PredictionFailed as failed:
        raise UserError(f"{model} gave no action: {failed}.") from failed
    numbers = summarise([compared(found, frame)])
    shown = Shown(
        rgb_HWC=next(iter(frame.observation.images.values())),
        instruction=frame.observation.instruction,
        actions_HD=found.actions_HD,
        traces=[] if found.trace_P2 is None else [found.trace_P2.tolist()],
        depth_codes=[] if found.depth_codes is None else found.depth_codes.tolist(),
        recorded_HD=frame.actions_HD,
        recorded_trace_P2=frame.trace_P2,
        names=names_of(output),
    )
    answer = Answer(
        frame.episode, frame.frame, shown.instruction,
        numbers["mean_absolute_error"], numbers["trace_error"], str(folder / PICTURE_FILE),
    )  # fmt: skip
    content = {"actions": found.actions_HD.tolist(), "recorded": frame.actions_HD.tolist(),
               "trace": shown.traces, "text": found.text, **numbers}  # fmt: skip
    write_bytes(folder / ANSWER_FILE, (json.dumps(content, indent=1) + "\n").encode())
    codebook = resolve_teacher("depth tokenizer", "vqvae", DEPTH_TOKENIZERS)
    draw(shown, folder / PICTURE_FILE, codebook(codebook_path(EMBEDDED), device="cpu"))
    return answer
