"""Open X-Embodiment datasets (RLDS in TFRecord shards) as an `EpisodeSource`, without TensorFlow."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, RejectReason, unknown_name
from molmoact_data.files.inputs import Folder
from molmoact_data.sources.base import (
    CameraBatch,
    CameraFeature,
    EpisodeColumns,
    EpisodeRef,
    SourceInfo,
)
from molmoact_data.sources.channels import Channel, RoundedNumberError, concatenate
from molmoact_data.sources.images import iter_image_batches, of_declared_size
from molmoact_data.sources.lerobot.instructions import frame_instructions
from molmoact_data.sources.rlds.features import RldsFeature
from molmoact_data.sources.rlds.mapping import RldsMapping
from molmoact_data.sources.rlds.tfrecord import (
    DamagedRecordError,
    FeatureValue,
    RecordSpan,
    is_gzip,
    open_records,
    parse_example,
    read_record,
    scan_records,
)

# Any of these has one value per step, so its length is the number of steps.
COUNTED_FEATURES = ("is_first", "is_last", "is_terminal", "reward", "discount")


@dataclass(frozen=True)
class Shard:
    """One TFRecord file and the records that are known to be in it."""

    path: str
    first_episode: int
    num_records: int
    spans: tuple[RecordSpan, ...] | None
    """Where the records are; None in a gzip file, and where the file was too far away to look."""
    damage: str | None = None
    """Why records beyond `spans` cannot be found."""
    num_bytes: int | None = None
    """Of a file that was not looked at, for planning."""


@dataclass
class RecordReader:
    """Payloads by episode number. Keeps one file open between neighbours, never across a pickle."""

    folder: Folder
    shards: tuple[Shard, ...]
    _open: tuple[Shard, BinaryIO] | None = field(default=None, repr=False)
    """The shard as it was found when its file was opened."""
    _next_record: int = field(default=0, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None, "_next_record": 0}

    def read(self, episode_index: int) -> bytes:
        """The episode's Example, with its checksum verified. Raises `EpisodeRejected`."""
        shard = self._shard(episode_index)
        record = episode_index - shard.first_episode
        try:
            payload = self._payload(shard, record)
        except (DamagedRecordError, OSError, EOFError, zlib.error) as error:
            self._open = None
            reason = (
                RejectReason.CHECKSUM_MISMATCH
                if "checksum" in str(error).lower()
                else RejectReason.ROWS_UNREADABLE
            )
            raise EpisodeRejected(reason, f"{shard.path}: {error}") from error
        if payload is None:
            raise EpisodeRejected(
                RejectReason.ROWS_MISSING, f"{shard.path} ends before record {record}"
            )
        return payload

    def _shard(self, episode_index: int) -> Shard:
        for shard in self.shards:
            if 0 <= episode_index - shard.first_episode < shard.num_records:
                return shard
        raise EpisodeRejected(RejectReason.ROWS_MISSING, f"no shard holds episode {episode_index}")

    def _payload(self, shard: Shard, record: int) -> bytes | None:
        found, file = self._file(shard, record)
        if found.spans is not None:
            if record >= len(found.spans):
                raise EpisodeRejected(
                    RejectReason.ROWS_UNREADABLE,
                    found.damage or f"{found.path} ends before record {record}",
                )
            file.seek(found.spans[record].offset)
        else:
            while self._next_record < record:
                read_record(file, f"record {self._next_record}")
                self._next_record += 1
        payload = read_record(file, f"record {record}")
        self._next_record = record + 1
        return payload

    def _file(self, shard: Shard, record: int) -> tuple[Shard, BinaryIO]:
        """The open file and what is in it. A gzip file is opened again to go back in it."""
        known, file = self._open or (None, None)
        same = known is not None and known.path == shard.path
        rewind = known is not None and known.spans is None and self._next_record > record
        if known is None or file is None or not same or rewind:
            if file is not None:
                file.close()
            local = self.folder.fetch(shard.path)
            known, file = look_into(local, shard), open_records(local)
            self._open = (known, file)
            self._next_record = 0
        return known, file


def look_into(local: Path, shard: Shard) -> Shard:
    """The shard with the spans of its records, unless it is gzip or they are known."""
    if shard.spans is not None or is_gzip(local):
        return shard
    spans, damage = scan_records(local)
    return replace(shard, spans=tuple(spans), damage=damage)


@dataclass
class RldsSource:
    """One split of an RLDS dataset; made by `molmoact_data.sources.open_source`."""

    info: SourceInfo
    episodes: Sequence[EpisodeRef]
    records: RecordReader
    features: Mapping[str, RldsFeature]
    mapping: RldsMapping

    def read_columns(self, ref: EpisodeRef, extra: Sequence[str] = ()) -> EpisodeColumns:
        """Numbers and text of one episode. Raises `EpisodeRejected`."""
        channels = (*self.mapping.action, *self.mapping.state)
        numeric = dict.fromkeys([*(c.feature for c in channels), *extra])
        texts = [name for name in self.mapping.instruction if name in self.features]
        raw = self._parse(ref, [*numeric, *texts])
        num_steps = count_steps(raw, self.features)
        values = {name: self._numbers(raw, name, num_steps) for name in numeric}
        action = _concatenated(
            self.mapping.action,
            values,
            RejectReason.ACTION_DIMENSION_DIFFERS,
            RejectReason.ACTION_NON_FINITE,
        )
        state = None
        if self.mapping.state:
            state = _concatenated(
                self.mapping.state,
                values,
                RejectReason.STATE_DIMENSION_DIFFERS,
                RejectReason.STATE_NON_FINITE,
            )
        frame_index = np.arange(num_steps, dtype=np.int32)
        return EpisodeColumns(
            episode_index=ref.episode_index,
            frame_index=frame_index,
            timestamp_s=(frame_index / self.mapping.fps).astype(np.float32),
            instructions=self._instructions(raw, texts, num_steps),
            action=action,
            state=state,
            extra={name: values[name] for name in extra},
        )

    def iter_frames(
        self, ref: EpisodeRef, camera_keys: Sequence[str], batch_size: int
    ) -> Iterator[dict[str, CameraBatch]]:
        """The stored JPEG or PNG bytes and their pixels, all cameras in lockstep."""
        cameras = [self._camera(key) for key in camera_keys]
        action = [channel.feature for channel in self.mapping.action]
        raw = self._parse(ref, [*camera_keys, *action])
        num_steps = count_steps(raw, self.features)
        streams = [self._images(raw, camera, num_steps, batch_size) for camera in cameras]
        for _ in range(0, num_steps, batch_size):
            yield {key: next(stream) for key, stream in zip(camera_keys, streams, strict=True)}

    def _images(
        self,
        raw: Mapping[str, FeatureValue],
        camera: CameraFeature,
        num_steps: int,
        batch_size: int,
    ) -> Iterator[CameraBatch]:
        """Flags such as `has_image_0` are not asked: what counts is whether there are pictures."""
        encoded = raw.get(self.features[camera.key].key)
        if not isinstance(encoded, list) or not any(encoded):
            raise EpisodeRejected(RejectReason.IMAGE_MISSING, f"{camera.key} holds no images")
        if blank := [step for step, data in enumerate(encoded) if not data]:
            raise EpisodeRejected(
                RejectReason.IMAGE_MISSING, f"{camera.key}: step {blank[0]} is empty"
            )
        batches = iter_image_batches(
            encoded, num_steps, batch_size, key=camera.key, is_depth=camera.is_depth
        )
        for number, batch in enumerate(of_declared_size(batches, camera)):
            if number == 0 and not camera.is_depth and np.ptp(batch.rgb_NHWC[0]) == 0:
                raise EpisodeRejected(
                    RejectReason.IMAGE_MISSING, f"{camera.key} is a placeholder of one colour"
                )
            yield batch

    def _parse(self, ref: EpisodeRef, names: Sequence[str]) -> dict[str, FeatureValue]:
        keys = [self.features[name].key for name in names if name in self.features]
        counted = [self.features[n].key for n in COUNTED_FEATURES if n in self.features]
        try:
            return parse_example(self.records.read(ref.episode_index), {*keys, *counted})
        except DamagedRecordError as error:
            raise EpisodeRejected(RejectReason.ROWS_UNREADABLE, str(error)) from error

    def _numbers(self, raw: Mapping[str, FeatureValue], name: str, num_steps: int) -> NDArray[Any]:
        feature = self.features.get(name)
        if feature is None or feature.key not in raw:
            raise EpisodeRejected(RejectReason.COLUMN_MISSING, f"no feature {name!r}")
        try:
            return feature.values(raw[feature.key], num_steps)
        except ValueError as error:
            raise EpisodeRejected(
                RejectReason.ACTION_DIMENSION_DIFFERS, f"{name}: {error}"
            ) from error

    def _instructions(
        self, raw: Mapping[str, FeatureValue], names: Sequence[str], num_steps: int
    ) -> tuple[str, ...]:
        columns: dict[str, list[str | None]] = {}
        for name in names:
            feature = self.features[name]
            value = raw.get(feature.key)
            if value is None or not len(value):
                continue
            try:
                texts = feature.texts(value, num_steps)
            except ValueError as error:
                raise EpisodeRejected(
                    RejectReason.INSTRUCTION_MISSING, f"{name}: {error}"
                ) from error
            if len(texts) not in (1, num_steps):
                raise EpisodeRejected(
                    RejectReason.INSTRUCTION_AMBIGUOUS,
                    f"{name} has {len(texts)} texts for {num_steps} steps",
                )
            columns[name] = texts if len(texts) == num_steps else texts * num_steps
        return frame_instructions(num_steps, None, {}, columns, ())

    def _camera(self, key: str) -> CameraFeature:
        by_key = {camera.key: camera for camera in self.info.cameras}
        if key not in by_key:
            raise unknown_name("camera", key, by_key)
        return by_key[key]


def _concatenated(
    channels: Sequence[Channel],
    values: Mapping[str, NDArray[Any]],
    differs: RejectReason,
    non_finite: RejectReason,
) -> NDArray[np.float32]:
    """[T, D] float32, finite."""
    try:
        found = concatenate(channels, values)
    except RoundedNumberError as error:
        raise EpisodeRejected(RejectReason.NUMBER_ROUNDED, str(error)) from error
    except ValueError as error:
        raise EpisodeRejected(differs, str(error)) from error
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        step, axis = (int(n) for n in bad[0])
        raise EpisodeRejected(non_finite, f"step {step}, dimension {axis} is {found[step, axis]}")
    return found


def count_steps(raw: Mapping[str, FeatureValue], features: Mapping[str, RldsFeature]) -> int:
    """Steps of the episode: every feature with as many values in each step must say the same number.

    Raises `EpisodeRejected` where they contradict each other, or none is there.
    """
    counts: dict[str, int] = {}
    for feature in features.values():
        if (
            not feature.per_step
            or feature.nested
            or feature.key not in raw
            or feature.kind == "text"
        ):
            continue
        try:
            count = feature.count(raw[feature.key])
        except ValueError as error:
            raise EpisodeRejected(
                RejectReason.ACTION_DIMENSION_DIFFERS, f"{feature.name}: {error}"
            ) from error
        if count is not None and (count or feature.kind != "image"):
            counts[feature.name] = count
    if not any(counts.values()):
        raise EpisodeRejected(RejectReason.ROWS_EMPTY, "the episode has no steps")
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise EpisodeRejected(
            RejectReason.LENGTHS_DISAGREE, f"the features have different numbers of steps: {said}"
        )
    return next(iter(counts.values()))
