"""Where a pipeline runs: this process, several local processes under a watchdog, or a cluster.

One local worker needs no engine, and no Beam. Several run on Beam's FnApiRunner, named explicitly because
Beam's default runner tries to download another one at every start; and in a child process, because
FnApiRunner waits for ever when one of its workers dies: the watchdog sees the death and ends the child.
"""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from molmoact_data.errors import UserError
from pipelines.config import RunnerConfig

WORKER_MODULE = "sdk_worker_main"
GRACE_S = 10.0
"""How long the child may take to end after its workers have gone, which is also what success looks like."""
LOOK_EVERY_S = 0.5
LAST_WORDS = 2000
"""Characters of the workers' log that an error quotes."""


class WorkerDied(RuntimeError):
    """A worker process ended in the middle of its work (killed, out of memory, crashed decoder)."""


Construct = Callable[..., None]


def run_pipeline(config: RunnerConfig, construct: Construct, *arguments: Any) -> None:
    """Run the graph that `construct(pipeline, *arguments)` applies, to its end.

    `construct` is a module-level function and its arguments pickle. Raises `UserError` where a worker
    met one, `WorkerDied` where a local worker process ended.
    """
    if config.in_child:
        _run_watched(config, construct, arguments)
    else:
        _run_here(config.arguments(), construct, arguments)


def _run_here(options: Sequence[str], construct: Construct, arguments: Sequence[Any]) -> None:
    beam = _import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    try:
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            construct(pipeline, *arguments)
    except UserError:
        raise
    except Exception as error:
        message = _user_error_in(str(error))
        if message is None:
            raise
        raise UserError(message) from error


def _import_beam() -> Any:
    """Beam, without its remark about a Google client library that nobody here asked for."""
    root = logging.getLogger()

    def unrelated(record: logging.LogRecord) -> bool:
        return "apitools not found" not in record.getMessage()

    root.addFilter(unrelated)
    try:
        import apache_beam
    finally:
        root.removeFilter(unrelated)
    return apache_beam


def _user_error_in(text: str) -> str | None:
    """A worker in another process reports errors as text: find a `UserError` in it."""
    mark = f"{UserError.__module__}.{UserError.__name__}: "
    for line in text.splitlines():
        if mark in line:
            return line.partition(mark)[2].partition(" [while running")[0]
    return None


def _run_watched(config: RunnerConfig, construct: Construct, arguments: Sequence[Any]) -> None:
    _make_importable_for_workers()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile("r", prefix="molmoact-beam-", errors="replace") as log:
        child = context.Process(
            target=_child_main, args=(theirs, log.name, config.arguments(), construct, arguments)
        )
        child.start()
        theirs.close()
        try:
            _watch(child)
            _raise_what_the_child_met(ours, child.exitcode)
        except WorkerDied as error:
            raise WorkerDied(f"{error}. Its last words:\n{log.read()[-LAST_WORDS:]}") from None
        finally:
            _kill_tree(child.pid)


def _child_main(
    result: Connection,
    log: str,
    options: Sequence[str],
    construct: Construct,
    arguments: Sequence[Any],
) -> None:
    # Beam's workers write some forty lines each whatever the log level; they are read on failure only.
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    try:
        _run_here(options, construct, arguments)
    except UserError as error:
        result.send(("user", str(error)))
    else:
        result.send(("done", ""))


def _watch(child: Any) -> None:
    """Until the child ends. A worker that goes while the child stays for longer than the grace died."""
    import psutil

    seen: dict[int, psutil.Process] = {}
    lost_at: float | None = None
    process = psutil.Process(child.pid)
    while child.is_alive():
        child.join(LOOK_EVERY_S)
        for worker in _workers_of(process):
            seen[worker.pid] = worker
        lost = [pid for pid, worker in seen.items() if not _is_running(worker)]
        if not lost:
            continue
        lost_at = lost_at or time.monotonic()
        if child.is_alive() and time.monotonic() - lost_at > GRACE_S:
            raise WorkerDied(f"worker process {lost[0]} of {len(seen)} ended in mid-run")


def _workers_of(process: Any) -> list[Any]:
    import psutil

    try:
        children = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child for child in children if WORKER_MODULE in _command(child)]


def _command(process: Any) -> str:
    import psutil

    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return ""


def _is_running(process: Any) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _raise_what_the_child_met(result: Connection, exit_code: int | None) -> None:
    if result.poll():
        kind, message = result.recv()
        if kind == "user":
            raise UserError(message)
        return
    raise WorkerDied(f"the pipeline process ended with exit code {exit_code} and no result")


def _kill_tree(pid: int | None) -> None:
    import psutil

    if pid is None or not psutil.pid_exists(pid):
        return
    try:
        tree = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        if process.is_running():
            process.kill()
    psutil.wait_procs(tree, timeout=10)


def _make_importable_for_workers() -> None:
    """Beam starts its workers as plain `python -m ...`; they must find these packages too."""
    found = importlib.util.find_spec("pipelines")
    assert found is not None
    assert found.origin is not None
    root = str(Path(found.origin).parent.parent)
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, known)])
