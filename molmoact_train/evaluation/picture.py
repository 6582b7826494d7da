"""One answer of a model as one picture for people: where the gripper goes, how deep it is, what the robot would do.

Letters: H steps of a chunk, D action dimensions, P points of a trace.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data.files.folders import new_file
from molmoact_data.labels.depth import DepthTokenizer
from molmoact_data.pictures import overlay
from molmoact_data.pictures.film import codes_picture
from molmoact_train.evaluation.comparing import PREDICTED_COLOUR, RECORDED_COLOUR

ANSWER_FILE, PICTURE_FILE = "prediction.json", "prediction.png"
_TITLE_LETTERS, _DPI = 90, 110


@dataclass(frozen=True)
class Shown:
    """What is drawn; what is None or empty was not answered, or is not known."""

    rgb_HWC: NDArray[np.uint8]
    """The first picture of the question."""
    instruction: str
    actions_HD: NDArray[np.float32]
    """In the robot's units."""
    traces: Sequence[Sequence[Sequence[float]]] = ()
    """Per arm [P, 2], 0..255, x right, y down."""
    depth_codes: Sequence[int] = ()
    recorded_HD: NDArray[np.float32] | None = None
    """At most as many steps, where the frame is of a recording."""
    recorded_trace_P2: NDArray[np.float32] | None = None
    names: Sequence[str] = ()
    """Of the action's dimensions; empty = their numbers."""


def marked(shown: Shown) -> NDArray[np.uint8]:
    """The picture, large enough to be read, with the recorded path below the predicted ones."""
    drawn = overlay.readable(shown.rgb_HWC)
    if shown.recorded_trace_P2 is not None:
        drawn = overlay.draw_path(
            drawn, shown.recorded_trace_P2, overlay.TAKEN_RGB, overlay.TRACE_THICKNESS
        )
    return overlay.draw_labels(
        drawn, traces=[np.rint(trace).astype(int).tolist() for trace in shown.traces], points=[]
    )


def draw(shown: Shown, target: Path, tokenizer: DepthTokenizer | None = None) -> None:
    """Write a PNG: the path and the depth at the left, one plot per action dimension at the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pictures = {"planned path": marked(shown)}
    if tokenizer is not None and len(shown.depth_codes):
        pictures["depth from the predicted codes"] = codes_picture(shown.depth_codes, tokenizer)
    dim = shown.actions_HD.shape[1]
    figure = Figure(figsize=(11, max(3.2 * len(pictures), 0.8 * dim) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(shown.instruction, _TITLE_LETTERS, max_lines=3), fontsize=12)
    left, right = figure.subfigures(1, 2, width_ratios=(2, 3))
    axes = left.subplots(len(pictures), 1, squeeze=False)
    for (name, picture), axis in zip(pictures.items(), axes[:, 0], strict=True):
        axis.imshow(picture)
        axis.set_axis_off()
        axis.set_title(name, fontsize=10)
    if shown.recorded_trace_P2 is not None:
        axes[0][0].set_title("path: predicted cyan, labelled amber", fontsize=10)
    _plot_actions(right.subplots(dim, 1, sharex=True, squeeze=False)[:, 0], shown)
    right.supxlabel("step from now", fontsize=10)
    right.supylabel("action, in the robot's units", fontsize=10)
    with new_file(target) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png")


def _plot_actions(axes: Sequence[Any], shown: Shown) -> None:
    """One axis per dimension, the predicted steps over the recorded ones."""
    for d, axis in enumerate(axes):
        if shown.recorded_HD is not None:
            axis.plot(shown.recorded_HD[:, d], color=RECORDED_COLOUR, marker=".", label="recorded")
        axis.plot(shown.actions_HD[:, d], color=PREDICTED_COLOUR, marker=".", label="predicted")
        axis.set_ylabel(shown.names[d] if d < len(shown.names) else str(d), rotation=0, ha="right")
        axis.tick_params(labelsize=8)
        axis.margins(y=0.25)
    if shown.recorded_HD is not None:
        axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False)
