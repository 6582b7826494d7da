"""LeRobot datasets v2.0, v2.1 and v3.0 as an `EpisodeSource`, without LeRobot."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, RejectReason, unknown_name
from molmoact_data.files.inputs import Folder, LocalFolder, OutsideDatasetError, is_inside
from molmoact_data.sources.base import (
    CameraBatch,
    CameraFeature,
    EpisodeColumns,
    EpisodeRef,
    SourceInfo,
)
from molmoact_data.sources.channels import Channel, RoundedNumberError, concatenate
from molmoact_data.sources.images import image_batch, iter_image_batches, of_declared_size
from molmoact_data.sources.lerobot.clock import clock_problem
from molmoact_data.sources.lerobot.instructions import (
    frame_instructions,
    no_text_columns,
    text_columns,
    text_values,
)
from molmoact_data.sources.lerobot.mapping import LeRobotMapping
from molmoact_data.sources.lerobot.metadata import LeRobotMetadata
from molmoact_data.sources.lerobot.places import EPISODE_INDEX
from molmoact_data.sources.lerobot.rows import RaggedColumnError, RowReader, dense, numbers
from molmoact_data.sources.video.clip import VideoClip, count_frames, iter_video, picture_hw

FRAME_INDEX, TIMESTAMP, TASK_INDEX = "frame_index", "timestamp", "task_index"
INDEX = "index"
"""Rows of the whole dataset, counted from 0."""


@dataclass
class LeRobotSource:
    """One dataset; made by `molmoact_data.sources.open_source`. Pickles without open files."""

    info: SourceInfo
    episodes: Sequence[EpisodeRef]
    folder: Folder
    metadata: LeRobotMetadata
    rows: RowReader
    mapping: LeRobotMapping
    threads: int | None = None
    """Decoder threads per camera; None = two. docs/sources.md says what it buys."""

    def read_columns(self, ref: EpisodeRef, extra: Sequence[str] = ()) -> EpisodeColumns:
        """Rows of one episode without touching images. Raises `EpisodeRejected`."""
        episode = ref.episode_index
        texts = text_columns(self.rows.schema(episode))
        table = self._rows(
            episode,
            [*self.mapping.columns, TIMESTAMP, FRAME_INDEX, INDEX, TASK_INDEX, *texts, *extra],
        )
        for name in (*self.mapping.columns, *extra):
            if name not in table.column_names:
                raise EpisodeRejected(
                    RejectReason.COLUMN_MISSING, f"rows of episode {episode} have no {name!r}"
                )
        frame_index, timestamp_s = _clock(table, self.info.fps)
        return EpisodeColumns(
            episode_index=episode,
            frame_index=frame_index,
            timestamp_s=timestamp_s,
            instructions=self._instructions(episode, table, texts),
            action=_vectors(
                table,
                self.mapping.action,
                self.info.action_dim,
                RejectReason.ACTION_DIMENSION_DIFFERS,
                RejectReason.ACTION_NON_FINITE,
            ),
            state=None
            if self.info.state_dim is None
            else _vectors(
                table,
                self.mapping.state,
                self.info.state_dim,
                RejectReason.STATE_DIMENSION_DIFFERS,
                RejectReason.STATE_NON_FINITE,
            ),
            extra={name: _extra(table, name) for name in extra},
        )

    def iter_frames(
        self, ref: EpisodeRef, camera_keys: Sequence[str], batch_size: int
    ) -> Iterator[dict[str, CameraBatch]]:
        """All cameras in lockstep, each decoded once; see `EpisodeSource.iter_frames`."""
        table = self._rows(ref.episode_index, [TIMESTAMP, FRAME_INDEX, INDEX])
        _, timestamp_s = _clock(table, self.info.fps)
        with ExitStack() as stack:
            streams = {
                key: stack.enter_context(
                    closing(
                        self._iter_camera(
                            ref.episode_index, self._camera(key), timestamp_s, batch_size
                        )
                    )
                )
                for key in camera_keys
            }
            # Every stream gives exactly the rows' frames or rejects. No name here holds on to a batch:
            # memory that was just freed is warm, and fresh pages cost 20 % of the time.
            for _ in range(0, len(timestamp_s), batch_size):
                yield {key: next(stream) for key, stream in streams.items()}

    def _rows(self, episode: int, columns: Sequence[str]) -> pa.Table:
        """The episode's rows, as many as the metadata declares and all of it. Raises `EpisodeRejected`."""
        names = dict.fromkeys([*columns, EPISODE_INDEX])
        table = self.rows.read(episode, list(names))
        declared = self.metadata.declared_length(episode)
        if declared is not None and len(table) != declared:
            raise EpisodeRejected(
                RejectReason.LENGTHS_DISAGREE,
                f"{len(table)} rows in {', '.join(self.rows.files(episode))}, {declared} rows declared, "
                f"{self._pictures(episode)}",
            )
        if EPISODE_INDEX in table.column_names:
            numbered = numbers(table, EPISODE_INDEX)
            other = np.flatnonzero(numbered != episode)
            if len(other):
                raise EpisodeRejected(
                    RejectReason.ROWS_OUT_OF_ORDER,
                    f"row {other[0]} of episode {episode} says it is of episode {numbered[other[0]]}",
                )
        return table

    def _pictures(self, episode: int) -> str:
        """How many pictures the first camera with a video has, in words; nothing is downloaded for that."""
        video = next((c for c in self.info.cameras if c.storage == "video"), None)
        if video is None or not isinstance(self.folder, LocalFolder):
            return "pictures as rows" if video is None else "pictures not counted"
        try:
            span = self.metadata.video_span(episode, video.key)
            clip = VideoClip(self.folder.fetch(span.path), span.start_s, span.end_s)
            return f"{count_frames(clip, self.info.fps)} pictures of {video.key}"
        except (FileNotFoundError, EpisodeRejected):
            return f"no readable pictures of {video.key}"

    def _camera(self, key: str) -> CameraFeature:
        by_key = {camera.key: camera for camera in self.info.cameras}
        if key not in by_key:
            raise unknown_name("camera", key, by_key)
        return by_key[key]

    def _iter_camera(
        self,
        episode: int,
        camera: CameraFeature,
        timestamp_s: NDArray[np.float32],
        batch_size: int,
    ) -> Generator[CameraBatch, None, None]:
        if camera.storage == "video":
            return of_declared_size(
                self._iter_video(episode, camera, timestamp_s, batch_size), camera
            )
        images = iter_image_batches(
            self._encoded_images(episode, camera.key, len(timestamp_s), batch_size),
            len(timestamp_s),
            batch_size,
            key=camera.key,
            is_depth=camera.is_depth,
        )
        return of_declared_size(images, camera)

    def picture_hw(self, episode: int, camera: CameraFeature) -> tuple[int, int]:
        """Height and width of the episode's first picture. Raises `EpisodeRejected`, `FileNotFoundError`."""
        if camera.storage == "video":
            return picture_hw(self.folder.fetch(self.metadata.video_span(episode, camera.key).path))
        first = next(iter(self._encoded_images(episode, camera.key, 1, 1)))
        batch = image_batch([first], key=camera.key, is_depth=camera.is_depth)
        height, width = batch.rgb_NHWC.shape[1:3]
        return height, width

    def video_file(self, ref: EpisodeRef, camera_key: str) -> Path:
        """The file with this episode's video, inside the dataset's folder and on this machine."""
        return self.folder.fetch(self.metadata.video_span(ref.episode_index, camera_key).path)

    def _iter_video(
        self,
        episode: int,
        camera: CameraFeature,
        timestamp_s: NDArray[np.float32],
        batch_size: int,
    ) -> Generator[CameraBatch, None, None]:
        try:
            span = self.metadata.video_span(episode, camera.key)
            shared = self.metadata.shared_file(episode, camera.key)
            held = self.folder.hold(span.path)  # every decoding thread opens the file
        except OutsideDatasetError as error:
            raise EpisodeRejected(RejectReason.PATH_OUTSIDE_DATASET, str(error)) from error
        except FileNotFoundError as error:
            raise EpisodeRejected(RejectReason.VIDEO_MISSING, f"no such file: {error}") from error
        with held as path:
            frames = iter_video(
                VideoClip(path, span.start_s, span.end_s, episode, shared),
                timestamp_s,
                fps=self.info.fps,
                batch_size=batch_size,
                is_depth=camera.is_depth,
                threads=self.threads,
            )
            with closing(frames):
                yield from map(_without_bytes, frames)

    def _encoded_images(
        self, episode: int, key: str, num_frames: int, batch_size: int
    ) -> Iterable[bytes]:
        if key not in self.rows.schema(episode).names:
            for frame in range(num_frames):
                yield self._image_file(episode, key, f"frame_{frame:06d}.png")
            return
        frame = 0
        for column in self.rows.iter_column(episode, key, batch_size):
            for cell in column.to_pylist():
                yield self._image_cell(episode, key, frame, cell)
                frame += 1

    def _image_cell(self, episode: int, key: str, frame: int, cell: Any) -> bytes:
        """One image of a Parquet column: bare bytes or path, or a struct of both."""
        if isinstance(cell, bytes):
            return cell
        if isinstance(cell, str):
            return self._image_file(episode, key, cell)
        if isinstance(cell, dict) and cell.get("bytes"):
            return cell["bytes"]
        if isinstance(cell, dict) and cell.get("path"):
            return self._image_file(episode, key, str(cell["path"]))
        raise EpisodeRejected(
            RejectReason.IMAGE_MISSING,
            f"{key}, frame {frame} of episode {episode} has neither bytes nor a path",
        )

    def _image_file(self, episode: int, key: str, path: str) -> bytes:
        """An image beside the rows: where the path says, or in LeRobot's own folder for it."""
        name = path.rpartition("/")[2]
        in_place = f"images/{key}/episode_{episode:06d}/{name}"
        found = path if self.folder.exists(path) else in_place
        if not is_inside(path) and not self.folder.exists(in_place):
            raise EpisodeRejected(
                RejectReason.PATH_OUTSIDE_DATASET,
                f"{key} of episode {episode} names {path!r}, which is not inside the dataset",
            )
        try:
            return self.folder.fetch(found).read_bytes()
        except OutsideDatasetError as error:
            raise EpisodeRejected(RejectReason.PATH_OUTSIDE_DATASET, str(error)) from error
        except OSError as error:
            raise EpisodeRejected(RejectReason.IMAGE_MISSING, f"no such file: {error}") from error

    def _instructions(self, episode: int, table: pa.Table, texts: Sequence[str]) -> tuple[str, ...]:
        has_index = TASK_INDEX in table.column_names
        task_index = _whole_numbers(numbers(table, TASK_INDEX)) if has_index else None
        return frame_instructions(
            len(table),
            task_index,
            self.metadata.tasks,
            {name: text_values(table[name]) for name in texts},
            self.metadata.episode_tasks(episode),
            no_text_columns(self.rows.schema(episode)),
        )


def _whole_numbers(values: NDArray[Any]) -> NDArray[np.int64]:
    """Task numbers; -1, which is no task, for a null, true, false and anything between two numbers."""
    if values.dtype.kind == "b":
        return np.full(len(values), -1)
    if values.dtype.kind == "f":
        whole = np.isfinite(values) & (values == np.floor(values)) & (abs(values) < 2**53)
        return np.where(whole, values, -1).astype(np.int64)
    return values.astype(np.int64)


def _without_bytes(pixels: NDArray[Any]) -> CameraBatch:
    return CameraBatch(pixels, None)


def _clock(table: pa.Table, fps: float) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Frame indices [T] and seconds from the start [T]; rows must be 0, 1, 2, ... in time."""
    counted = np.arange(len(table), dtype=np.int32)
    names = table.column_names
    frame_index = numbers(table, FRAME_INDEX) if FRAME_INDEX in names else counted
    if not np.array_equal(frame_index, counted):
        row = int(np.flatnonzero(frame_index != counted)[0])
        raise EpisodeRejected(
            RejectReason.ROWS_OUT_OF_ORDER, f"row {row} says frame_index {frame_index[row]}"
        )
    if FRAME_INDEX not in names and INDEX in names:
        _refuse_other_order(numbers(table, INDEX))
    if TIMESTAMP not in names:
        return counted, (counted / fps).astype(np.float32)
    timestamp_s = numbers(table, TIMESTAMP).astype(np.float64)
    late = np.flatnonzero(~(np.diff(timestamp_s) > 0))
    if len(late) or not np.isfinite(timestamp_s).all():
        row = int(late[0]) + 1 if len(late) else 0
        raise EpisodeRejected(
            RejectReason.ROWS_OUT_OF_ORDER,
            f"time does not go forward at row {row}: {timestamp_s[row]:.9g} s",
        )
    if (problem := clock_problem(timestamp_s, fps)) is not None:
        raise EpisodeRejected(RejectReason.CLOCK_NOT_SECONDS, problem)
    return counted, timestamp_s.astype(np.float32)


def _refuse_other_order(index: NDArray[Any]) -> None:
    """`EpisodeRejected` where the dataset's row numbers [T], which stand for the frames', do not count up."""
    jumps = np.flatnonzero(index[1:] != index[:-1] + 1)
    if len(jumps):
        row = int(jumps[0]) + 1
        raise EpisodeRejected(
            RejectReason.ROWS_OUT_OF_ORDER,
            f"row {row} says {INDEX} {index[row]} after {index[row - 1]}, and there is no {FRAME_INDEX}",
        )


def _vectors(
    table: pa.Table,
    channels: Sequence[Channel],
    dim: int,
    differs: RejectReason,
    non_finite: RejectReason,
) -> NDArray[np.float32]:
    """[T, dim] float32, finite; a plain number column is one number wide."""
    try:
        columns = {channel.feature: dense(table[channel.feature]) for channel in channels}
        values = concatenate(channels, columns)
    except RoundedNumberError as error:
        raise EpisodeRejected(RejectReason.NUMBER_ROUNDED, str(error)) from error
    except (RaggedColumnError, TypeError, ValueError) as error:
        raise EpisodeRejected(differs, f"{error}; the dataset has {dim}") from error
    if values.shape[1] != dim:
        raise EpisodeRejected(differs, f"{values.shape[1]} values, the dataset has {dim}")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, axis = (int(n) for n in bad[0])
        raise EpisodeRejected(
            non_finite, f"row {row}, dimension {axis} is {values[row, axis]} ({len(bad)} in all)"
        )
    return values


def _extra(table: pa.Table, name: str) -> NDArray[np.generic]:
    try:
        return dense(table[name])
    except (RaggedColumnError, TypeError) as error:
        raise EpisodeRejected(
            RejectReason.COLUMN_MISSING, f"{name!r} is not a numeric column: {error}"
        ) from error
