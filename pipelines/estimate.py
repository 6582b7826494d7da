"""`molmoact preprocess --dry-run`: the plan, and an estimate from one real batch. Writes nothing."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

from molmoact_data.console.tables import Lines, duration, size
from molmoact_data.labels.pointing import ClipPointer
from molmoact_data.outputs.shards import plan_shards
from molmoact_data.sources.base import EpisodeRef, EpisodeSource
from molmoact_data.sources.opening import open_source
from molmoact_data.teachers.choice import Teachers, downloads, load_teachers
from molmoact_data.teachers.knowledge import warn_of_strange_choices
from pipelines.config import PreprocessConfig
from pipelines.job import Job
from pipelines.preprocess import announced_cameras, chosen_episodes, make_job
from pipelines.shards.build import depth_labels, follow_points
from pipelines.shards.reading import read_frames


@dataclass(frozen=True)
class Estimate:
    """What a run would do. Times and sizes are extrapolated from the first batch of one episode."""

    dataset: str
    format: str
    cameras: dict[str, str]
    teachers: dict[str, dict[str, str]]
    downloads: dict[str, str]
    """What the run fetches once, by role: from where, how big, under which licence."""
    episodes: int
    frames: int
    """As the metadata declares; rows are what counts in the end."""
    shards: int
    measured_frames: int
    frames_per_second_per_worker: float
    workers: int
    estimated_seconds: float
    """Assumes that workers do not slow each other down."""
    estimated_bytes: int
    """Images only; labels add some 250 bytes a frame."""
    peak_memory_bytes: int
    """Of this process, teachers and one batch included; each worker needs about as much."""


def facts(plan: Estimate) -> dict[str, Lines | None]:
    """The plan in words, for a table."""
    licences = [
        f"{role}: {card.get('name')} ({card.get('licence', 'licence not known')})"
        for role, card in plan.teachers.items()
    ]
    return {
        "dataset": f"{plan.dataset} ({plan.format})",
        "cameras": [f"{role} = {key}" for role, key in plan.cameras.items()],
        "episodes": f"{plan.episodes:,}",
        "frames": f"{plan.frames:,} in {plan.shards:,} shards",
        "teachers": licences or "none",
        "downloads": [f"{role}: {line}" for role, line in plan.downloads.items()] or "none",
        "time": f"about {duration(plan.estimated_seconds)}, {plan.workers} x "
        f"{plan.frames_per_second_per_worker:g} frames/s, measured on {plan.measured_frames} frames",
        "disk": f"about {size(plan.estimated_bytes + 250 * plan.frames)}",
        "memory": f"about {size(plan.peak_memory_bytes)} a worker",
    }


def estimate(config: PreprocessConfig) -> Estimate:
    """Label one batch for real and extrapolate. Raises `UserError` where the run itself would."""
    source = open_source(config.dataset_path, revision=config.revision)
    episodes = chosen_episodes(config, source)
    cameras = announced_cameras(config, source)
    warn_of_strange_choices(config.labels, source.info)
    teachers = load_teachers(config.labels, config.device)
    teachers.check_source(source.info)
    job = make_job(config, source, cameras, teachers, None)
    seconds, num_bytes, measured = _label_one_batch(job, episodes[0], source, teachers)
    frames = sum(ref.num_frames for ref in episodes)
    rate = measured / seconds
    return Estimate(
        dataset=config.dataset_name or source.info.name,
        format=source.info.format,
        cameras=dict(job.cameras),
        teachers={role: dict(card) for role, card in job.teachers.items()},
        downloads={role: one.describe() for role, one in downloads(config.labels).items()},
        episodes=len(episodes),
        frames=frames,
        shards=len(plan_shards(episodes, config.frames_per_shard, job.config_hash)),
        measured_frames=measured,
        frames_per_second_per_worker=round(rate, 2),
        workers=config.runner.workers,
        estimated_seconds=round(frames / rate / config.runner.workers, 3),
        estimated_bytes=round(num_bytes / measured * frames),
        peak_memory_bytes=peak_memory_bytes(),
    )


def peak_memory_bytes() -> int:
    """The most that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _label_one_batch(
    job: Job, ref: EpisodeRef, source: EpisodeSource, teachers: Teachers
) -> tuple[float, int, int]:
    """Seconds, image bytes and frames of the second batch (the first warms up), or the only one."""
    columns = source.read_columns(ref, extra=getattr(teachers.pointer, "columns", ()))
    points, depth = follow_points(teachers.pointer, job, columns), depth_labels(job)
    measured = (0.0, 0, 0)
    all_frames = 0
    started = time.monotonic()
    for number, batch in enumerate(read_frames(job, source, ref)):
        depth.add(ref, batch.rgb_NHWC, teachers)
        if points:
            points.push(batch.rgb_NHWC)
        measured = (time.monotonic() - started, batch.images.nbytes, len(batch.rgb_NHWC))
        all_frames += len(batch.rgb_NHWC)
        if number == 1:
            break
        started = time.monotonic()
    if points and isinstance(teachers.pointer, ClipPointer):
        # A clip is asked about when it is full: here at once, and this batch bears its share.
        started = time.monotonic()
        points.finish()
        seconds, num_bytes, frames = measured
        share = frames / all_frames
        return seconds + (time.monotonic() - started) * share, num_bytes, frames
    return measured
