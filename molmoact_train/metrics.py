"""Numbers of a run: JSON lines that survive a crash, a picture of them, and Weights & Biases if asked for."""

from __future__ import annotations

import json
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from molmoact_train.config import TrainConfig, to_json

METRICS_FILE, PLOT_FILE = "metrics.jsonl", "metrics.png"
WANDB_ID_FILE = "wandb_id.txt"
"""So that a resumed run continues the same W&B run."""
PANELS = {
    "loss": r"(train|eval)/loss",
    "accuracy": r"(train|eval)/.*accuracy",
    "learning rate": r"lr/",
    "trace error, grid units": r"eval/trace_.*_error",
    "action error, the robot's units": r"eval/action_error",
}
"""Title of a panel of the picture -> beginning of the names in it."""


class MetricsLog:
    """Appends one line per report; rank 0 only. A resumed run drops the lines that it will write again."""

    def __init__(self, run: Path, config: TrainConfig, *, from_step: int) -> None:
        self.path = run / METRICS_FILE
        self._keep_until(from_step)
        self._file = self.path.open("a")
        self._wandb = _start_wandb(run, config) if config.wandb_project else None

    def _keep_until(self, step: int) -> None:
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line: `{"step": n, name: number, ...}`."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)
        plot_metrics(self.path, self.path.with_name(PLOT_FILE))


def _start_wandb(run: Path, config: TrainConfig) -> Any:
    """A W&B run; WANDB_MODE=offline writes it below the run folder instead of the network."""
    import wandb

    known = run / WANDB_ID_FILE
    if not known.exists():
        known.write_text(uuid.uuid4().hex[:16])
    return wandb.init(
        project=config.wandb_project,
        entity=config.wandb_entity,
        name=run.name,
        dir=str(run),
        config=to_json(config),
        id=known.read_text(),
        resume="allow",
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; one that a crash cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


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
