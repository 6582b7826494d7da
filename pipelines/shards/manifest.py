"""The manifest: what an output is made of, written last, so that its presence means complete."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from molmoact_data import schema
from molmoact_data.config import as_dict
from molmoact_data.files.storage import Storage
from molmoact_data.labels import quality
from molmoact_data.outputs.shards import ShardRecord
from molmoact_data.report.page import write_report
from pipelines.job import Job


def write(job: Job, records: Sequence[ShardRecord]) -> None:
    """Write `rejects.jsonl`, then `manifest.json`. Both depend on the configuration and data alone."""
    job.output.write_bytes(schema.REJECTS_FILE, rejects_jsonl(job.source.name, records))
    write_manifest(job.output, assemble(header(job), records))


def write_manifest(output: Storage, manifest: Mapping[str, Any]) -> None:
    """The report, then the last file of an output."""
    write_report(output.root, manifest)
    content = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    output.write_bytes(schema.MANIFEST_FILE, content.encode())


def header(job: Job) -> dict[str, Any]:
    """The part of the manifest that is known before any shard: configuration, teachers, licences."""
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "config_hash": job.config_hash,
        "fingerprint": job.fingerprint(),
        "statistics_sha256": job.statistics_hash,
        "dataset": {
            "name": job.source.name,
            "revision": job.source.revision,
            "format": job.source.format,
            "fps": job.source.fps,
            "robot_type": job.source.robot_type,
            "warnings": list(job.source.warnings),
        },
        "cameras": dict(job.cameras),
        "layout": as_dict(job.layout),
        "teachers": {role: dict(card) for role, card in job.teachers.items()},
    }


def assemble(header: Mapping[str, Any], records: Sequence[ShardRecord]) -> dict[str, Any]:
    """The whole manifest: the header, what the shards add up to, and every shard."""
    return {
        **header,
        "counts": {
            "episodes": sum(len(r.episodes) for r in records),
            "frames": sum(r.rows for r in records),
            "shards": sum(r.rows > 0 for r in records),
            "bytes": sum(r.num_bytes for r in records),
            "rejected_episodes": sum(len(r.rejects) for r in records),
        },
        "quality": measured_quality(records).to_json(),
        "rejects_by_reason": count_rejects(records),
        "shards": [r.to_json() for r in records],
    }


def measured_quality(records: Sequence[ShardRecord]) -> quality.LabelQuality:
    """The quality of the whole output, from the sums of its shards in their order."""
    sums = (quality.QualitySums.from_json(r.quality) for r in records)
    return quality.summarise(quality.merge(sums))


def count_rejects(records: Sequence[ShardRecord]) -> dict[str, int]:
    """Reason -> rejected episodes, most frequent first."""
    counts = Counter(reject.reason for record in records for reject in record.rejects)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


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
