"""Several outputs of equal configuration become one: shards are copied, nothing is computed again.

Equal means that a row of one could have been written by the run of the other: same labels, teachers, depth
recipe, cameras, layout and statistics. Only the source may differ, and no episode may be in two of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from molmoact_data import schema
from molmoact_data.config import as_dict, content_hash
from molmoact_data.errors import UserError
from molmoact_data.files.storage import Storage
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
from pipelines import state
from pipelines.shards import manifest


@dataclass(frozen=True)
class Merged:
    """What `--json` prints."""

    output: str
    inputs: tuple[str, ...]
    episodes: int
    frames: int
    shards: int


@dataclass(frozen=True)
class _Part:
    """One shard on its way."""

    source: Output
    record: ShardRecord
    spec: ShardSpec


def merge(sources: Sequence[Output], output: Storage, *, resume: bool, overwrite: bool) -> Merged:
    """Check that the outputs fit, then copy every shard under its new name."""
    if len(sources) < 2:
        raise UserError("merge needs at least two outputs.")
    refuse_differences(sources)
    refuse_repeated_episodes(sources)
    header = merged_header(sources)
    parts = [
        _Part(source, record, _spec(source, record, header.config_hash))
        for source in sources
        for record in source.manifest.shards
    ]
    specs = [part.spec for part in parts]
    inputs = [source.storage.root for source in sources]
    with state.claimed_output(output, resume=resume, overwrite=overwrite, inputs=inputs):
        if sources[0].statistics is not None:
            statistics = sources[0].storage.read_bytes(schema.STATISTICS_FILE)
            output.write_bytes(schema.STATISTICS_FILE, statistics)
        state.remember_plan(output, header.fingerprint, specs)
        done = state.finished_records(output, specs)
        records = []
        for part in parts:
            record = done.get(part.spec.name) or _copy(part, header, output)
            state.write_record(output, record)
            records.append(record)
        rejects = [reject for source in sources for reject in source.rejects()]
        output.write_bytes(schema.REJECTS_FILE, to_jsonl(rejects))
        manifest.write_manifest(output, header.with_shards(records))
        state.forget(output)
    return Merged(
        output=output.root,
        inputs=tuple(source.storage.root for source in sources),
        episodes=sum(len(r.episodes) for r in records),
        frames=sum(r.rows for r in records),
        shards=sum(r.rows > 0 for r in records),
    )


def refuse_differences(sources: Sequence[Output]) -> None:
    """Raise `UserError` naming every setting that differs."""
    first = sources[0]
    for other in sources[1:]:
        names = state.differences(_comparable(first), _comparable(other))
        if names:
            raise UserError(
                f"{first.storage.root} and {other.storage.root} were made with different settings, so "
                f"their rows do not mean the same: {', '.join(names)}.{_advice(names)}"
            )


def _comparable(output: Output) -> dict[str, Any]:
    """What must be equal. Feature keys of the cameras are the source's business, roles are ours."""
    fingerprint = {
        key: value
        for key, value in output.manifest.fingerprint.items()
        if key not in ("source", "cameras", "statistics_sha256")
    }
    return {
        **fingerprint,
        "layout": as_dict(output.manifest.layout),
        "statistics_sha256": output.manifest.statistics_sha256,
    }


def _advice(names: Sequence[str]) -> str:
    if list(names) == ["statistics_sha256"]:
        return (
            " Only the action statistics differ: compute common ones with `molmoact stats A B "
            "--output-path merged.json`, then `molmoact retokenize` each with `--statistics merged.json`."
        )
    if any(name.startswith(("teachers", "labels.depth")) for name in names):
        return (
            " Labels of different teachers, depth recipes or depth scalings never merge; preprocess one of them "
            "again."
        )
    return ""


def refuse_repeated_episodes(sources: Sequence[Output]) -> None:
    """Raise `UserError` where an episode is in two of the outputs."""
    counts = Counter(
        (part.name, part.revision, episode)
        for source in sources
        for part in source.sources
        for shard in source.shards
        for episode, _ in shard.episodes
    )
    repeated = [key for key, count in counts.items() if count > 1]
    if repeated:
        name, revision, episode = repeated[0]
        raise UserError(
            f"episode {episode} of {name} at revision {revision[:20]} is in more than one of the outputs (and "
            f"{len(repeated) - 1} more): the same demonstration would count twice."
        )


def merged_header(sources: Sequence[Output]) -> Manifest:
    """The first output's header with all sources in it."""
    parts = tuple(dict.fromkeys(part for output in sources for part in output.sources))
    first = sources[0].manifest
    if len(parts) == 1:
        return first
    name = "+".join(part.name for part in parts)
    revision = content_hash([asdict(part) for part in parts])
    fingerprint = {**first.fingerprint, "source": {"name": name, "revision": revision}}
    rates = {output.manifest.dataset.fps for output in sources}
    robots = {output.manifest.dataset.robot_type for output in sources}
    names = {output.manifest.dataset.action_names for output in sources}
    dataset = replace(
        first.dataset,
        name=name,
        revision=revision,
        format="merged",
        fps=rates.pop() if len(rates) == 1 else None,
        robot_type=robots.pop() if len(robots) == 1 else None,
        warnings=tuple(w for output in sources for w in output.manifest.dataset.warnings),
        sources=parts,
        action_names=names.pop() if len(names) == 1 else (),
    )
    return replace(
        first, fingerprint=fingerprint, config_hash=content_hash(fingerprint), dataset=dataset
    )


def _spec(source: Output, record: ShardRecord, config_hash: str) -> ShardSpec:
    """The shard's name in the merged output; two sources may both have an episode 0."""
    rows = dict(record.episodes)
    indices = sorted([*rows, *(reject.episode_index for reject in record.rejects)])
    refs = [EpisodeRef(index, rows.get(index, 0)) for index in indices]
    own = source.manifest.config_hash
    key = config_hash if config_hash == own else content_hash([config_hash, own])
    (spec,) = plan_shards(refs, max(1, record.rows) + 1, key)
    return spec


def _copy(part: _Part, header: Manifest, output: Storage) -> ShardRecord:
    """The same rows; only the hashes in the file's metadata are those of the merged output."""
    record = part.record
    if not record.rows:
        return replace(record, name=part.spec.name)
    with output.local_file(part.spec.name) as path:
        with part.source.open_shard(record) as file:
            metadata = {
                **(file.schema_arrow.metadata or {}),
                schema.META_CONFIG_HASH: header.config_hash.encode(),
            }
            arrow_schema = file.schema_arrow.with_metadata(metadata)
            with ShardWriter(path, arrow_schema) as writer:
                for batch in file.iter_batches(batch_size=BATCH_ROWS):
                    writer.write(pa.Table.from_batches([batch]).cast(arrow_schema))
        size, digest = path.stat().st_size, file_sha256(path)
    return replace(record, name=part.spec.name, num_bytes=size, sha256=digest)
