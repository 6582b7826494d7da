"""`molmoact preprocess`: demonstrations in, Action Reasoning shards out.

Statistics first, then shards (`stages`); the manifest is written last and means that the output is complete.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.storage import Storage
from molmoact_data.labels.actions import spec_warnings
from molmoact_data.outputs.manifest import count_rejects, measured_quality
from molmoact_data.outputs.output import statistics_entries
from molmoact_data.outputs.shards import ShardRecord, ShardSpec, plan_shards
from molmoact_data.sources.base import EpisodeRef, EpisodeSource
from molmoact_data.sources.cameras import resolve_cameras
from molmoact_data.sources.opening import open_source
from molmoact_data.sources.selection import select_episodes
from molmoact_data.statistics import DatasetStatistics, read_statistics
from molmoact_data.teachers.choice import Teachers, load_teachers
from molmoact_data.teachers.knowledge import warn_of_strange_choices
from pipelines import state
from pipelines.config import PreprocessConfig
from pipelines.engine.stages import build_missing_shards, compute_statistics
from pipelines.job import Job
from pipelines.shards import manifest
from pipelines.statistics import describe_grippers, observed_grippers, why_this_spec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What `--json` prints."""

    output: str
    episodes: int
    """Episodes written."""
    frames: int
    """Rows written."""
    shards: int
    shards_built: int
    """Shards that this run had to build; fewer than `shards` on a resumed run."""
    rejected_episodes: int
    seconds: float
    frames_per_second: float
    """Frames labelled by this run per second of its wall time."""
    exceeded: str | None
    """The limit that the result breaks, in words; then the exit code is 3."""


def preprocess(config: PreprocessConfig, *, resume: bool, overwrite: bool) -> Summary:
    """Run every stage that is not done yet; `Summary.exceeded` says which limit the result breaks."""
    started = time.monotonic()
    output = Storage(config.output_path)
    source = named_source(config)
    episodes = chosen_episodes(config, source)
    cameras = announced_cameras(config, source)
    warn_of_strange_choices(config.labels, source.info)
    inputs = [config.dataset_path]
    state.check_free(output, resume=resume, overwrite=overwrite, inputs=inputs)
    if config.statistics is not None and config.labels.process_actions:
        frozen_statistics(config, source)
    # Here too, although workers load their own: what is missing is missed before any work.
    teachers = load_teachers(config.labels, config.device)
    teachers.check_source(source.info)
    with state.claimed_output(output, resume=resume, overwrite=overwrite, inputs=inputs):
        statistics = statistics_for(config, source, output)
        job = make_job(config, source, cameras, teachers, statistics)
        specs = plan_shards(episodes, config.frames_per_shard, job.config_hash)
        files = state.source_files(config.dataset_path)
        state.remember_plan(output, job.fingerprint(), specs, files)
        done = state.finished_records(output, specs)
        missing = [spec for spec in specs if spec.name not in done]
        if missing or not state.is_complete(output):
            state.drop_unfinished(output, missing)
            build_missing_shards(config, job, missing)
            done = complete_records(output, specs)
            manifest.write(job, list(done.values()))
            state.forget(output)
    records = [done[spec.name] for spec in specs]
    return summarise(config, missing, records, time.monotonic() - started)


def named_source(config: PreprocessConfig) -> EpisodeSource:
    """The dataset, under the name that the user gave it."""
    source = open_source(config.dataset_path, revision=config.revision)
    if config.dataset_name is not None:
        source.info = replace(source.info, name=config.dataset_name)
    return source


def chosen_episodes(config: PreprocessConfig, source: EpisodeSource) -> list[EpisodeRef]:
    """The episodes of this run; what the metadata got wrong is said first."""
    for warning in source.info.warnings:
        logger.warning("%s: %s", source.info.name, warning)
    return select_episodes(config.episodes, source.episodes)


def announced_cameras(config: PreprocessConfig, source: EpisodeSource) -> Mapping[str, str]:
    """Role -> key; a guess is never silent."""
    cameras, note = resolve_cameras(source.info, config.cameras)
    if note is not None:
        logger.info("%s", note)
    return cameras


def statistics_for(
    config: PreprocessConfig, source: EpisodeSource, output: Storage
) -> DatasetStatistics | None:
    """Frozen statistics, those of the run being resumed, or new ones over the whole dataset."""
    if not config.labels.process_actions:
        return None
    if config.statistics is not None:
        output.write_bytes(schema.STATISTICS_FILE, frozen_statistics(config, source))
    elif not output.exists(schema.STATISTICS_FILE):
        if (note := why_this_spec(source.info, config.gripper)) is not None:
            logger.warning("%s", note)
        compute_statistics(config, source, output)
    content = state_bins(output, config.labels.action_bins)
    statistics = DatasetStatistics.from_json(content)
    for line in describe_grippers(statistics, observed_grippers(content[statistics.key])):
        logger.info("%s", line)
    for line in spec_warnings(statistics):
        logger.warning("%s", line)
    return statistics


def state_bins(output: Storage, num_bins: int) -> dict[str, Any]:
    """The content of the statistics file, after it says how many bins the actions are written with."""
    content = statistics_entries(output)
    statistics = DatasetStatistics.from_json(content)
    if statistics.num_bins != num_bins:
        entry = replace(statistics, num_bins=num_bins).to_json()[statistics.key]
        kept = {k: v for k, v in content[statistics.key].items() if k != "num_bins"}
        content = {statistics.key: {**kept, **entry}}
        text = json.dumps(content, indent=1) + "\n"
        output.write_bytes(schema.STATISTICS_FILE, text.encode())
    return content


def frozen_statistics(config: PreprocessConfig, source: EpisodeSource) -> bytes:
    """The file given with `--statistics`, after a look at whether it fits this dataset."""
    path = Path(str(config.statistics))
    frozen = read_statistics(path, None)
    if frozen.action.dim != source.info.action_dim:
        raise UserError(
            f"{path} describes {frozen.action.dim} action dimensions, "
            f"{source.info.name} has {source.info.action_dim}."
        )
    return path.read_bytes()


def make_job(
    config: PreprocessConfig,
    source: EpisodeSource,
    cameras: Mapping[str, str],
    teachers: Teachers,
    statistics: DatasetStatistics | None,
) -> Job:
    """What every worker is told."""
    labels, tokenizer, pointer = config.labels, teachers.tokenizer, teachers.pointer
    if tokenizer and labels.depth_buffer != "none" and len(set(tokenizer.grid_hw)) != 1:
        raise UserError(
            f"--depth-buffer needs a square grid of codes, this codebook's is {tokenizer.grid_hw}."
        )
    layout = schema.RecordLayout(
        cameras=tuple(cameras),
        action_dim=source.info.action_dim if labels.process_actions else None,
        state_dim=source.info.state_dim,
        action_chunk_size=labels.action_chunk_size,
        depth_codes=tokenizer.grid_hw[0] * tokenizer.grid_hw[1] if tokenizer else None,
        codebook_size=tokenizer.codebook_size if tokenizer else 128,
        depth_buffer=tokenizer is not None and labels.depth_buffer != "none",
        num_arms=pointer.num_arms if pointer else None,
    )
    return Job(
        dataset_path=config.dataset_path,
        revision=config.revision,
        source=source.info,
        cameras=cameras,
        labels=labels,
        statistics=statistics,
        layout=layout,
        output=Storage(config.output_path),
        teachers=teachers.describe(),
        isolate_decoder=config.isolate_decoder,
        point_cache=point_cache(config) if teachers.answers_are_dear else None,
    )


def point_cache(config: PreprocessConfig) -> str | None:
    """Where the answers of a slow pointer survive a crash; None = nowhere."""
    if config.point_cache is None and Storage(config.output_path).is_remote:
        return None
    return config.point_cache or str(Path(config.output_path) / state.POINTS_DIR)


def complete_records(output: Storage, specs: Sequence[ShardSpec]) -> dict[str, ShardRecord]:
    """The records of all planned shards, in order; a missing one is a bug of the runner."""
    records = state.finished_records(output, specs, hashed=False)
    lost = [spec.name for spec in specs if spec.name not in records]
    if lost:
        raise RuntimeError(f"the runner reported success without {len(lost)} shards: {lost[:3]}")
    return {spec.name: records[spec.name] for spec in specs}


def summarise(
    config: PreprocessConfig,
    built: Sequence[ShardSpec],
    records: Sequence[ShardRecord],
    seconds: float,
) -> Summary:
    """Counts of the whole output, speed of this run."""
    names = {spec.name for spec in built}
    frames_now = sum(r.rows for r in records if r.name in names)
    return Summary(
        output=config.output_path,
        episodes=sum(len(r.episodes) for r in records),
        frames=sum(r.rows for r in records),
        shards=sum(r.rows > 0 for r in records),
        shards_built=len(built),
        rejected_episodes=sum(len(r.rejects) for r in records),
        seconds=round(seconds, 3),
        frames_per_second=round(frames_now / seconds, 2),
        exceeded=broken_limit(config, records),
    )


def broken_limit(config: PreprocessConfig, records: Sequence[ShardRecord]) -> str | None:
    """Why a complete run still fails: its labels are worse than the user allows."""
    rejected = sum(len(r.rejects) for r in records)
    total = rejected + sum(len(r.episodes) for r in records)
    if rejected > config.max_reject_fraction * total:
        reasons = count_rejects(records)
        listed = ", ".join(f"{reason}: {n}" for reason, n in reasons.items())
        return (
            f"{rejected} of {total} episodes were rejected ({listed}), more than "
            f"--max-reject-fraction {config.max_reject_fraction:g} allows. Everything good is "
            f"written; see {schema.REJECTS_FILE} in {config.output_path}."
        )
    coverage = measured_quality(records).trace_coverage
    if config.min_coverage is not None and (coverage is None or coverage < config.min_coverage):
        found = "no traces were made" if coverage is None else f"{coverage:.1%} of the frames"
        return (
            f"usable traces: {found}, less than --min-coverage {config.min_coverage:g} asks for; "
            f"the reasons are in {schema.MANIFEST_FILE} and {schema.REPORT_FILE}."
        )
    return None
