"""Other processes that play trials: one JSON line in, one out. The same boundary for one machine's cores and for an
environment that lives in a Python of its own (`python` names it).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from molmoact_data.config import build
from molmoact_data.errors import UserError
from molmoact_robot.evaluation.player import Facts, Player, PlayerConfig
from molmoact_robot.evaluation.results import TrialResult
from molmoact_robot.rollout import Trial

ROOT = Path(__file__).resolve().parents[2]


class Workers:
    """`count` processes over one list of trials; each takes the next trial when it is free. A context manager."""

    def __init__(
        self, config: PlayerConfig, folder: Path, count: int, *, python: str = sys.executable
    ) -> None:
        self._config, self._folder, self._count, self._python = config, folder, count, python
        self._answers: queue.Queue[TrialResult | Exception | None] = queue.Queue()
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Workers:
        """Start them; returns when each is ready. Raises `UserError` for what one cannot do."""
        try:
            self._processes = [self._start() for _ in range(self._count)]
            ready = [Facts(**_answer(process, "it was started")) for process in self._processes]
        except BaseException:
            self.__exit__()
            raise
        self.facts = ready[0]
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def play(self, trials: Sequence[Trial]) -> Iterator[TrialResult]:
        """Results as they are ready. Raises what a worker could not do."""
        todo: queue.SimpleQueue[Trial] = queue.SimpleQueue()
        for trial in trials:
            todo.put(trial)
        for process in self._processes:
            threading.Thread(target=self._feed, args=(process, todo), daemon=True).start()
        running = len(self._processes)
        while running:
            answer = self._answers.get()
            if isinstance(answer, Exception):
                raise answer
            if answer is None:
                running -= 1
            else:
                yield answer

    def _start(self) -> subprocess.Popen[str]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            process = subprocess.Popen(
                [self._python, "-m", "molmoact_robot.evaluation.workers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        except OSError as error:
            raise UserError(f"cannot start {self._python}: {error.strerror}.") from error
        _send(process, {"config": asdict(self._config), "folder": str(self._folder.resolve())})
        return process

    def _feed(self, process: subprocess.Popen[str], todo: queue.SimpleQueue[Trial]) -> None:
        """Give one process trials until there are none; whatever ends it early is the answer."""
        try:
            while True:
                trial = todo.get_nowait()
                _send(process, asdict(trial))
                answer = _answer(process, f"it played {trial.name}")
                self._answers.put(build(TrialResult, answer))
        except queue.Empty:
            self._answers.put(None)
        except (UserError, RuntimeError) as error:
            self._answers.put(error)


def _send(process: subprocess.Popen[str], message: dict[str, Any]) -> None:
    """One line. A process that is gone is noticed by the answer that does not come."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()


def _answer(process: subprocess.Popen[str], doing: str) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(
            f"a worker died with exit code {process.wait()} while {doing}; what it wrote is above. "
            "--resume goes on with the rest."
        )
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise UserError(answer["error"])
    return answer


def main() -> None:
    """The worker's side: the first line says what to play with, each further line is a trial."""
    # Simulators print; only answers may be on the pipe.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    first = json.loads(sys.stdin.readline())
    try:
        player = Player(build(PlayerConfig, first["config"]), Path(first["folder"]))
    except UserError as error:
        say({"error": str(error)})
        return
    try:
        say(asdict(player.facts))
        for line in sys.stdin:
            say(asdict(player.play(build(Trial, json.loads(line)))))
    except UserError as error:
        say({"error": str(error)})
    finally:
        player.close()


if __name__ == "__main__":
    main()
