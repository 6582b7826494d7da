"""Numbers of a run: JSON lines that survive a crash, a picture of them, and Weights & Biases if asked for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from molmoact_data import runs
from molmoact_data.redaction import redacted
from molmoact_data.runs import Wandb, read_metrics
from molmoact_train.config import TrainConfig, to_json
from molmoact_train.monitoring.page import write_run_page

PLOT_FILE = "metrics.png"
PANELS = {
    "loss": r"(train|eval)/loss",
    "accuracy": r"(train|eval)/.*accuracy",
    "learning rate": r"lr/",
    "trace error, grid units": r"eval/trace_.*_error",
    "action error, the robot's units": r"eval/action_error",
}
"""Title of a panel of the picture -> beginning of the names in it."""


class MetricsLog(runs.MetricsLog):
    """The log of a training run, with a picture of it at the end; rank 0 only."""

    def __init__(self, run: Path, config: TrainConfig, *, from_step: int) -> None:
        project, entity = config.wandb_project, config.wandb_entity
        wandb = Wandb(project, entity, to_json(config)) if project else None
        super().__init__(run, from_step=from_step, wandb=wandb)
        self._config = to_json(config)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self.draw()
        plot_metrics(self.path, self.path.with_name(PLOT_FILE))

    def draw(self) -> None:
        """`run.html` as far as the run is."""
        write_run_page(self.path.parent, redacted(self._config))


def panels(names: Iterable[str]) -> dict[str, list[str]]:
    """Title -> the numbers drawn under it; what a run does not have gets no panel."""
    every = sorted(names)
    drawn = {title: [n for n in every if re.match(pattern, n)] for title, pattern in PANELS.items()}
    return {title: found for title, found in drawn.items() if found} or {"loss": []}


def plot_metrics(source: Path, target: Path) -> None:
    """Training and held-out numbers, by part, and learning rates over steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for line in read_metrics(source):
        for name, value in line.items():
            if name != "step":
                series[name][0].append(line["step"])
                series[name][1].append(value)
    shown = panels(series)
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(11, 3.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (title, names) in enumerate(shown.items()):
        axes = figure.add_subplot(rows, min(2, len(shown)), i + 1, title=title, xlabel="step")
        for name in names:
            axes.plot(*series[name], label=name, marker="." if len(series[name][0]) < 30 else None)
        if names:
            axes.legend(fontsize=7)
    figure.savefig(target, dpi=110)
