"""Other processes that play trials: one JSON line in, one out. The same boundary for one machine's cores and for an
environment that lives in a Python of its own (`python` names it).
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from molmoact_data.config import build
from molmoact_data.errors import UserError
from molmoact_robot.player import Player, PlayerConfig
from molmoact_robot.results import TrialResult
from molmoact_robot.rollout import Trial

ROOT = Path(__file__).resolve().parent.parent


class Workers:
    """`count` processes over one list of trials; each takes the next trial when it is free."""

    def __init__(
        self, config: PlayerConfig, folder: Path, count: int, *, python: str = sys.executable
    ) -> None:
        self._config, self._folder, self._count, self._python = config, folder, count, python
        self._answers: queue.Queue[TrialResult | Exception | None] = queue.Queue()

    def play(self, trials: Sequence[Trial]) -> Iterator[TrialResult]:
        """Results as they are ready. Raises what a worker could not do; the others are stopped."""
        todo: queue.SimpleQueue[Trial] = queue.SimpleQueue()
        for trial in trials:
            todo.put(trial)
        processes = [self._start() for _ in range(self._count)]
        threads = [
            threading.Thread(target=self._feed, args=(p, todo), daemon=True) for p in processes
        ]
        for thread in threads:
            thread.start()
        try:
            running = len(threads)
            while running:
                answer = self._answers.get()
                if isinstance(answer, Exception):
                    raise answer
                if answer is None:
                    running -= 1
                else:
                    yield answer
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def _start(self) -> subprocess.Popen[str]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [self._python, "-m", "molmoact_robot.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert process.stdin is not None
        first = {"config": asdict(self._config), "folder": str(self._folder.resolve())}
        process.stdin.write(json.dumps(first) + "\n")
        process.stdin.flush()
        return process

    def _feed(self, process: subprocess.Popen[str], todo: queue.SimpleQueue[Trial]) -> None:
        """Give one process trials until there are none; whatever ends it early is the answer."""
        assert process.stdin is not None
        assert process.stdout is not None
        while True:
            try:
                trial = todo.get_nowait()
            except queue.Empty:
                self._answers.put(None)
                return
            try:
                process.stdin.write(json.dumps(asdict(trial)) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:
                line = ""
            if not line:
                self._answers.put(
                    RuntimeError(
                        f"a worker died with exit code {process.wait()} while it played {trial.name}; what it "
                        "wrote is above. --resume goes on with the rest."
                    )
                )
                return
            answer = json.loads(line)
            if "error" in answer:
                self._answers.put(UserError(answer["error"]))
                return
            self._answers.put(build(TrialResult, answer))


def main() -> None:
    """The worker's side: the first line says what to play with, each further line is a trial."""
    # Simulators print; only answers may be on the pipe.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    first = json.loads(sys.stdin.readline())
    player: Player | None = None
    try:
        for line in sys.stdin:
            try:
                if player is None:
                    player = Player(build(PlayerConfig, first["config"]), Path(first["folder"]))
                answer = asdict(player.play(build(Trial, json.loads(line))))
            except UserError as error:
                answer = {"error": str(error)}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    finally:
        if player is not None:
            player.close()


if __name__ == "__main__":
    main()
