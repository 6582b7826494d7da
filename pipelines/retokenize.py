"""New action tokens for an existing output, without running a teacher or decoding an image.

Statistics, bins or chunk size change; images, depth codes, points and traces are copied as they are.
The result is byte for byte what `preprocess` would have written with the new settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.config import as_dict, build, content_hash
from molmoact_data.errors import UserError
from molmoact_data.files.storage import Storage
from molmoact_data.labels.actions import bin_actions, chunk, normalize
from molmoact_data.outputs.columns import fixed_array, fixed_size_lists
from molmoact_data.outputs.manifest import Manifest
from molmoact_data.outputs.output import BATCH_ROWS, Output
from molmoact_data.outputs.rejects import to_jsonl
from molmoact_data.outputs.shards import (
    ShardRecord,
    ShardSpec,
    ShardWriter,
    file_sha256,
    plan_shards,
)
from molmoact_data.sources.base import EpisodeRef
from molmoact_data.statistics import DatasetStatistics
from pipelines import state
from pipelines.config import LabelConfig
from pipelines.shards import manifest


@dataclass(frozen=True)
class RetokenizeConfig:
    """What changes; None = as it was."""

    statistics: DatasetStatistics | None = None
    """Statistics to use from now on, for example merged over several datasets."""
    action_bins: int | None = None
    """Bins over the normalised range."""
    action_chunk_size: int | None = None
    """Steps per chunk."""


@dataclass(frozen=True)
class Retokenized:
    """What `--json` prints."""

    output: str
    frames: int
    shards: int
    shards_built: int
    statistics_sha256: str


@dataclass(frozen=True)
class _Plan:
    """Everything about the new output that is known before any shard is written."""

    header: Manifest
    statistics: DatasetStatistics
    layout: schema.RecordLayout
    num_bins: int
    specs: tuple[ShardSpec, ...]
    """In the order of the old shards, rejected-only shards included."""


def retokenize(
    source: Output, output: Storage, config: RetokenizeConfig, *, resume: bool, overwrite: bool
) -> Retokenized:
    """Write a new output beside the old one; resumable like `preprocess`."""
    plan = _plan(source, config)
    inputs = [source.storage.root]
    with state.claimed_output(output, resume=resume, overwrite=overwrite, inputs=inputs):
        content = json.dumps(plan.statistics.to_json(), indent=1) + "\n"
        output.write_bytes(schema.STATISTICS_FILE, content.encode())
        state.remember_plan(output, plan.header.fingerprint, plan.specs)
        done = state.finished_records(output, plan.specs)
        old = source.manifest.shards
        records = []
        for before, spec in zip(old, plan.specs, strict=True):
            record = done.get(spec.name) or _rewrite(source, before, spec, plan, output)
            state.write_record(output, record)
            records.append(record)
        output.write_bytes(schema.REJECTS_FILE, to_jsonl(source.rejects()))
        manifest.write_manifest(output, plan.header.with_shards(records))
        state.forget(output)
    return Retokenized(
        output=output.root,
        frames=sum(r.rows for r in records),
        shards=sum(r.rows > 0 for r in records),
        shards_built=len(records) - len(done),
        statistics_sha256=plan.header.statistics_sha256,
    )


def _plan(source: Output, config: RetokenizeConfig) -> _Plan:
    statistics = config.statistics or source.statistics
    if statistics is None or source.layout.action_dim is None:
        raise UserError(
            f"{source.storage.root} has no actions (it was made with --no-process-actions): there is "
            "nothing to tokenise."
        )
    if statistics.action.dim != source.layout.action_dim:
        raise UserError(
            f"the statistics {statistics.key!r} have {statistics.action.dim} action dimensions, "
            f"{source.storage.root} has {source.layout.action_dim}."
        )
    labels = _labels(source.labels, config)
    statistics = replace(statistics, num_bins=labels.action_bins)
    layout = replace(source.layout, action_chunk_size=labels.action_chunk_size)
    fingerprint = {
        **source.manifest.fingerprint,
        "labels": as_dict(labels),
        "statistics_sha256": statistics.sha256(),
    }
    config_hash = content_hash(fingerprint)
    header = replace(
        source.manifest,
        fingerprint=fingerprint,
        config_hash=config_hash,
        statistics_sha256=statistics.sha256(),
        layout=layout,
    )
    shards = source.manifest.shards
    specs = tuple(_spec(shard, config_hash) for shard in shards)
    return _Plan(header, statistics, layout, labels.action_bins, specs)


def _labels(before: Mapping[str, Any], config: RetokenizeConfig) -> LabelConfig:
    changes = {
        name: value
        for name, value in asdict(config).items()
        if name != "statistics" and value is not None
    }
    return build(LabelConfig, {**before, **changes})


def _spec(shard: ShardRecord, config_hash: str) -> ShardSpec:
    """The same episodes under the name that the new configuration gives them."""
    rows = dict(shard.episodes)
    indices = sorted([*rows, *(reject.episode_index for reject in shard.rejects)])
    refs = [EpisodeRef(index, rows.get(index, 0)) for index in indices]
    (spec,) = plan_shards(refs, max(1, shard.rows) + 1, config_hash)
    return spec


def _rewrite(
    source: Output, before: ShardRecord, spec: ShardSpec, plan: _Plan, output: Storage
) -> ShardRecord:
    """One shard with its action columns replaced, in bounded batches."""
    if not before.rows:
        return replace(before, name=spec.name)
    metadata = {
        schema.META_CONFIG_HASH: plan.header.config_hash.encode(),
        schema.META_STATISTICS_HASH: plan.header.statistics_sha256.encode(),
    }
    arrow_schema = plan.layout.arrow_schema(metadata)
    with output.local_file(spec.name) as path:
        with (
            source.open_shard(before) as file,
            ShardWriter(path, arrow_schema) as writer,
        ):
            numbers = file.read(columns=[schema.EPISODE_INDEX, schema.ACTION])
            columns = action_columns(numbers, plan.statistics, plan.num_bins, arrow_schema)
            start = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                arrays = [
                    columns[name].slice(start, batch.num_rows)
                    if name in columns
                    else batch.column(name)
                    for name in arrow_schema.names
                ]
                writer.write(pa.Table.from_arrays(arrays, schema=arrow_schema))
                start += batch.num_rows
        size, digest = path.stat().st_size, file_sha256(path)
    return replace(before, name=spec.name, num_bytes=size, sha256=digest)


def action_columns(
    numbers: pa.Table, statistics: DatasetStatistics, num_bins: int, arrow_schema: pa.Schema
) -> dict[str, pa.Array]:
    """`action_bins` and `num_valid_actions` of whole episodes, from their raw actions."""
    chunk_size = arrow_schema.field(schema.ACTION_BINS).type.list_size
    bins_TD = bin_actions(normalize(fixed_array(numbers[schema.ACTION]), statistics), num_bins)
    parts = [
        chunk(bins_TD[rows], chunk_size)
        for rows in _episodes(numbers[schema.EPISODE_INDEX].to_numpy())
    ]
    bins_THD = np.concatenate([bins for bins, _ in parts])
    return {
        schema.ACTION_BINS: fixed_size_lists(bins_THD, arrow_schema.field(schema.ACTION_BINS).type),
        schema.NUM_VALID_ACTIONS: pa.array(np.concatenate([valid for _, valid in parts])),
    }


def _episodes(episode_T: NDArray[np.int32]) -> list[slice]:
    """One slice per run of equal episode numbers."""
    starts = [0, *(np.flatnonzero(np.diff(episode_T)) + 1).tolist()]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(episode_T)], strict=True)]
