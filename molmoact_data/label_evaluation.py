"""Labels against ground truth: what teachers, tracking, the trace filter and the codebook are worth.

Runs over episodes that know the truth (rendered ones: see docs/label-quality.md). Every frame is decoded and
pointed at once; the trackers for all K listen to the same pass and are served the answers already given.
Definitions of the numbers are in `label_metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from molmoact_data.depth import DepthEstimator, DepthTokenizer, scale_to_u8
from molmoact_data.episodes.base import EpisodeColumns, EpisodeRef, EpisodeSource
from molmoact_data.errors import EpisodeRejected, UserError, unknown_name
from molmoact_data.label_metrics import (
    DepthScores,
    PointScores,
    depth_scores,
    point_error_px,
    point_scores,
    rank_correlation,
)
from molmoact_data.label_traces import FilterConfig, FilterScores, TracedEpisode, filter_scores
from molmoact_data.pointing import DEFAULT_PROMPT, ColumnPointer, GripperPointer, GripperPoints
from molmoact_data.tracking import FlowConfig, PointTracker


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
    depth_every: int = 4
    """Depth is scored on every n-th frame: neighbours tell little new."""
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
class Teachers:
    """Who is measured; None = not asked for."""

    depth: DepthEstimator | None
    tokenizer: DepthTokenizer | None
    pointer: GripperPointer | ColumnPointer | None

    def describe(self) -> dict[str, dict[str, str]]:
        """Role -> the teacher's own description."""
        roles = {
            "depth": self.depth,
            "depth_tokenizer": self.tokenizer,
            "gripper_pointer": self.pointer,
        }
        return {role: teacher.describe() for role, teacher in roles.items() if teacher}


@dataclass(frozen=True)
class CodeScores:
    """What is left of the estimated depth after the codebook (100 codes in the released geometry)."""

    frames: int
    mean_absolute_error: float
    """Of the decoded picture against the per-image scaled one, both 0..1."""
    psnr_db: float
    rank_correlation_with_truth: float
    """Of the decoded picture with the true inverse depth."""
    codes_used: int
    codebook_size: int
    perplexity: float


@dataclass(frozen=True)
class TrackingScores:
    """All frames whose grip point is in the picture, for one K."""

    point_every: int
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
    codes: list[_Codes]
    error_px_KT: NDArray[np.floating] | None
    """[K, T] distance to the truth for every K."""
    asked_KT: NDArray[np.bool_] | None
    inside_T: NDArray[np.bool_]
    visible_T: NDArray[np.bool_]
    traced: TracedEpisode | None


@dataclass(frozen=True)
class _Codes:
    codes_N: NDArray[np.int64]
    absolute_error: float
    squared_error: float
    rank_correlation: float


def _measure_episode(
    source: EpisodeSource, ref: EpisodeRef, teachers: Teachers, config: EvaluationConfig
) -> _Episode:
    truth = config.truth
    asked = teachers.pointer.columns if isinstance(teachers.pointer, ColumnPointer) else ()
    columns = source.read_columns(ref, [truth.point, truth.visible, *asked])
    image_hw = _image_hw(source, truth.camera)
    pointing = None
    if teachers.pointer:
        pointing = _Pointing(teachers.pointer, columns, image_hw, config)
    depth: list[DepthScores] = []
    codes: list[_Codes] = []
    cameras = [truth.camera] + ([truth.depth] if teachers.depth else [])
    first = 0
    for batch in source.iter_frames(ref, cameras, config.batch_size):
        rgb_NHWC = batch[truth.camera].rgb_NHWC
        if pointing:
            pointing.push(rgb_NHWC)
        if teachers.depth:
            rows = [i for i in range(len(rgb_NHWC)) if (first + i) % config.depth_every == 0]
            true_m_NHW = batch[truth.depth].rgb_NHWC[rows] * truth.depth_unit_m
            frames = _measure_depth(rgb_NHWC[rows], true_m_NHW, teachers.depth, teachers.tokenizer)
            depth += [scores for scores, _ in frames]
            codes += [told for _, told in frames if told]
        first += len(rgb_NHWC)
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


def _image_hw(source: EpisodeSource, camera_key: str) -> tuple[int, int]:
    (camera,) = (camera for camera in source.info.cameras if camera.key == camera_key)
    return camera.height, camera.width


class _Pointing:
    """The pointer on every frame (K = 1), and one tracker per further K that is served its answers."""

    def __init__(
        self,
        pointer: GripperPointer | ColumnPointer,
        columns: EpisodeColumns,
        image_hw: tuple[int, int],
        config: EvaluationConfig,
    ) -> None:
        if pointer.num_arms != 1:
            raise UserError("evaluate-labels measures one arm; the pointer tells more.")
        self._pointer = pointer
        self._prompt = config.prompt
        self._answers = _Answers()
        if isinstance(pointer, ColumnPointer):
            self._answers.batches.append(pointer.point_columns(columns.extra, image_hw))
        self._trackers = [
            PointTracker(self._answers, config.prompt, k, flow=config.flow)
            for k in tracked_k(config)
        ]

    def push(self, rgb_NHWC: NDArray[np.uint8]) -> None:
        if isinstance(self._pointer, GripperPointer):
            self._answers.batches.append(self._pointer.point(rgb_NHWC, self._prompt))
        for tracker in self._trackers:
            tracker.push(rgb_NHWC)

    def finish(self) -> tuple[list[GripperPoints], NDArray[np.bool_]]:
        """Points for every K, 1 first, and which frames were asked about [K,T]."""
        every = self._answers.joined()
        tracked = [tracker.finish() for tracker in self._trackers]
        asked = [np.ones(len(every.xy_NA2), bool), *(t.from_pointer_T for t in tracked)]
        return [every, *(t.points for t in tracked)], np.stack(asked)


def tracked_k(config: EvaluationConfig) -> list[int]:
    """The K above 1, ascending."""
    return sorted(set(config.point_every) - {1})


@dataclass
class _Answers:
    """A `FramePointer` that repeats what the pointer said about these frames."""

    batches: list[GripperPoints] = field(default_factory=list)
    num_arms: int = 1

    def joined(self) -> GripperPoints:
        return GripperPoints(
            np.concatenate([b.xy_NA2 for b in self.batches]),
            np.concatenate([b.confidence_NA for b in self.batches]),
        )

    def point_frames(
        self, rgb_NHWC: NDArray[np.uint8], prompt: str, frame_index_N: Sequence[int]
    ) -> GripperPoints:
        every, rows = self.joined(), list(frame_index_N)
        return GripperPoints(every.xy_NA2[rows], every.confidence_NA[rows])


def _measure_depth(
    rgb_NHWC: NDArray[np.uint8],
    true_m_NHW: NDArray[np.floating],
    depth: DepthEstimator,
    tokenizer: DepthTokenizer | None,
) -> list[tuple[DepthScores, _Codes | None]]:
    if not len(rgb_NHWC):
        return []
    estimate_NHW = depth.estimate(rgb_NHWC)
    scores = [depth_scores(e, m) for e, m in zip(estimate_NHW, true_m_NHW, strict=True)]
    if tokenizer is None:
        return [(score, None) for score in scores]
    scaled_NHW, _ = scale_to_u8(estimate_NHW)
    codes_NG = tokenizer.encode(scaled_NHW)
    decoded_Nhw = tokenizer.decode(codes_NG)
    size = decoded_Nhw.shape[1:]
    told = [
        _code_errors(codes, decoded, nearest(scaled, size) / 255.0, nearest(true_m, size))
        for codes, decoded, scaled, true_m in zip(
            codes_NG, decoded_Nhw, scaled_NHW, true_m_NHW, strict=True
        )
    ]
    return list(zip(scores, told, strict=True))


def _code_errors(
    codes_N: NDArray[np.int64],
    decoded_hw: NDArray[np.float32],
    scaled_hw: NDArray[np.floating],
    true_m_hw: NDArray[np.floating],
) -> _Codes:
    error = decoded_hw - scaled_hw
    known = np.isfinite(true_m_hw) & (true_m_hw > 0)
    return _Codes(
        codes_N,
        absolute_error=float(np.abs(error).mean()),
        squared_error=float(np.square(error).mean()),
        rank_correlation=rank_correlation(decoded_hw[known], 1 / true_m_hw[known]),
    )


def nearest(picture_HW: NDArray[np.generic], size_hw: Sequence[int]) -> NDArray:
    """The picture at another size by nearest neighbour."""
    rows, columns = (
        np.arange(new) * old // new for new, old in zip(size_hw, picture_HW.shape, strict=True)
    )
    return picture_HW[rows[:, None], columns]


def _summarise(
    source: EpisodeSource, measured: list[_Episode], teachers: Teachers, config: EvaluationConfig
) -> LabelEvaluation:
    pointed = [episode for episode in measured if episode.error_px_KT is not None]
    traced = [episode.traced for episode in measured if episode.traced]
    return LabelEvaluation(
        dataset=source.info.name,
        revision=source.info.revision,
        episodes=len(measured),
        frames=sum(len(episode.inside_T) for episode in measured),
        teachers=teachers.describe(),
        depth=_summarise_depth([score for episode in measured for score in episode.depth]),
        codes=_summarise_codes([c for episode in measured for c in episode.codes], teachers),
        pointing=_by_visibility(pointed, 0, out_of_frame=True) if pointed else None,
        tracking=_summarise_tracking(pointed, config) if pointed else None,
        traces=filter_scores(traced, config.filter) if traced else None,
    )


def _summarise_depth(scores: list[DepthScores]) -> dict[str, float] | None:
    if not scores:
        return None
    correlations = [score.rank_correlation for score in scores]
    edges = [score.edge_f1 for score in scores if score.edge_f1 is not None]
    told = {
        "frames": float(len(scores)),
        "rank_correlation": float(np.mean(correlations)),
        "rank_correlation_p5": float(np.percentile(correlations, 5)),
        "abs_rel": float(np.mean([score.abs_rel for score in scores])),
        "delta1": float(np.mean([score.delta1 for score in scores])),
    }
    return {**told, "edge_f1": float(np.mean(edges))} if edges else told


def _summarise_codes(told: list[_Codes], teachers: Teachers) -> CodeScores | None:
    if not told or teachers.tokenizer is None:
        return None
    size = teachers.tokenizer.codebook_size
    counts = np.bincount(np.concatenate([t.codes_N for t in told]), minlength=size)
    share = counts[counts > 0] / counts.sum()
    squared_error = float(np.mean([t.squared_error for t in told]))
    return CodeScores(
        frames=len(told),
        mean_absolute_error=float(np.mean([t.absolute_error for t in told])),
        psnr_db=float(-10 * np.log10(max(squared_error, 1e-12))),
        rank_correlation_with_truth=float(np.mean([t.rank_correlation for t in told])),
        codes_used=int((counts > 0).sum()),
        codebook_size=size,
        perplexity=float(np.exp(-np.sum(share * np.log(share)))),
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
        TrackingScores(every, float(asked_KT[k].mean()), _by_visibility(episodes, k))
        for k, every in enumerate([1, *tracked_k(config)])
    )
