"""The folder of a training run: who may write there, its log of numbers, and how a signal ends the run."""

from __future__ import annotations

import json
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from molmoact_data.errors import UserError
from molmoact_data.files.folders import is_taken, remove_left_overs, write_bytes, write_json
from molmoact_data.files.lock import locked
from molmoact_data.files.typed import parse_json
from molmoact_data.redaction import redacted

if TYPE_CHECKING:
    from molmoact_data.processes import World

CONFIG_FILE = "config.json"
"""Written first, so that a folder says whose run it is from the beginning."""
METRICS_FILE = "metrics.jsonl"
WANDB_ID_FILE = "wandb_id.txt"
"""So that a resumed run continues the same W&B run."""
_LOG_FILES = (CONFIG_FILE, METRICS_FILE, WANDB_ID_FILE)


# Who may write there


@dataclass(frozen=True)
class RunKind:
    """One kind of training run: what an error calls it, and which names in its folder it made."""

    name: str
    """With its article: `a VQ-VAE run`."""
    flag: str
    """The flag that names the folder: `--output-path`."""
    read_config: Callable[[Path], Any]
    """The configuration in a folder; raises `UserError` for one that is not of this kind."""
    is_ours: Callable[[str], bool]
    """Whether a name at the top of the folder is something that such a run writes, besides its logs."""


@contextmanager
def held(run: Path, world: World) -> Iterator[None]:
    """Hold the run's folder while inside. Where another run holds it, every process raises its `UserError`."""
    with ExitStack() as stack:
        refused: list[UserError | None] = [None]
        if world.is_main:
            try:
                stack.enter_context(locked(run))
            except UserError as error:
                refused = [error]
        world.broadcast(refused)
        if refused[0] is not None:
            raise refused[0]
        yield


def claim(
    run: Path, kind: RunKind, config: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> None:
    """Make the folder this run's and write its configuration, or raise `UserError` naming the flag to add.

    With `resume`, a folder with nothing in it is a new run; else nothing is written: the caller finds what to go on
    from, and compares configurations.
    `overwrite` deletes what a run of this kind writes, and only in a folder that holds such a run.
    """
    taken = check_run(run, kind.flag, resume=resume, overwrite=overwrite)
    if resume and taken:
        remove_left_overs(run.iterdir())
        return
    if taken:
        _refuse_strangers(run, kind)
        _delete_run(run, kind)
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / CONFIG_FILE, redacted(config))


def check_run(run: Path, flag: str, *, resume: bool, overwrite: bool) -> bool:
    """Whether something is there already; raises `UserError` where that was neither to be continued nor replaced."""
    if resume and overwrite:
        raise UserError("--resume continues a run and --overwrite deletes it; give one of them.")
    file = next((path for path in (run, *run.parents) if path.is_file()), None)
    if file is not None:
        raise UserError(f"{file} is a file, so {run} cannot be the run. Choose another {flag}.")
    taken = is_taken(run)
    if taken and not (resume or overwrite):
        raise UserError(
            f"{run} is not empty. Continue the run that is there with --resume, replace it with --overwrite "
            f"(which deletes its checkpoints), or choose another {flag}."
        )
    return taken


def _refuse_strangers(run: Path, kind: RunKind) -> None:
    """Any model folder has a config.json, many have `data/`; only a run of this kind may be replaced."""
    if not (run / CONFIG_FILE).is_file() and not any(kind.is_ours(p.name) for p in run.iterdir()):
        return
    try:
        kind.read_config(run)
    except UserError as error:
        raise UserError(
            f"{run / CONFIG_FILE} is not that of {kind.name}, and nothing in its folder was touched. "
            f"Choose another {kind.flag}."
        ) from error


def _delete_run(run: Path, kind: RunKind) -> None:
    """Delete what a run writes, and nothing else that may lie there."""
    for path in run.iterdir():
        if path.name in _LOG_FILES or kind.is_ours(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# Numbers


@dataclass(frozen=True)
class Wandb:
    """Where a run's numbers go besides its folder. WANDB_MODE=offline keeps them on this machine."""

    project: str
    entity: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def start(self, run: Path) -> Any:
        """Begin the W&B run of this folder, or continue it."""
        import wandb

        known = run / WANDB_ID_FILE
        if not known.exists():
            known.write_text(uuid.uuid4().hex[:16])
        return wandb.init(
            project=self.project,
            entity=self.entity,
            name=run.name,
            dir=str(run),
            config=redacted(self.config),
            id=known.read_text(),
            resume="allow",
        )


class MetricsLog:
    """Appends one JSON line per report to `metrics.jsonl`; the main process only.

    A resumed run drops the lines after `from_step`, which it will write again.
    """

    def __init__(self, run: Path, *, from_step: int, wandb: Wandb | None = None) -> None:
        self.path = run / METRICS_FILE
        kept = [line for line in read_metrics(self.path) if line["step"] <= from_step]
        write_bytes(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = self.path.open("a")
        self._wandb = wandb.start(run) if wandb else None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One line: `{"step": n, name: number, ...}`; with the operating system when this returns."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def __enter__(self) -> Self:
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


@dataclass(frozen=True)
class _Step:
    """What every line of the log has."""

    step: int


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines; one that a crash cut short is left out. Raises `UserError` naming a damaged one."""
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if line.endswith(b"\n"):
            where, then = f"{path}, line {number}", "Delete the line, or the file."
            parse_json(_Step, line, where, then)
            found.append(parse_json(dict[str, Any], line, where, then))
    return found


# Signals


@dataclass
class StopRequest:
    """Set by a signal, read once per step."""

    requested: bool = False
    number: int = signal.SIGTERM
    """Which signal asked, where one reached this process; a program that stops for it ends with 128 + this."""

    @property
    def exit_code(self) -> int:
        """Of the program that stops for it: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """While inside, SIGTERM and the first Ctrl-C ask the loop to save and stop; a second Ctrl-C interrupts it."""
    stop = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested, stop.number = True, number

    previous = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
