"""The episodes of a shard, read in a thread of their own while the teachers label what came before.

Decoding the next batch, or the first of the next episode, takes about as long as a small network needs for
this one; a GPU would wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from molmoact_data.episodes import CameraBatch, EpisodeColumns, EpisodeRef, EpisodeSource
from molmoact_data.errors import EpisodeRejected

T = TypeVar("T")
Frames = dict[str, CameraBatch]


@dataclass(frozen=True)
class Event:
    """What was read next: an episode's columns, then its batches of frames, or why it cannot be used."""

    ref: EpisodeRef
    content: EpisodeColumns | Frames | EpisodeRejected

    def columns(self) -> EpisodeColumns:
        """The first event of an episode. Raises its `EpisodeRejected`."""
        if isinstance(self.content, EpisodeRejected):
            raise self.content
        assert isinstance(self.content, EpisodeColumns)
        return self.content

    def frames(self) -> Frames:
        """Every later event: camera key -> the next batch. Raises the episode's `EpisodeRejected`."""
        if isinstance(self.content, EpisodeRejected):
            raise self.content
        assert isinstance(self.content, dict)
        return self.content


def read_events(
    source: EpisodeSource,
    episodes: Sequence[EpisodeRef],
    camera_keys: Sequence[str],
    batch_size: int,
    extra: Sequence[str],
) -> Generator[Event, None, None]:
    """Episode after episode: columns (with the `extra` ones), then batches; or one rejection."""
    for ref in episodes:
        try:
            yield Event(ref, source.read_columns(ref, extra=extra))
            for frames in source.iter_frames(ref, camera_keys, batch_size):
                yield Event(ref, frames)
        except EpisodeRejected as verdict:  # noqa: PERF203 - an episode takes seconds
            yield Event(ref, verdict)


def read_ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The same items, up to `depth` of them made in a thread while the one before is used.

    Closes `items` at its end.
    """
    with closing(items), ThreadPoolExecutor(1, "read-ahead") as pool:
        coming = deque(pool.submit(next, items, None) for _ in range(depth))
        while (item := coming.popleft().result()) is not None:
            coming.append(pool.submit(next, items, None))
            yield item
