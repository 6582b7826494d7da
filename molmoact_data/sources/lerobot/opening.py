"""Open a LeRobot dataset: read what it declares, look at the rows, and say where they disagree."""

from __future__ import annotations

from collections import Counter
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
from molmoact_data.sources.lerobot.info import declared_cameras
from molmoact_data.sources.lerobot.metadata import LeRobotMetadata, read_metadata
from molmoact_data.sources.lerobot.places import (
    RowCounts,
    count_rows,
    rows_elsewhere,
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

ACTION_COLUMNS = ("action", "actions")
STATE_COLUMNS = ("observation.state", "state", "observation/state")
PROBED_EPISODES = 3
CHECKED_ROW_FILES = 5_000
"""v2.x has a Parquet file per episode; beyond this many, the rest of the lengths is not checked."""
FPS_TOLERANCE = 0.02


def open_lerobot(folder: Folder, *, threads: int | None = None) -> LeRobotSource:
    """The dataset in `folder`, checked as far as is cheap. Raises `UserError`."""
    metadata = read_metadata(folder)
    row_files = _row_files(folder, metadata)
    rows_are_here = _gather_rows(folder, metadata, row_files)
    counts = _row_counts(folder, metadata, row_files) if rows_are_here else None
    elsewhere = rows_elsewhere(metadata, counts) if counts is not None and metadata.is_v3 else {}
    reader = RowReader(folder, metadata, elsewhere)
    probe = _Probe.of(reader, metadata)
    cameras, missing = _present_cameras(folder, metadata)
    fps, fps_warnings = _fps(metadata, probe)
    action_dim, action_warnings = _dimension(metadata, probe, probe.action_column)
    state = probe.state_column
    state_dim, state_warnings = (
        _dimension(metadata, probe, state) if state is not None else (None, [])
    )
    info = SourceInfo(
        name=folder.name,
        revision=folder.revision([*folder.listing("meta", ""), *row_files]),
        format=f"lerobot-{metadata.version}",
        fps=fps,
        cameras=cameras,
        action_dim=action_dim,
        action_names=_names(metadata.features.get(probe.action_column), action_dim),
        state_dim=state_dim,
        robot_type=metadata.info.get("robot_type"),
        warnings=(
            *_count_warnings(metadata, counts),
            *warnings_of(metadata, elsewhere),
            *fps_warnings,
            *action_warnings,
            *state_warnings,
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
        action_column=probe.action_column,
        state_column=state,
        threads=threads,
    )
    return _with_real_sizes(source)


def _with_real_sizes(source: LeRobotSource) -> LeRobotSource:
    """Cameras as large as their pictures are, where not one of the first agrees with the metadata."""
    cameras, warnings = [], []
    for camera in source.info.cameras:
        found = _probed_sizes(source, camera)
        declared = (camera.height, camera.width)
        if not found or declared in found:
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


def _probed_sizes(source: LeRobotSource, camera: CameraFeature) -> list[tuple[int, int]]:
    """Height and width in the first episodes that have pictures; no video is downloaded for that."""
    if not isinstance(source.folder, LocalFolder):
        return []
    found = []
    for ref in source.episodes[: 10 * PROBED_EPISODES]:
        with suppress(EpisodeRejected, FileNotFoundError):
            found.append(source.picture_hw(ref.episode_index, camera))
        if len(found) == PROBED_EPISODES:
            break
    return found


class _Probe:
    """The first readable episodes: which columns there are, and how wide they really are."""

    def __init__(self, schemas: list[pa.Schema], tables: list[pa.Table], name: str) -> None:
        self.tables = tables
        names = (f.name for schema in schemas for f in schema if is_numeric(f.type))
        self.numeric_columns = tuple(dict.fromkeys(names))
        action = next((c for c in ACTION_COLUMNS if c in self.numeric_columns), None)
        if action is None:
            raise UserError(
                f"dataset {name!r} has no action column ({' or '.join(ACTION_COLUMNS)}); its numeric "
                f"columns are {', '.join(self.numeric_columns) or 'none'}"
            )
        self.action_column = action
        self.state_column = next((c for c in STATE_COLUMNS if c in self.numeric_columns), None)

    @classmethod
    def of(cls, reader: RowReader, metadata: LeRobotMetadata) -> _Probe:
        wanted = [*ACTION_COLUMNS, *STATE_COLUMNS, TIMESTAMP]
        tables: list[pa.Table] = []
        problems: list[str] = []
        schemas: list[pa.Schema] = []
        for episode in metadata.episode_index.tolist():
            try:
                tables.append(reader.read(episode, wanted))
                schemas.append(reader.schema(episode))
            except EpisodeRejected as rejected:
                problems.append(str(rejected))
            if len(tables) == PROBED_EPISODES or len(problems) > 100:
                break
        if not tables:
            raise UserError(
                f"dataset {metadata.info.get('repo_id') or reader.folder.name!r} has metadata, but the "
                f"rows of no episode can be read; the first: {problems[0]}"
            )
        return cls(schemas, tables, reader.folder.name)

    def steps_s(self) -> NDArray[np.float64]:
        """Seconds from row to row, of all probed episodes; what is no number is left out."""
        found: list[NDArray[np.float64]] = [np.empty(0)]
        for table in self.tables:
            with suppress(EpisodeRejected):
                found.append(np.diff(numbers(table, TIMESTAMP).astype(np.float64)))
        steps = np.concatenate(found)
        return steps[np.isfinite(steps)]

    def widths(self, column: str) -> list[int]:
        """Values per row in each probed episode where they are uniform."""
        found = []
        for table in self.tables:
            try:
                values = dense(table[column]) if column in table.column_names else None
            except RaggedColumnError:
                continue
            if values is not None and len(values):
                found.append(int(np.prod(values.shape[1:], dtype=np.int64)))
        return found


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
    declared = metadata.info.get("fps")
    steps = probe.steps_s()
    step = float(np.median(steps)) if len(steps) else 0.0
    if step <= 0 and not declared:
        raise UserError(
            "neither meta/info.json nor the rows' timestamps tell the frame rate (`fps`)"
        )
    if step <= 0 or (declared and abs(float(declared) * step - 1) <= FPS_TOLERANCE):
        return float(declared or 0), []
    measured = round(1 / step, 3)
    return measured, [f"metadata says {declared:g} fps, the rows' clock runs at {measured:g}"]


def _dimension(metadata: LeRobotMetadata, probe: _Probe, column: str) -> tuple[int, list[str]]:
    """Width of a vector column: as declared if any probed episode agrees, else as found."""
    shape = (metadata.features.get(column) or {}).get("shape")
    declared = int(np.prod(shape)) if shape else None
    found = probe.widths(column)
    if declared is not None and (declared in found or not found):
        return declared, []
    if not found:
        raise UserError(
            f"column {column!r} is empty or ragged in the first {PROBED_EPISODES} episodes"
        )
    if declared is None:
        return found[0], []
    return found[0], [f"metadata says {column!r} has {declared} values, the rows have {found[0]}"]


def _names(feature: Any, dim: int) -> tuple[str, ...] | None:
    """Names of the dimensions: a list, or a mapping of group to list."""
    names = (feature or {}).get("names")
    if isinstance(names, dict):
        groups = [g if isinstance(g, list) else [k] for k, g in names.items()]
        names = [name for group in groups for name in group]
    if not isinstance(names, list) or len(names) != dim:
        return None
    return tuple(str(name) for name in names)


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
