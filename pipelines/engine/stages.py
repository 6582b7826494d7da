"""The two stages of a run, statistics and shards: a plain loop where one local process does it all, else a
small Beam graph.

A graph uses the portable subset alone (Create, Reshuffle, ParDo, CombineGlobally; one leaf; small plain elements),
so that it is the same on every runner.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from molmoact_data import schema
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.shards import ShardSpec
from molmoact_data.sources.base import EpisodeRef, EpisodeSource
from pipelines import state
from pipelines.engine.runners import WorkerDied, run_pipeline
from pipelines.job import Job
from pipelines.shards.build import ShardWorker
from pipelines.shards.progress import frames_counted, show_progress
from pipelines.statistics import Numbers, action_spec, read_numeric

if TYPE_CHECKING:
    import apache_beam as beam

    from pipelines.config import PreprocessConfig

logger = logging.getLogger(__name__)

EPISODES_PER_STATISTICS_ELEMENT = 64
WORKER_RETRIES = 2
"""How often a run whose worker process died is resumed by itself."""


def compute_statistics(config: PreprocessConfig, source: EpisodeSource, output: Storage) -> None:
    """Over every episode, chosen or not. Here, numbers are read faster than a Beam graph starts."""
    if config.runner.is_cluster:
        run_pipeline(config.runner, statistics_graph, config, source, output)
        return
    numbers = Numbers()
    for refs in handfuls(source.episodes):
        numbers.add([read_numeric(source, ref) for ref in refs])
    content = numbers.statistics_file(
        key=source.info.name, spec=action_spec(source.info, config.gripper)
    )
    output.write_bytes(schema.STATISTICS_FILE, content)


def handfuls(episodes: Sequence[EpisodeRef]) -> list[Sequence[EpisodeRef]]:
    """Episodes whose numbers are read together."""
    size = EPISODES_PER_STATISTICS_ELEMENT
    return [episodes[i : i + size] for i in range(0, len(episodes), size)]


def statistics_graph(
    pipeline: beam.Pipeline, config: PreprocessConfig, source: EpisodeSource, output: Storage
) -> None:
    """Numeric columns of the whole dataset -> one statistics file."""
    import apache_beam as beam

    from pipelines.engine.transforms import CombineStatistics, ReadNumeric, WriteStatistics

    pairs = [
        [[ref.episode_index, ref.num_frames] for ref in refs] for refs in handfuls(source.episodes)
    ]
    combine = CombineStatistics(source.info.name, action_spec(source.info, config.gripper))
    _ = (
        pipeline
        | "Episodes" >> beam.Create(pairs, reshuffle=False)
        | "SpreadEpisodes" >> beam.Reshuffle()
        | "ReadNumeric" >> beam.ParDo(ReadNumeric(config.dataset_path, config.revision))
        | "Combine" >> beam.CombineGlobally(combine)
        | "WriteStatistics" >> beam.ParDo(WriteStatistics(output, schema.STATISTICS_FILE))
    )


def build_missing_shards(config: PreprocessConfig, job: Job, missing: list[ShardSpec]) -> None:
    """Build shards until none is missing; a dead worker process is replaced a few times."""
    folder = None if job.output.is_remote else Path(job.output.root) / state.PROGRESS_DIR
    total = sum(spec.num_frames for spec in missing)
    attempts = WORKER_RETRIES + 1
    with show_progress(total, lambda: frames_counted(folder) if folder else 0):
        for attempt in range(attempts):
            done = state.finished_records(job.output, missing, hashed=False)
            todo = [spec for spec in missing if spec.name not in done]
            if not todo:
                return
            try:
                build_shards(config, job, todo)
            except WorkerDied as error:
                if attempt + 1 == attempts:
                    raise
                logger.warning("%s; resuming what it left", error)


def build_shards(config: PreprocessConfig, job: Job, specs: Sequence[ShardSpec]) -> None:
    """Longest first, so that no worker is left with a long one. A single local worker needs no engine."""
    specs = sorted(specs, key=lambda spec: -spec.num_frames)
    folder = None if job.output.is_remote else str(Path(job.output.root) / state.PROGRESS_DIR)
    threads = max(1, (os.cpu_count() or 1) // config.runner.workers)
    worker = ShardWorker(job, config.device, threads, folder)
    if config.runner.needs_engine:
        run_pipeline(config.runner, shards_graph, worker, specs)
        return
    worker.open()
    for spec in specs:
        worker.build(spec)


def shards_graph(pipeline: beam.Pipeline, worker: ShardWorker, specs: Sequence[ShardSpec]) -> None:
    """Shard specifications -> shards."""
    import apache_beam as beam

    from pipelines.engine.transforms import BuildShard, spec_to_json

    _ = (
        pipeline
        | "Shards" >> beam.Create([spec_to_json(spec) for spec in specs], reshuffle=False)
        | "SpreadShards" >> beam.Reshuffle()
        | "BuildShard" >> beam.ParDo(BuildShard(worker))
    )
