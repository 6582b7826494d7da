"""`molmoact preview`: what the teachers see on a few frames, before hours are spent on all of them.

Same configuration as `preprocess`, nothing written but one sheet. Only the shown frames are labelled, so
the line on a picture joins the points of the later *shown* frames of its episode: a sketch of the trace.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, UserError
from molmoact_data.labels.depth import DepthEstimator, DepthTokenizer
from molmoact_data.labels.depth_scaling import DepthScaling, depth_scaler
from molmoact_data.labels.pointing import ClipPointer, ColumnPointer, GripperPoints
from molmoact_data.labels.traces import subsample, to_grid
from molmoact_data.labels.tracking import PointTracker
from molmoact_data.pictures.film import (
    CODES_NAME,
    Rgb,
    caption_of,
    contact_sheet,
    depth_picture,
    frame_name,
    side_by_side,
)
from molmoact_data.pictures.overlay import draw_labels
from molmoact_data.sources.base import EpisodeColumns, EpisodeRef, EpisodeSource
from molmoact_data.sources.opening import open_source
from molmoact_data.teachers.choice import Teachers, load_teachers
from molmoact_data.teachers.knowledge import warn_of_strange_choices
from pipelines.config import PreprocessConfig
from pipelines.preprocess import announced_cameras, chosen_episodes

logger = logging.getLogger(__name__)

FRAMES_PER_EPISODE = 4


@dataclass(frozen=True)
class Preview:
    """The sheet and what is on it."""

    sheet: Rgb
    frames: int
    found: int
    """Frames where the pointer found every gripper; equals `frames` without a pointer."""
    rejected: Mapping[int, str]
    """Episodes that could not be read, with the reason."""


def preview(config: PreprocessConfig, *, frames: int, columns: int = 2) -> Preview:
    """Label about `frames` frames, evenly spread over the chosen episodes, and lay them out."""
    source = open_source(config.dataset_path, revision=config.revision)
    cameras = announced_cameras(config, source)
    warn_of_strange_choices(config.labels, source.info)
    teachers = load_teachers(config.labels, config.device)
    teachers.check_source(source.info)
    tiles: list[Rgb] = []
    rejected: dict[int, str] = {}
    found = 0
    for ref in spread(chosen_episodes(config, source), -(-frames // FRAMES_PER_EPISODE)):
        try:
            shown = show_episode(config, source, ref, cameras, teachers)
        except EpisodeRejected as verdict:
            logger.warning("episode %d: %s", ref.episode_index, verdict)
            rejected[ref.episode_index] = str(verdict)
            continue
        tiles += shown[0]
        found += shown[1]
    if not tiles:
        raise UserError(f"none of the chosen episodes can be read: {rejected}")
    return Preview(contact_sheet(tiles, columns), len(tiles), found, rejected)


def spread(episodes: Sequence[EpisodeRef], count: int) -> list[EpisodeRef]:
    """At most `count` episodes, evenly over all."""
    picks = np.linspace(0, len(episodes) - 1, min(count, len(episodes))).astype(int)
    return [episodes[i] for i in picks]


def show_episode(
    config: PreprocessConfig,
    source: EpisodeSource,
    ref: EpisodeRef,
    cameras: Mapping[str, str],
    teachers: Teachers,
) -> tuple[list[Rgb], int]:
    """The tiles of one episode and on how many of them every gripper was found."""
    pointer = teachers.pointer
    extra = pointer.columns if isinstance(pointer, ColumnPointer) else ()
    episode = source.read_columns(ref, extra=extra)
    length = len(episode.frame_index)
    wanted = np.linspace(0, length - 1, min(FRAMES_PER_EPISODE, length)).astype(int)
    rgb = read_frames(source, ref, list(cameras.values()), wanted)
    first = rgb[next(iter(cameras.values()))]
    points = point(config, teachers, first, episode, wanted)
    depth: list[dict[str, Rgb]] = [{} for _ in wanted]
    if teachers.depth is not None and teachers.tokenizer is not None:
        camera, scaling = next(iter(cameras.values())), config.labels.depth_scaling
        scaled = scaled_depth(source, ref, camera, wanted, first, teachers.depth, scaling)
        depth = show_depth(teachers.tokenizer, scaled)
    tiles, found = [], 0
    for i, frame in enumerate(wanted.tolist()):
        pictures = {role: rgb[key][i] for role, key in cameras.items()}
        words = [frame_name(ref.episode_index, frame)]
        if points is not None:
            labelled = next(iter(cameras))
            pictures[labelled] = mark(pictures[labelled], points, i)
            seen = bool(np.isfinite(points.xy_NA2[i]).all())
            found += seen
            sure = f"confidence {points.confidence_NA[i].min():.2f}"
            words.append(sure if seen else "gripper not found")
        caption = caption_of(words, episode.instructions[frame])
        tiles.append(side_by_side(pictures | depth[i], caption))
    return tiles, found if points is not None else len(tiles)


def read_frames(
    source: EpisodeSource, ref: EpisodeRef, keys: Sequence[str], wanted: NDArray[np.integer]
) -> dict[str, NDArray[np.uint8]]:
    """The wanted frames of every camera, decoded in one sequential pass."""
    kept: dict[str, list[NDArray[np.uint8]]] = {key: [] for key in keys}
    start = 0
    for batch in source.iter_frames(ref, keys, 32):
        size = len(batch[keys[0]].rgb_NHWC)
        rows = wanted[(wanted >= start) & (wanted < start + size)] - start
        for key in keys:
            kept[key].append(batch[key].rgb_NHWC[rows])
        start += size
    return {key: np.concatenate(parts) for key, parts in kept.items()}


def point(
    config: PreprocessConfig,
    teachers: Teachers,
    rgb_NHWC: NDArray[np.uint8],
    episode: EpisodeColumns,
    wanted: NDArray[np.integer],
) -> GripperPoints | None:
    """Points on the shown frames alone; None without a pointer."""
    pointer = teachers.pointer
    if pointer is None:
        return None
    if isinstance(pointer, ColumnPointer):
        points = pointer.point_columns(episode.extra, (rgb_NHWC.shape[1], rgb_NHWC.shape[2]))
        return GripperPoints(points.xy_NA2[wanted], points.confidence_NA[wanted])
    if isinstance(pointer, ClipPointer):
        tracker = PointTracker(pointer, pointer.clips.prompt)
        tracker.push(rgb_NHWC)
        return tracker.finish().points
    return pointer.point(rgb_NHWC, config.labels.pointer_prompt)


def mark(rgb_HWC: Rgb, points: GripperPoints, index: int) -> Rgb:
    """The points of this frame, and the line through those of the later shown frames."""
    xy_NA2 = points.xy_NA2[index:]
    arms = []
    for a in range(xy_NA2.shape[1]):
        path = [to_grid(np.clip(p, 0, 1)).tolist() for p in xy_NA2[:, a] if np.isfinite(p).all()]
        arms.append(subsample(path))
    now = [p.tolist() if np.isfinite(p).all() else None for p in xy_NA2[0]]
    return draw_labels(rgb_HWC, traces=arms, points=now)


def scaled_depth(
    source: EpisodeSource,
    ref: EpisodeRef,
    camera: str,
    shown: NDArray[np.integer],
    rgb_NHWC: NDArray[np.uint8],
    depth: DepthEstimator,
    scaling: DepthScaling,
) -> NDArray[np.uint8]:
    """Depth of the shown frames `rgb_NHWC` as it would be coded, [N,H,W]; `steady` needs the others, too."""
    scaler = depth_scaler(scaling)
    if not scaler.looks_back:
        return scaler.scale(depth.estimate(rgb_NHWC))[0]
    frames = (batch[camera].rgb_NHWC for batch in source.iter_frames(ref, [camera], 32))
    return np.concatenate([scaler.scale(depth.estimate(rgb))[0] for rgb in frames])[shown]


def show_depth(tokenizer: DepthTokenizer, depth_u8_NHW: NDArray[np.uint8]) -> list[dict[str, Rgb]]:
    """Per frame: the estimated depth, and what its codes keep of it."""
    decoded_NHW = tokenizer.decode(tokenizer.encode(depth_u8_NHW))
    return [
        {"depth": depth_picture(depth.astype(np.float32)), CODES_NAME: depth_picture(decoded)}
        for depth, decoded in zip(depth_u8_NHW, decoded_NHW, strict=True)
    ]
