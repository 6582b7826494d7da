"""Collects the gripper points of one episode while its frames go by, whichever pointer is used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from molmoact_data.labels.pointing import ColumnPointer, GripperPointer, GripperPoints
from molmoact_data.labels.tracking import FramePointer, PointTracker
from molmoact_data.sources.base import EpisodeColumns
from molmoact_data.teachers.cached import CachedPointer, EpisodeKey
from pipelines.job import Job


@dataclass(frozen=True)
class CollectedPoints:
    """The points of T frames, and how well forward and backward tracking agree."""

    points: GripperPoints
    disagreement_TA: NDArray[np.float32] | None
    """Share of the diagonal, NaN on keyframes; None where nothing was tracked."""


class PointCollector(Protocol):
    """Fed with every batch of the labelled camera, in order; answers at the end."""

    def push(self, rgb_NHWC: NDArray[np.uint8]) -> None:
        """The next N frames."""
        ...

    def finish(self) -> CollectedPoints | None:
        """Points of all frames pushed, or None where none were asked for."""
        ...


def collect_points(
    pointer: GripperPointer | ColumnPointer | None, job: Job, columns: EpisodeColumns
) -> PointCollector:
    """The collector that fits the pointer."""
    if pointer is None:
        return CollectNothing()
    if isinstance(pointer, ColumnPointer):
        return CollectRecorded(pointer, columns)
    asked: GripperPointer | FramePointer = pointer
    if job.point_cache is not None:
        key = EpisodeKey(
            job.source.name, job.source.revision, job.labelled_camera, columns.episode_index
        )
        asked = CachedPointer(pointer, Path(job.point_cache), key)
    return CollectTracked(PointTracker(asked, job.labels.pointer_prompt, job.labels.point_every))


class CollectNothing:
    """No pointer was asked for."""

    def push(self, rgb_NHWC: NDArray[np.uint8]) -> None:
        """Nothing to look at."""

    def finish(self) -> None:
        """No points."""


class CollectRecorded:
    """Points that the dataset's own columns hold; the frames only say how large the image is."""

    def __init__(self, pointer: ColumnPointer, columns: EpisodeColumns) -> None:
        self._pointer = pointer
        self._columns = columns
        self._image_hw = (0, 0)

    def push(self, rgb_NHWC: NDArray[np.uint8]) -> None:
        """Remember the image size."""
        self._image_hw = (rgb_NHWC.shape[1], rgb_NHWC.shape[2])

    def finish(self) -> CollectedPoints:
        """Ask once for the whole episode."""
        points = self._pointer.point_columns(self._columns.extra, self._image_hw)
        return CollectedPoints(points, None)


class CollectTracked:
    """A pointer on keyframes, optical flow in between; with K = 1 the pointer alone."""

    def __init__(self, tracker: PointTracker) -> None:
        self._tracker = tracker

    def push(self, rgb_NHWC: NDArray[np.uint8]) -> None:
        """Point at the keyframes of this batch and follow them."""
        self._tracker.push(rgb_NHWC)

    def finish(self) -> CollectedPoints:
        """Points of all frames."""
        tracked = self._tracker.finish()
        return CollectedPoints(tracked.points, tracked.disagreement_TA)
