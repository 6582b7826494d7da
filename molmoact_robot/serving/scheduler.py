"""One model, many robots: questions take turns by client, one at a time, in a thread of its own.

The event loop never waits for the model, so pings are answered while it thinks. A client has at most one question
running and one waiting; a third is refused, and whoever floods delays the others by one answer of its own at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from molmoact_robot.serving.protocol import Refused

Answer = TypeVar("Answer")
WAITING_PER_CLIENT = 1
CLOSING = Refused("closing", "the server is going down")
BUSY = Refused("busy", "your previous question is still waiting; ask when it is answered")


@dataclass
class _Job(Generic[Answer]):
    work: Callable[[], Answer]
    deadline: float | None
    """On the clock of `time.monotonic`."""
    future: asyncio.Future[tuple[Answer, float]]
    asked: float = field(default_factory=time.monotonic)


class Scheduler(Generic[Answer]):
    """Made and used inside a running event loop. Close it."""

    def __init__(self, *, max_waiting: int = 64) -> None:
        self._max_waiting = max_waiting
        self._waiting: OrderedDict[str, deque[_Job[Answer]]] = OrderedDict()
        self._busy = self._closed = False
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[_Job[Answer] | None] = queue.SimpleQueue()
        threading.Thread(target=self._think, name="model", daemon=True).start()

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    async def run(
        self, client: str, work: Callable[[], Answer], deadline_s: float | None = None
    ) -> tuple[Answer, float]:
        """The work's result and how long it waited, in seconds. Raises what the work raises.

        Raises `Refused`: `busy` where the client, or all together, have too much waiting; `stale` where the
        work could not begin within `deadline_s`.
        """
        mine = self._waiting.get(client, deque())
        if self._closed:
            raise CLOSING
        if len(mine) >= WAITING_PER_CLIENT:
            raise BUSY
        if self.num_waiting >= self._max_waiting:
            raise Refused("busy", f"{self.num_waiting} questions are waiting")
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        job = _Job(work, deadline, self._loop.create_future())
        mine.append(job)
        self._waiting[client] = mine
        if not self._busy:
            self._begin_next()
        return await job.future

    def close(self) -> None:
        """Refuse what waits; what runs is left to its end."""
        self._closed = True
        for mine in self._waiting.values():
            for job in mine:
                if not job.future.done():
                    job.future.set_exception(CLOSING)
        self._waiting.clear()
        self._inbox.put(None)

    def _begin_next(self) -> None:
        """The turn of the client whose last one is longest ago; who has more to ask goes to the end of the line."""
        self._busy = False
        while self._waiting and not self._busy:
            client, mine = self._waiting.popitem(last=False)
            job = mine.popleft()
            if mine:
                self._waiting[client] = mine
            if job.future.done():  # whoever asked is gone
                continue
            late = 0.0 if job.deadline is None else time.monotonic() - job.deadline
            if late > 0:
                job.future.set_exception(Refused("stale", f"its turn came {late:.3f} s too late"))
                continue
            self._busy = True
            self._inbox.put(job)

    def _think(self) -> None:
        """The model's thread."""
        while (job := self._inbox.get()) is not None:
            began = time.monotonic()
            try:
                answer = job.work()
            except Exception as error:  # noqa: BLE001 - it belongs to whoever asked; others are served on
                self._tell(self._failed, job, error)
            else:
                self._tell(self._answered, job, (answer, began - job.asked))

    def _tell(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(function, *arguments)

    def _answered(self, job: _Job[Answer], result: tuple[Answer, float]) -> None:
        if not job.future.done():
            job.future.set_result(result)
        self._begin_next()

    def _failed(self, job: _Job[Answer], error: Exception) -> None:
        if not job.future.done():
            job.future.set_exception(error)
        self._begin_next()
