"""`manifest.json`: what an output is made of, typed. Written last, so that its presence means complete."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from molmoact_data import schema
from molmoact_data.config import content_hash
from molmoact_data.errors import UserError
from molmoact_data.files.kinds import NOT_FINISHED, why_no_output
from molmoact_data.files.storage import Storage
from molmoact_data.files.typed import parse_json
from molmoact_data.labels import quality
from molmoact_data.labels.depth_scaling import DepthScaling
from molmoact_data.outputs.shards import ShardRecord


@dataclass(frozen=True)
class SourceName:
    """One of the datasets of a merged output."""

    name: str
    revision: str


@dataclass(frozen=True)
class DatasetFacts:
    """What the rows were made from."""

    name: str
    revision: str
    format: str
    fps: float | None
    """Frames per second; None = unknown, or several in a merged output."""
    robot_type: str | None
    """None = not named, or several in a merged output."""
    warnings: tuple[str, ...] = ()
    """Where the dataset's own metadata were wrong, in words."""
    sources: tuple[SourceName, ...] = ()
    """Of a merged output; empty = the dataset itself."""
    action_names: tuple[str, ...] = ()
    """Of the action's dimensions; empty = the source has none, or a merged output's sources differ."""


@dataclass(frozen=True)
class Counts:
    """What the shards add up to."""

    episodes: int = 0
    frames: int = 0
    shards: int = 0
    """Files; a shard whose episodes were all rejected has none."""
    bytes: int = 0
    rejected_episodes: int = 0

    @classmethod
    def of(cls, records: Sequence[ShardRecord]) -> Counts:
        """Count the shards."""
        return cls(
            episodes=sum(len(r.episodes) for r in records),
            frames=sum(r.rows for r in records),
            shards=sum(r.rows > 0 for r in records),
            bytes=sum(r.num_bytes for r in records),
            rejected_episodes=sum(len(r.rejects) for r in records),
        )


@dataclass(frozen=True)
class Manifest:
    """The whole file. Without shards it is what is known before any of them is made."""

    config_hash: str
    """Hash of the fingerprint; names the shards."""
    fingerprint: Mapping[str, Any]
    """Everything the content depends on, as plain data: source, cameras, labels, teachers, statistics."""
    statistics_sha256: str
    dataset: DatasetFacts
    cameras: Mapping[str, str]
    """Role -> feature key. Their order is `layout.cameras`."""
    layout: schema.RecordLayout
    teachers: Mapping[str, Mapping[str, str]]
    """Role -> the teacher's own description, with its licence."""
    schema_version: str = schema.SCHEMA_VERSION
    counts: Counts = field(default_factory=Counts)
    quality: Mapping[str, Any] = field(default_factory=dict)
    """`labels.quality.LabelQuality` of the whole output."""
    rejects_by_reason: Mapping[str, int] = field(default_factory=dict)
    """Most frequent first, when made."""
    shards: tuple[ShardRecord, ...] = ()
    """All that were planned, in order, those without rows included."""

    def __post_init__(self) -> None:
        if set(self.cameras) != set(self.layout.cameras):
            raise ValueError(f"cameras {list(self.cameras)} are not those of the layout")

    @property
    def labels(self) -> Mapping[str, Any]:
        """The resolved label configuration: bins, chunk size, teachers by name."""
        return self.fingerprint["labels"]

    @property
    def depth_scaling(self) -> DepthScaling:
        """By which range depth became 8 bits; each image's own where the output is older than the choice."""
        scaling: DepthScaling = self.labels.get("depth_scaling", "image")
        return scaling

    @property
    def labelled_camera(self) -> str:
        """Role of the camera that depth, points and traces belong to."""
        return self.layout.cameras[0]

    @property
    def sources(self) -> tuple[SourceName, ...]:
        """Every dataset in it."""
        return self.dataset.sources or (SourceName(self.dataset.name, self.dataset.revision),)

    def with_shards(self, records: Sequence[ShardRecord]) -> Manifest:
        """The complete manifest: what the shards add up to, and every shard."""
        return replace(
            self,
            counts=Counts.of(records),
            quality=measured_quality(records).to_json(),
            rejects_by_reason=count_rejects(records),
            shards=tuple(records),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data; the inverse of `read_manifest`."""
        plain = json.loads(json.dumps(asdict(self)))
        for optional in ("sources", "action_names"):
            if not plain["dataset"][optional]:
                del plain["dataset"][optional]
        return plain

    def to_bytes(self) -> bytes:
        """The content of the file."""
        return (json.dumps(self.to_json(), indent=1, sort_keys=True) + "\n").encode()


def measured_quality(records: Sequence[ShardRecord]) -> quality.LabelQuality:
    """The quality of the whole output, from the sums of its shards in their order."""
    sums = (quality.QualitySums.from_json(r.quality) for r in records)
    return quality.summarise(quality.merge(sums))


def count_rejects(records: Sequence[ShardRecord]) -> dict[str, int]:
    """Reason -> rejected episodes, most frequent first."""
    counts = Counter(reject.reason for record in records for reject in record.rejects)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class OtherVersion(UserError):
    """The output was written with a schema that this program does not read."""


class EditedManifest(UserError):
    """The settings in the manifest are not those that its shards were made with."""


@dataclass(frozen=True)
class _Version:
    schema_version: str


def read_manifest(storage: Storage) -> Manifest:
    """The manifest of an output. Raises `UserError` where the run did not finish, or the file is not one.

    `EditedManifest` where its settings, which say what tokens and codes mean, do not have the hash that stands beside.
    """
    where = f"{storage.root}/{schema.MANIFEST_FILE}"
    try:
        content = storage.read_bytes(schema.MANIFEST_FILE)
    except FileNotFoundError as error:
        why = NOT_FINISHED if storage.is_remote else why_no_output(Path(storage.root))
        raise UserError(f"{storage.root} has no {schema.MANIFEST_FILE}: {why}.") from error
    version = parse_json(_Version, content, where).schema_version
    if version.partition(".")[0] != schema.SCHEMA_VERSION.partition(".")[0]:
        raise OtherVersion(
            f"{storage.root} has schema version {version}, this program reads {schema.SCHEMA_VERSION}; "
            "preprocess the dataset again or use the version that wrote it."
        )
    manifest = parse_json(Manifest, content, where)
    if not _is_hash_of(manifest.config_hash, manifest.fingerprint):
        raise EditedManifest(
            f"{where}: the settings (`fingerprint`) are not those of `config_hash`: it was edited or damaged, and what "
            "tokens and codes mean is no longer certain. Restore the file, or preprocess again."
        )
    return manifest


def _is_hash_of(stated: str, fingerprint: Mapping[str, Any]) -> bool:
    try:
        return content_hash(fingerprint) == stated
    except ValueError:  # NaN or an infinity, which nothing of ours writes
        return False
