"""The reading half of a shard: columns, decoded frames and stored images, in a thread of its own.

While the teachers label one batch, the next, or the first of the next episode, is decoded and its images are
encoded; a GPU would wait for both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.errors import EpisodeRejected
from molmoact_data.pictures.images import encode_jpeg
from molmoact_data.sources.base import CameraBatch, EpisodeColumns, EpisodeRef, EpisodeSource
from pipelines.job import Job

T = TypeVar("T")


@dataclass(frozen=True)
class FrameBatch:
    """The next frames of an episode: pixels for the teachers, bytes for the shard."""

    rgb_NHWC: NDArray[np.uint8]
    """Of the labelled camera."""
    images: pa.RecordBatch
    """The stored image of every camera."""


@dataclass(frozen=True)
class Event:
    """What was read next: an episode's columns, then its frames, or why it cannot be used."""

    ref: EpisodeRef
    content: EpisodeColumns | FrameBatch | EpisodeRejected

    def columns(self) -> EpisodeColumns:
        """The first event of an episode. Raises its `EpisodeRejected`."""
        if isinstance(self.content, EpisodeRejected):
            raise self.content
        assert isinstance(self.content, EpisodeColumns)
        return self.content

    def frames(self) -> FrameBatch:
        """Every later event. Raises the episode's `EpisodeRejected`."""
        if isinstance(self.content, EpisodeRejected):
            raise self.content
        assert isinstance(self.content, FrameBatch)
        return self.content


def read_events(
    job: Job, source: EpisodeSource, episodes: Sequence[EpisodeRef], extra: Sequence[str]
) -> Generator[Event, None, None]:
    """Episode after episode: columns (with the `extra` ones), then batches; or one rejection."""
    for ref in episodes:
        try:
            yield Event(ref, source.read_columns(ref, extra=extra))
            for batch in read_frames(job, source, ref):
                yield Event(ref, batch)
        except EpisodeRejected as verdict:
            yield Event(ref, verdict)


def read_frames(
    job: Job, source: EpisodeSource, ref: EpisodeRef
) -> Generator[FrameBatch, None, None]:
    """All frames of one episode, decoded once, images encoded."""
    keys = list(job.cameras.values())
    for batch in source.iter_frames(ref, keys, job.labels.batch_size):
        yield FrameBatch(batch[job.labelled_camera].rgb_NHWC, encode_images(job, batch))


def image_schema(layout: schema.RecordLayout) -> pa.Schema:
    """The image columns alone: what waits on disk."""
    return pa.schema([(schema.image_column(role), schema.IMAGE_TYPE) for role in layout.cameras])


def encode_images(job: Job, batch: Mapping[str, CameraBatch]) -> pa.RecordBatch:
    """One decoded batch as stored bytes; the source's own bytes where it has them."""
    arrays = []
    for key in job.cameras.values():
        frames = batch[key]
        encoded = frames.encoded or [
            encode_jpeg(rgb, job.labels.jpeg_quality) for rgb in frames.rgb_NHWC
        ]
        paths = pa.nulls(len(encoded), pa.string())
        columns = [pa.array(encoded, pa.binary()), paths]
        arrays.append(pa.StructArray.from_arrays(columns, fields=list(schema.IMAGE_TYPE)))
    return pa.RecordBatch.from_arrays(arrays, schema=image_schema(job.layout))


def read_ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The same items, up to `depth` of them made in a thread while the one before is used.

    Closes `items` at its end.
    """
    with closing(items), ThreadPoolExecutor(1, "read-ahead") as pool:
        coming = deque(pool.submit(next, items, None) for _ in range(depth))
        while (item := coming.popleft().result()) is not None:
            coming.append(pool.submit(next, items, None))
            yield item
