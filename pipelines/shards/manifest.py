"""The end of a run: rejects, report, and the manifest last."""

from __future__ import annotations

from collections.abc import Sequence

from molmoact_data import schema
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.manifest import DatasetFacts, Manifest
from molmoact_data.outputs.rejects import rejects_of, to_jsonl
from molmoact_data.outputs.shards import ShardRecord
from molmoact_data.report.page import write_report
from pipelines.job import Job


def write(job: Job, records: Sequence[ShardRecord]) -> None:
    """Write `rejects.jsonl`, then `manifest.json`. Both depend on the configuration and data alone."""
    content = to_jsonl(rejects_of(job.source.name, records))
    job.output.write_bytes(schema.REJECTS_FILE, content)
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
