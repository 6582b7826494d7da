"""Predicted beside recorded actions, frame by frame, over episodes of an output: numbers, a table and a plot.

Letters: H steps of a chunk, D action dimensions, F compared frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_data.files.folders import new_file
from molmoact_data.outputs.output import Output
from molmoact_data.outputs.recorded import RecordedFrame, choose_episodes, recorded_frames
from molmoact_data.policies import ActionChunk, Policy, PredictionFailed

COMPARISON_FILE, PLOT_FILE = "comparison.json", "comparison.png"
RECORDED_COLOUR, PREDICTED_COLOUR = "#555555", "#d1495b"
_SHOWN_EPISODES = 4


@dataclass(frozen=True)
class ComparedFrame:
    """One frame; `predicted_HD` has as many steps as were recorded from here on. None = the answer was no action."""

    recorded: RecordedFrame
    predicted_HD: NDArray[np.float32] | None
    trace_error: float | None
    """Mean distance of trace points on the 0..255 grid, resampled to as many; None where one of them is missing."""
    codes_equal: float | None
    """Share of depth codes that are equal."""
    failure: str | None = None

    @property
    def errors_HD(self) -> NDArray[np.float32] | None:
        """Absolute, in the robot's units."""
        if self.predicted_HD is None:
            return None
        return np.abs(self.predicted_HD - self.recorded.actions_HD)


def compare(
    policy: Policy,
    output: Output,
    episodes: str | None = None,
    *,
    every: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[ComparedFrame]:
    """Ask the policy about every `every`-th frame (default: its horizon, so that the chunks follow one another).

    Raises `UserError` where it reads another number of action dimensions than were recorded.
    """
    info = policy.info
    dim = output.layout.action_dim
    if dim is not None and dim != info.action_dim:
        raise UserError(
            f"the model answers {info.action_dim} action dimensions ({info.statistics_key}), "
            f"{output.storage.root} holds {dim}."
        )
    found: list[ComparedFrame] = []
    for episode in choose_episodes(output, episodes):
        policy.reset(0)
        frames = recorded_frames(
            output,
            episode,
            steps=info.horizon,
            every=every or info.horizon,
            cameras=info.num_cameras,
        )
        done = [compare_frame(policy, frame) for frame in frames]
        progress(f"episode {episode.index}: {len(done)} frames")
        found += done
    return found


def compare_frame(policy: Policy, frame: RecordedFrame) -> ComparedFrame:
    """One question; a failed prediction is counted as what it is."""
    try:
        answer = policy.act(frame.observation)
    except PredictionFailed as failed:
        return ComparedFrame(frame, None, None, None, failed.reason)
    return compared(answer, frame)


def compared(answer: ActionChunk, frame: RecordedFrame) -> ComparedFrame:
    """An answer beside what was recorded from the same moment on."""
    steps = len(frame.actions_HD)
    codes, trace = None, None
    if _alike(answer.depth_codes, frame.depth_codes):
        codes = float(np.mean(answer.depth_codes == frame.depth_codes))
    if answer.trace_P2 is not None and frame.trace_P2 is not None:
        trace = path_distance(answer.trace_P2, frame.trace_P2)
    return ComparedFrame(frame, answer.actions_HD[:steps], trace, codes)


def _alike(first: NDArray[np.int64] | None, second: NDArray[np.int64] | None) -> bool:
    """Whether both are there, from codebooks with as many codes per image."""
    return first is not None and second is not None and first.shape == second.shape


def path_distance(first_P2: NDArray[np.float32], second_P2: NDArray[np.float32]) -> float:
    """Mean distance of two paths at 16 equal shares of their length."""
    return float(np.linalg.norm(_resampled(first_P2) - _resampled(second_P2), axis=1).mean())


def _resampled(points_P2: NDArray[np.float32], count: int = 16) -> NDArray[np.float64]:
    lengths = np.linalg.norm(np.diff(points_P2, axis=0), axis=1)
    walked = np.concatenate([[0.0], np.cumsum(lengths)])
    at = np.linspace(0, walked[-1], count)
    return np.stack([np.interp(at, walked, points_P2[:, i]) for i in range(2)], axis=1)


def names_of(output: Output) -> list[str]:
    """What the dimensions are called in tables: as the source named them, else by their number."""
    dim = output.layout.action_dim or 0
    if len(named := output.manifest.dataset.action_names) == dim:
        return list(named)
    spec = output.statistics.spec.dimensions if output.statistics is not None else ()
    return [f"{d} gripper" if d < len(spec) and spec[d].gripper else str(d) for d in range(dim)]


def summarise(found: Sequence[ComparedFrame]) -> dict[str, Any]:
    """Numbers over frames: mean absolute error by dimension and of the first step, traces, codes, failures."""
    errors = [f.errors_HD for f in found if f.errors_HD is not None]
    traces = [f.trace_error for f in found if f.trace_error is not None]
    codes = [f.codes_equal for f in found if f.codes_equal is not None]
    recorded = np.concatenate([f.recorded.actions_HD for f in found])
    every = np.concatenate(errors) if errors else np.empty((0, recorded.shape[1]), np.float32)
    return {
        "frames": len(found),
        "failed_predictions": sum(f.failure is not None for f in found),
        "mean_absolute_error": [float(v) for v in every.mean(0)] if len(every) else None,
        "first_step_error": [float(v) for v in np.mean([e[0] for e in errors], 0)]
        if errors
        else None,
        "recorded_spread": [float(v) for v in recorded.std(0)],
        "trace_error": float(np.mean(traces)) if traces else None,
        "depth_codes_equal": float(np.mean(codes)) if codes else None,
    }


def results(found: Sequence[ComparedFrame], checkpoint: str, data: str) -> dict[str, Any]:
    """Everything, as JSON: over all frames, by episode, and frame by frame."""
    if not found:
        raise UserError(f"{data} holds no frame to compare.")
    numbers = sorted({f.recorded.episode for f in found})
    return {
        "checkpoint": checkpoint,
        "data": data,
        "all": summarise(found),
        "episodes": {
            str(n): summarise([f for f in found if f.recorded.episode == n]) for n in numbers
        },
        "frames": [
            {
                "episode": f.recorded.episode,
                "frame": f.recorded.frame,
                "recorded": f.recorded.actions_HD.tolist(),
                "predicted": None if f.predicted_HD is None else f.predicted_HD.tolist(),
                "failure": f.failure,
            }
            for f in found
        ],
    }


def table(result: dict[str, Any], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Head and rows for people: one row per dimension, the error over all frames and by episode."""
    episodes = {f"episode {n}": numbers for n, numbers in result["episodes"].items()}
    shown = dict(list(episodes.items())[:_SHOWN_EPISODES])
    head = ["dimension", "spread", "error", "first step", *shown]
    rows = []
    whole = result["all"]
    for d, name in enumerate(names):
        cells = [whole["recorded_spread"], whole["mean_absolute_error"], whole["first_step_error"]]
        cells += [numbers["mean_absolute_error"] for numbers in shown.values()]
        rows.append([name, *("-" if c is None else f"{c[d]:.4f}" for c in cells)])
    return head, rows


def headline(result: dict[str, Any]) -> str:
    """One line: how far off, on how many frames."""
    whole = result["all"]
    parts = [f"{whole['frames']} frames of {len(result['episodes'])} episodes"]
    if whole["mean_absolute_error"] is not None:
        spread, error = np.array(whole["recorded_spread"]), np.array(whole["mean_absolute_error"])
        moving = spread > 1e-6
        share = float(np.mean(error[moving] / spread[moving])) if moving.any() else 0.0
        parts.append(f"actions off by {share:.2f} of their own spread")
    if whole["trace_error"] is not None:
        parts.append(f"traces by {whole['trace_error']:.1f} of 255")
    if whole["depth_codes_equal"] is not None:
        parts.append(f"{whole['depth_codes_equal']:.0%} of depth codes equal")
    if whole["failed_predictions"]:
        parts.append(f"{whole['failed_predictions']} answers without actions")
    return "; ".join(parts)


def plot(found: Sequence[ComparedFrame], names: Sequence[str], target: Path) -> None:
    """One column per episode, one row per dimension: the recorded line, the predicted chunks over it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    episodes = sorted({f.recorded.episode for f in found})[:_SHOWN_EPISODES]
    size = (5 * len(episodes) + 1, 1.5 * len(names) + 1)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(names), len(episodes), squeeze=False, sharex="col", sharey="row")
    for column, episode in enumerate(episodes):
        frames = [f for f in found if f.recorded.episode == episode]
        for d, name in enumerate(names):
            axis = axes[d][column]
            _lines(axis, frames, d)
            axis.set_ylabel(name if column == 0 else "")
        axes[0][column].set_title(f"episode {episode}")
        axes[-1][column].set_xlabel("frame")
    axes[0][0].legend(loc="best", fontsize="small")
    with new_file(target) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _lines(axis: Any, frames: Iterable[ComparedFrame], dimension: int) -> None:
    label = True
    for f in frames:
        at = f.recorded.frame + np.arange(len(f.recorded.actions_HD))
        marks = {"marker": ".", "markersize": 3}
        axis.plot(at, f.recorded.actions_HD[:, dimension], color=RECORDED_COLOUR,
                  label="recorded" if label else None, **marks)  # fmt: skip
        if f.predicted_HD is not None:
            axis.plot(at, f.predicted_HD[:, dimension], color=PREDICTED_COLOUR,
                      label="predicted" if label else None, **marks)  # fmt: skip
            label = False
