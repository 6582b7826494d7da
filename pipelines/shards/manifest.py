"""The end of a run: rejects, report, and the manifest last."""

from __future__ import annotations

import json
from collections.abc import Sequence

from molmoact_data import schema
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.manifest import DatasetFacts, Manifest
from molmoact_data.outputs.shards import ShardRecord
from molmoact_data.report.page import write_report
from pipelines.job import Job


def write(job: Job, records: Sequence[ShardRecord]) -> None:
    """Write `rejects.jsonl`, then `manifest.json`. Both depend on the configuration and data alone."""
    job.output.write_bytes(schema.REJECTS_FILE, rejects_jsonl(job.source.name, records))
    write_manifest(job.output, header(job).with_shards(records))


def write_manifest(output: Storage, manifest: Manifest) -> None:
    """The report, then the last file of an output."""
    write_report(output.root, manifest)
    output.write_bytes(schema.MANIFEST_FILE, manifest.to_bytes())


def header(job: Job) -> Manifest:
    """What is known before any shard: configuration, teachers, licences."""
    source = job.source
    return Manifest(
        config_hash=job.config_hash,
        fingerprint=job.fingerprint(),
        statistics_sha256=job.statistics_hash,
        dataset=DatasetFacts(
            name=source.name,
            revision=source.revision,
            format=source.format,
            fps=source.fps,
            robot_type=source.robot_type,
            warnings=tuple(source.warnings),
            action_names=source.action_names or () if job.layout.action_dim is not None else (),
        ),
        cameras=job.cameras,
        layout=job.layout,
        teachers=job.teachers,
    )


def rejects_jsonl(dataset: str, records: Sequence[ShardRecord]) -> bytes:
    """One line per rejected episode, in episode order; empty where nothing was rejected."""
    rejects = sorted(
        (reject for record in records for reject in record.rejects), key=lambda r: r.episode_index
    )
    lines = [
        json.dumps(
            {
                schema.DATASET: dataset,
                schema.EPISODE_INDEX: reject.episode_index,
                "reason": reject.reason,
                "detail": reject.detail,
            }
        )
        for reject in rejects
    ]
    return "".join(line + "\n" for line in lines).encode()
