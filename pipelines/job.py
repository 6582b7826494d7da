"""What a worker needs to know to build shards: plain, frozen, cheap to pickle, and its hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from molmoact_data import schema
from molmoact_data.config import as_dict, content_hash
from molmoact_data.files.storage import Storage
from molmoact_data.sources.base import SourceInfo
from molmoact_data.statistics import DatasetStatistics
from molmoact_data.teachers.choice import NONE
from pipelines.config import LabelConfig


@dataclass(frozen=True)
class Job:
    """One preprocessing run, the same on every worker."""

    dataset_path: str
    """As the user gave it; workers open it themselves."""
    revision: str | None
    """Hub revision as asked for; None for a local folder or the default branch."""
    source: SourceInfo
    cameras: Mapping[str, str]
    """Role -> feature key, in the order of the image columns; the first is the labelled one."""
    labels: LabelConfig
    statistics: DatasetStatistics | None
    """None = actions are not processed."""
    layout: schema.RecordLayout
    output: Storage
    teachers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Role -> name, revision, licence of each teacher, as it described itself on the launcher."""
    isolate_decoder: bool = False
    """Decode in a child process, so that a file that kills the decoder rejects only its episode."""

    point_cache: str | None = None
    """Folder in which answers of a slow pointer are kept; None = not kept."""

    @property
    def labelled_camera(self) -> str:
        """Feature key of the camera that depth and points belong to."""
        return next(iter(self.cameras.values()))

    @property
    def statistics_hash(self) -> str:
        """sha256 of the statistics; a fixed word where there are none."""
        return self.statistics.sha256() if self.statistics else NONE

    def fingerprint(self) -> dict[str, Any]:
        """Everything the content of the output depends on, as plain data."""
        return {
            "schema_version": schema.SCHEMA_VERSION,
            "source": {"name": self.source.name, "revision": self.source.revision},
            "cameras": [list(pair) for pair in self.cameras.items()],
            "labels": as_dict(self.labels),
            "teachers": {role: dict(card) for role, card in self.teachers.items()},
            "statistics_sha256": self.statistics_hash,
        }

    @property
    def config_hash(self) -> str:
        """Names the shards: equal configuration, equal name."""
        return content_hash(self.fingerprint())
