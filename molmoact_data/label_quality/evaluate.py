"""Labels against ground truth: what teachers, tracking, the trace filter and the codebook are worth.

Runs over episodes that know the truth (rendered ones: see docs/label-quality.md). Every frame is decoded and
pointed at once; the trackers for all K listen to the same pass and are served the answers already given.
Definitions of the numbers are in `label_quality.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, UserError, unknown_name
from molmoact_data.label_quality.depth import (
    CodeScores,
    FrameCodes,
    measure_depth,
    summarise_codes,
    summarise_depth,
)
from molmoact_data.label_quality.metrics import (
    DepthScores,
    PointScores,
    point_error_px,
    point_scores,
)
from molmoact_data.label_quality.pointing import Pointing
from molmoact_data.label_quality.traces import (
    FilterConfig,
    FilterScores,
    TracedEpisode,
    filter_scores,
)
from molmoact_data.labels.depth_scaling import DepthScaling, depth_scaler
from molmoact_data.labels.flow import FlowConfig
from molmoact_data.labels.pointing import DEFAULT_PROMPT, ColumnPointer, Keyframes
from molmoact_data.sources.base import EpisodeRef, EpisodeSource
from molmoact_data.teachers.choice import Teachers


@dataclass(frozen=True)
class TruthColumns:
    """Where the truth is in the dataset; the defaults are those of rendered datasets."""

    camera: str = "observation.images.front"
    """Colour camera that is labelled."""
    depth: str = "observation.depth.front"
    """16-bit depth of the same view."""
    depth_unit_m: float = 0.0005
    """Metres per step of the 16-bit depth."""
    point: str = "observation.gripper_pixel"
    """Column [T,2]: pixel (column, row) of the grip point, also outside the frame."""
    visible: str = "observation.gripper_visible"
    """Column [T]: nothing hides it."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured."""

    truth: TruthColumns = field(default_factory=TruthColumns)
    """Names of the ground truth."""
    prompt: str = DEFAULT_PROMPT
    """What the pointer is asked."""
    point_every: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """The K of the tracking curve; 1 is always measured."""
    keyframes: Keyframes = "regular"
    """motion: the K above 1 are the longest gaps between frames that are chosen by the arm's motion."""
    depth_every: int = 4
    """Depth is scored on every n-th frame: neighbours tell little new."""
    depth_scaling: DepthScaling = "image"
    """Range of the depth that is coded."""
    batch_size: int = 32
    """Frames decoded and labelled at once."""
    flow: FlowConfig = field(default_factory=FlowConfig)
    """When optical flow is believed."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    """How the trace filter is tried."""

    def __post_init__(self) -> None:
        if any(k < 1 for k in self.point_every):
            raise ValueError(f"--point-every takes whole numbers from 1, got {self.point_every}")
        if self.depth_every < 1:
            raise ValueError(f"--depth-every must be at least 1, got {self.depth_every}")


@dataclass(frozen=True)
class TrackingScores:
    """All frames whose grip point is in the picture, for one K."""

    point_every: int
    keyframes: Keyframes
    """How the frames are chosen; with motion, K is the longest gap."""
    calls: float
    """Share of all frames that the pointer was asked about, fall-backs included."""
    points: dict[str, PointScores]
    """`all`, `visible`, `hidden` (where there are such frames)."""


@dataclass(frozen=True)
class LabelEvaluation:
    """Everything that was measured; None = that teacher was not asked for."""

    dataset: str
    revision: str
    episodes: int
    frames: int
    teachers: dict[str, dict[str, str]]
    depth: dict[str, float] | None
    """Means over frames of `DepthScores`, and the 5th percentile of the rank correlation."""
    codes: CodeScores | None
    pointing: dict[str, PointScores] | None
    """`all` (in the picture), `visible`, `hidden`; `out_of_frame` counts invented points as `found`."""
    tracking: tuple[TrackingScores, ...] | None
    traces: FilterScores | None


def parse_point_every(text: str) -> tuple[int, ...]:
    """The flag "1,2,4" -> (1, 2, 4). Raises `UserError`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise UserError(f"--point-every takes numbers, for example 1,2,4,8; got {text!r}.")
    return tuple(int(part) for part in parts)


def evaluate_labels(
    source: EpisodeSource,
    episodes: Sequence[EpisodeRef],
    teachers: Teachers,
    config: EvaluationConfig,
) -> Iterator[LabelEvaluation]:
    """One result after every episode, over all episodes so far; the last one is the answer."""
    check_truth(source, config.truth, with_depth=teachers.depth is not None)
    measured: list[_Episode] = []
    for ref in episodes:
        try:
            measured.append(_measure_episode(source, ref, teachers, config))
        except EpisodeRejected as verdict:
            raise UserError(
                f"episode {ref.episode_index} cannot be measured: {verdict}. Its truth is in --truth-depth, "
                "--truth-point and --truth-visible; leave a bad episode out with --episodes."
            ) from verdict
        yield _summarise(source, measured, teachers, config)


def check_truth(source: EpisodeSource, truth: TruthColumns, *, with_depth: bool) -> None:
    """Raises `UserError` where the dataset has no such cameras."""
    wanted = [truth.camera] + ([truth.depth] if with_depth else [])
    keys = [camera.key for camera in source.info.cameras]
    for key in wanted:
        if key not in keys:
            raise unknown_name("ground-truth camera", key, keys)


@dataclass(frozen=True)
class _Episode:
    depth: list[DepthScores]
    codes: list[FrameCodes]
    error_px_KT: NDArray[np.floating] | None
    """[K, T] distance to the truth for every K."""
    asked_KT: NDArray[np.bool_] | None
    inside_T: NDArray[np.bool_]
    visible_T: NDArray[np.bool_]
    traced: TracedEpisode | None


def _measure_episode(
    source: EpisodeSource, ref: EpisodeRef, teachers: Teachers, config: EvaluationConfig
) -> _Episode:
    truth = config.truth
    asked = teachers.pointer.columns if isinstance(teachers.pointer, ColumnPointer) else ()
    columns = source.read_columns(ref, [truth.point, truth.visible, *asked])
    image_hw = _image_hw(source, truth.camera)
    pointing = None
    if teachers.pointer:
        pointing = Pointing(
            teachers.pointer, columns, image_hw,
            prompt=config.prompt, tracked_k=tracked_k(config), flow=config.flow,
            by_motion=config.keyframes == "motion",
        )  # fmt: skip
    frames = list(_watch(source, ref, teachers, config, pointing))
    depth, codes = [scores for scores, _ in frames], [told for _, told in frames if told]
    height, width = image_hw
    true_xy_T2 = columns.extra[truth.point].astype(np.float64) / [width - 1, height - 1]
    inside_T = np.all((true_xy_T2 >= 0) & (true_xy_T2 <= 1), axis=1)
    visible_T = columns.extra[truth.visible].astype(bool).reshape(len(inside_T)) & inside_T
    if not pointing:
        return _Episode(depth, codes, None, None, inside_T, visible_T, None)
    points_K, asked_KT = pointing.finish()
    error_px_KT = np.stack(
        [point_error_px(points.xy_NA2[:, 0], true_xy_T2, image_hw) for points in points_K]
    )
    traced = TracedEpisode(points_K[0], true_xy_T2, image_hw, ref.episode_index)
    return _Episode(depth, codes, error_px_KT, asked_KT, inside_T, visible_T, traced)


def _watch(
    source: EpisodeSource,
    ref: EpisodeRef,
    teachers: Teachers,
    config: EvaluationConfig,
    pointing: Pointing | None,
) -> Iterator[tuple[DepthScores, FrameCodes | None]]:
    """The one pass over an episode: every frame is shown to `pointing`, every n-th one's depth is scored."""
    truth = config.truth
    cameras = [truth.camera] + ([truth.depth] if teachers.depth else [])
    first, scaler = 0, depth_scaler(config.depth_scaling)
    for batch in source.iter_frames(ref, cameras, config.batch_size):
        rgb_NHWC = batch[truth.camera].rgb_NHWC
        if pointing:
            pointing.push(rgb_NHWC)
        if teachers.depth:
            rows = [i for i in range(len(rgb_NHWC)) if (first + i) % config.depth_every == 0]
            true_m_NHW = batch[truth.depth].rgb_NHWC * truth.depth_unit_m
            yield from measure_depth(
                rgb_NHWC, true_m_NHW, teachers.depth, teachers.tokenizer, scaler, rows
            )
        first += len(rgb_NHWC)


def _image_hw(source: EpisodeSource, camera_key: str) -> tuple[int, int]:
    (camera,) = (camera for camera in source.info.cameras if camera.key == camera_key)
    return camera.height, camera.width


def tracked_k(config: EvaluationConfig) -> list[int]:
    """The K above 1, ascending."""
    return sorted(set(config.point_every) - {1})


def _summarise(
    source: EpisodeSource, measured: list[_Episode], teachers: Teachers, config: EvaluationConfig
) -> LabelEvaluation:
    pointed = [episode for episode in measured if episode.error_px_KT is not None]
    traced = [episode.traced for episode in measured if episode.traced]
    depth = [score for episode in measured for score in episode.depth]
    codes = [told for episode in measured for told in episode.codes]
    return LabelEvaluation(
        dataset=source.info.name,
        revision=source.info.revision,
        episodes=len(measured),
        frames=sum(len(episode.inside_T) for episode in measured),
        teachers=teachers.describe(),
        depth=summarise_depth(depth) if depth else None,
        codes=summarise_codes(codes, teachers.tokenizer.codebook_size, config.depth_scaling)
        if teachers.tokenizer and codes
        else None,
        pointing=_by_visibility(pointed, 0, out_of_frame=True) if pointed else None,
        tracking=_summarise_tracking(pointed, config) if pointed else None,
        traces=filter_scores(traced, config.filter) if traced else None,
    )


def _by_visibility(
    episodes: list[_Episode], k: int, *, out_of_frame: bool = False
) -> dict[str, PointScores]:
    """Point scores for the k-th K, by what was to be seen."""
    inside_T = np.concatenate([episode.inside_T for episode in episodes])
    visible_T = np.concatenate([episode.visible_T for episode in episodes])
    error_px_T = np.concatenate([e.error_px_KT[k] for e in episodes if e.error_px_KT is not None])
    groups: Mapping[str, NDArray[np.bool_]] = {
        "all": inside_T,
        "visible": visible_T,
        "hidden": inside_T & ~visible_T,
        **({"out_of_frame": ~inside_T} if out_of_frame else {}),
    }
    return {
        name: point_scores(error_px_T[group_T]) for name, group_T in groups.items() if group_T.any()
    }


def _summarise_tracking(
    episodes: list[_Episode], config: EvaluationConfig
) -> tuple[TrackingScores, ...]:
    asked_KT = np.concatenate([e.asked_KT for e in episodes if e.asked_KT is not None], axis=1)
    return tuple(
        TrackingScores(
            every,
            "regular" if every == 1 else config.keyframes,
            float(asked_KT[k].mean()),
            _by_visibility(episodes, k),
        )
        for k, every in enumerate([1, *tracked_k(config)])
    )
