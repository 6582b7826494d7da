"""Open a LeRobot dataset: read what it declares, look at the rows, and say where they disagree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, UserError
from molmoact_data.files.inputs import Folder, HubFolder, LocalFolder
from molmoact_data.sources.base import CameraFeature, EpisodeRef, SourceInfo
from molmoact_data.sources.channels import OWN_MAPPING, Channel
from molmoact_data.sources.lerobot.clock import clock_problem
from molmoact_data.sources.lerobot.info import declared_cameras
from molmoact_data.sources.lerobot.mapping import (
    ACTION_COLUMNS,
    STATE_COLUMNS,
    LeRobotMapping,
    choose_mapping,
    no_numbers,
    read_mapping,
)
from molmoact_data.sources.lerobot.metadata import LeRobotMetadata, read_metadata
from molmoact_data.sources.lerobot.places import (
    RowCounts,
    count_rows,
    rows_elsewhere,
    span_warnings,
    warnings_of,
)
from molmoact_data.sources.lerobot.rows import (
    RaggedColumnError,
    RowReader,
    dense,
    is_numeric,
    numbers,
)
from molmoact_data.sources.lerobot.source import TIMESTAMP, LeRobotSource

PROBED_EPISODES = 3
CHECKED_ROW_FILES = 5_000
"""v2.x has a Parquet file per episode; beyond this many, the rest of the lengths is not checked."""
FPS_TOLERANCE = 0.02


def open_lerobot(folder: Folder, *, threads: int | None = None) -> LeRobotSource:
    """The dataset in `folder`, after the checks that need no decoding. Raises `UserError`."""
    metadata = read_metadata(folder)
    row_files = _row_files(folder, metadata)
    rows_are_here = _gather_rows(folder, metadata, row_files)
    counts = _row_counts(folder, metadata, row_files) if rows_are_here else None
    elsewhere = rows_elsewhere(metadata, counts) if counts is not None and metadata.is_v3 else {}
    reader = RowReader(folder, metadata, elsewhere)
    own = read_mapping(folder)
    probe = _Probe.of(reader, metadata, own)
    cameras, missing = _present_cameras(folder, metadata)
    fps, fps_warnings = _fps(metadata, probe)
    action = [_dimension(metadata, probe, channel) for channel in probe.mapping.action]
    state = [_dimension(metadata, probe, channel) for channel in probe.mapping.state]
    action_dim = sum(width for width, _ in action)
    widths = {
        channel: width for channel, (width, _) in zip(probe.mapping.action, action, strict=True)
    }
    info = SourceInfo(
        name=folder.name,
        revision=folder.revision(
            [*folder.listing("meta", ""), *row_files, *([OWN_MAPPING] if own else [])]
        ),
        format=f"lerobot-{metadata.version}",
        fps=fps,
        cameras=cameras,
        action_dim=action_dim,
        action_names=_action_names(metadata, widths),
        state_dim=sum(width for width, _ in state) if state else None,
        robot_type=metadata.info.get("robot_type"),
        warnings=(
            *_count_warnings(metadata, counts),
            *warnings_of(metadata, elsewhere),
            *span_warnings(metadata),
            *fps_warnings,
            *_state_warnings(probe),
            *(warning for _, warnings in (*action, *state) for warning in warnings),
            *_task_warnings(metadata),
            *(f"camera {key!r} is declared, but none of its files exists" for key in missing),
        ),
        missing_cameras=missing,
        columns=probe.numeric_columns,
    )
    lengths = metadata.episodes["length"].to_pylist()
    indices = metadata.episode_index.tolist()
    source = LeRobotSource(
        info=info,
        episodes=tuple(EpisodeRef(i, n or 0) for i, n in zip(indices, lengths, strict=True)),
        folder=folder,
        metadata=metadata,
        rows=reader,
        mapping=probe.mapping,
        threads=threads,
    )
    return _with_real_sizes(source)


def _with_real_sizes(source: LeRobotSource) -> LeRobotSource:
    """Cameras as large as their pictures are, where not one of the first agrees with the metadata."""
    cameras, warnings = [], []
    for camera in source.info.cameras:
        declared = (camera.height, camera.width)
        found: list[tuple[int, int]] = []
        for size in _probed_sizes(source, camera):
            found.append(size)
            if size == declared:  # one picture is enough to believe the metadata
                break
        if not found or declared == found[-1]:
            cameras.append(camera)
            continue
        height, width = found[0]
        cameras.append(replace(camera, height=height, width=width))
        if all(declared):
            warnings.append(
                f"metadata says {camera.key!r} is {camera.width}x{camera.height}, its pictures are "
                f"{width}x{height}"
            )
    info = replace(source.info, cameras=tuple(cameras), warnings=(*source.info.warnings, *warnings))
    return replace(source, info=info)


def _probed_sizes(source: LeRobotSource, camera: CameraFeature) -> Iterator[tuple[int, int]]:
    """Height and width in the first episodes that have pictures; no video is downloaded for that."""
    if not isinstance(source.folder, LocalFolder):
        return
    found = 0
    for ref in source.episodes[: 10 * PROBED_EPISODES]:
        try:
            size = source.picture_hw(ref.episode_index, camera)
        except (EpisodeRejected, FileNotFoundError):
            continue
        yield size
        found += 1
        if found == PROBED_EPISODES:
            break


class _Probe:
    """The first readable episodes: which columns there are, and how wide they really are."""

    def __init__(
        self,
        schemas: list[pa.Schema],
        tables: list[pa.Table],
        name: str,
        own: LeRobotMapping | None,
    ) -> None:
        self.tables, self.name = tables, name
        names = (f.name for schema in schemas for f in schema if is_numeric(f.type))
        self.numeric_columns = tuple(dict.fromkeys(names))
        fields = {f.name: str(f.type) for schema in schemas for f in schema}
        self.others = {c: kind for c, kind in fields.items() if c not in self.numeric_columns}
        self.mapping = choose_mapping(own, self.numeric_columns, name, self.others)

    @classmethod
    def of(cls, reader: RowReader, metadata: LeRobotMetadata, own: LeRobotMapping | None) -> _Probe:
        wanted = [*(own.columns if own else (*ACTION_COLUMNS, *STATE_COLUMNS)), TIMESTAMP]
        tables: list[pa.Table] = []
        problems: list[str] = []
        schemas: list[pa.Schema] = []
        for episode in metadata.episode_index.tolist():
            try:
                tables.append(reader.read(episode, list(dict.fromkeys(wanted))))
                schemas.append(reader.schema(episode))
            except EpisodeRejected as rejected:
                problems.append(str(rejected))
            if len(tables) == PROBED_EPISODES or len(problems) > 100:
                break
        if not tables:
            raise UserError(
                f"dataset {reader.folder.name!r} has metadata, but the rows of no episode can be read; "
                f"the first: {problems[0]}"
            )
        return cls(schemas, tables, reader.folder.name, own)

    def clocks(self) -> list[NDArray[np.float64]]:
        """Timestamps of the probed episodes, as they are stored."""
        found = []
        for table in self.tables:
            with suppress(EpisodeRejected):
                found.append(numbers(table, TIMESTAMP).astype(np.float64))
        return found

    def widths(self, column: str) -> list[int]:
        """Values per row in each probed episode where they are uniform."""
        found = []
        for table in self.tables:
            try:
                values = dense(table[column]) if column in table.column_names else None
            except (RaggedColumnError, TypeError):  # its episode is rejected when it is read
                continue
            if values is not None and len(values):
                found.append(int(np.prod(values.shape[1:], dtype=np.int64)))
        return found


def _state_warnings(probe: _Probe) -> list[str]:
    """Says that a state is left out because its column holds no numbers."""
    column = next((c for c in STATE_COLUMNS if c in probe.others), None)
    if column is None or probe.mapping.state:
        return []
    return [f"no state: {no_numbers(column, probe.others[column])}"]


def _has_image_columns(metadata: LeRobotMetadata) -> bool:
    return any(camera.storage == "image" for camera in declared_cameras(metadata.features))


def _row_files(folder: Folder, metadata: LeRobotMetadata) -> list[str]:
    return folder.listing(metadata.data_path.partition("/")[0], ".parquet")


def _gather_rows(folder: Folder, metadata: LeRobotMetadata, row_files: list[str]) -> bool:
    """Whether the rows of all episodes can be looked at now; images of the Hub come one by one."""
    if isinstance(folder, HubFolder) and _has_image_columns(metadata):
        return False
    return folder.gather(row_files)


def _present_cameras(
    folder: Folder, metadata: LeRobotMetadata
) -> tuple[tuple[CameraFeature, ...], tuple[str, ...]]:
    """Declared cameras with at least one file, and the keys of those without any."""
    present: list[CameraFeature] = []
    missing: list[CameraFeature] = []
    for camera in declared_cameras(metadata.features):
        found = camera.storage == "image" or _has_a_file(folder, metadata, camera.key)
        (present if found else missing).append(camera)
    return tuple(present), tuple(camera.key for camera in missing)


def _has_a_file(folder: Folder, metadata: LeRobotMetadata, key: str) -> bool:
    for episode in metadata.episode_index.tolist():
        with suppress(FileNotFoundError):  # no place of it in the metadata
            if folder.exists(metadata.video_span(episode, key).path):
                return True
    return False


def _fps(metadata: LeRobotMetadata, probe: _Probe) -> tuple[float, list[str]]:
    """Frames per second by the rows' clock where that disagrees with the metadata."""
    declared = float(metadata.info.get("fps") or 0)
    clocks = probe.clocks()
    problems = [clock_problem(clock, declared) for clock in clocks]
    if clocks and all(problems):
        raise UserError(f"{probe.name}: {problems[0]}. Convert the column, then run again")
    sound = [clock for clock, problem in zip(clocks, problems, strict=True) if not problem]
    steps = np.concatenate([np.empty(0), *map(np.diff, sound)])
    steps = steps[np.isfinite(steps)]
    step = float(np.median(steps)) if len(steps) else 0.0
    if step <= 0 and not declared:
        raise UserError(
            "neither meta/info.json nor the rows' timestamps tell the frame rate (`fps`)"
        )
    if step <= 0 or (declared and abs(declared * step - 1) <= FPS_TOLERANCE):
        return declared, []
    measured = round(1 / step, 3)
    if not declared:
        return measured, []
    return measured, [f"metadata says {declared:g} fps, the rows' clock runs at {measured:g}"]


def _dimension(metadata: LeRobotMetadata, probe: _Probe, channel: Channel) -> tuple[int, list[str]]:
    """Numbers of a channel: as declared if any probed episode agrees, else as found."""
    column = channel.feature
    feature = metadata.features.get(column)
    shape = feature.get("shape") if feature else None
    declared = math.prod(shape) if shape else None
    found = probe.widths(column)
    warnings = []
    if not found and declared is None:
        raise UserError(
            f"column {column!r} of {probe.name!r} is empty, ragged or no numbers in the first "
            f"{PROBED_EPISODES} episodes"
        )
    width = found[0] if found and declared not in found else declared or 0
    if declared is not None and width != declared:
        warnings.append(f"metadata says {column!r} has {declared} values, the rows have {width}")
    taken = len(range(width)[channel.start : channel.stop])
    if not taken or width < (channel.stop or 0):
        raise UserError(
            f"{OWN_MAPPING} of {probe.name!r}: column {column!r} has {width} values, there is no "
            f"{channel.start}..{channel.stop or 'its end'}"
        )
    return taken, warnings


def _action_names(
    metadata: LeRobotMetadata, widths: Mapping[Channel, int]
) -> tuple[str, ...] | None:
    """Names of the action's dimensions; None where a column has none."""
    names: list[str] = []
    for channel, taken in widths.items():
        declared = _names(metadata.features.get(channel.feature))
        own = declared[channel.start : channel.stop] if declared else []
        if len(own) != taken:
            return None
        names += own
    return tuple(names)


def _names(feature: Any) -> list[str]:
    """Names of the dimensions of a feature: a list, or a mapping of group to list."""
    names = (feature or {}).get("names")
    if isinstance(names, dict):
        groups = [g if isinstance(g, list) else [k] for k, g in names.items()]
        names = [name for group in groups for name in group]
    return [str(name) for name in names] if isinstance(names, list) else []


def _task_warnings(metadata: LeRobotMetadata) -> list[str]:
    several = [number for number, texts in metadata.tasks.items() if len(texts) > 1]
    if not several:
        return []
    texts = " and ".join(map(repr, metadata.tasks[several[0]][:2]))
    return [
        f"meta/tasks gives several texts to {len(several)} task numbers, first: {several[0]} is {texts}; the "
        "episodes' own tasks decide"
    ]


def _count_warnings(metadata: LeRobotMetadata, counts: RowCounts | None) -> list[str]:
    """Where the declared totals and lengths differ from each other or from the rows, if those are here."""
    lengths = np.asarray(metadata.episodes["length"].to_pylist(), dtype=np.float64)
    warnings = []
    total_episodes, total_frames = (
        metadata.info.get(key) for key in ("total_episodes", "total_frames")
    )
    if total_episodes is not None and total_episodes != len(lengths):
        warnings.append(f"metadata declares {total_episodes} episodes and lists {len(lengths)}")
    counted: Counter[int] = Counter()
    for in_file in (counts or {}).values():
        counted.update(in_file)
    rows = counted.total() if counts is not None else int(np.nansum(lengths))
    if total_frames is not None and total_frames != rows:
        warnings.append(f"metadata declares {total_frames} frames, the rows are {rows}")
    if counts is None:
        return warnings
    index = metadata.episode_index.tolist()
    differ = [(i, n) for i, n in zip(index, lengths, strict=True) if counted.get(i, n) != n]
    if differ:
        first, length = differ[0]
        warnings.append(
            f"{len(differ)} episode lengths are wrong, first: episode {first} declares {length:g} "
            f"frames and has {counted[first]} rows"
        )
    if unknown := sorted(set(counted) - set(index)):
        warnings.append(f"rows of {len(unknown)} episodes have no metadata and are left out")
    return warnings


def _row_counts(
    folder: Folder, metadata: LeRobotMetadata, row_files: list[str]
) -> RowCounts | None:
    """Counted rows by file and episode; None where that would be too slow."""
    local = [path for path in row_files if folder.exists(path)]
    if len(local) > CHECKED_ROW_FILES:
        return None
    if metadata.is_v3:
        return count_rows(folder, local)
    by_path = {metadata.data_file(i): i for i in metadata.episode_index.tolist()}
    footers = {path: _footer_or_none(folder, path) for path in local if path in by_path}
    return {
        path: {by_path[path]: footer.num_rows}
        for path, footer in footers.items()
        if footer is not None
    }


def _footer_or_none(folder: Folder, path: str) -> pq.FileMetaData | None:
    """None where the file is damaged: its episodes are rejected when they are read."""
    try:
        return pq.read_metadata(folder.fetch(path))
    except (pa.ArrowException, OSError):
        return None
