"""What a worker needs to know to build shards: plain, frozen, cheap to pickle, and its hash.

`LabelConfig` holds everything that decides the content of a row and nothing that does not (workers,
devices, progress), so that its hash names the shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from molmoact_data import schema
from molmoact_data.config import as_dict, content_hash
from molmoact_data.errors import unknown_name
from molmoact_data.files.storage import Storage
from molmoact_data.labels.pointing import DEFAULT_PROMPT
from molmoact_data.sources.base import SourceInfo
from molmoact_data.statistics import DatasetStatistics
from molmoact_data.teachers.registry import DEPTH_ESTIMATORS, GRIPPER_POINTERS

EMBEDDED = "embedded"
NONE = "none"


@dataclass(frozen=True)
class LabelConfig:
    """Which labels are made and how."""

    depth: str = "depth-anything-v2"
    """Depth teacher; `none` leaves the depth columns out."""
    depth_encoder: str = "vitb"
    """Depth-Anything-V2 size: vits, vitb, vitl. Base and larger are CC-BY-NC-4.0."""
    depth_checkpoint: str | None = None
    """Hub id, folder or original `.pth`; None = the published weights of the encoder."""
    vqvae: str | None = None
    """Path of the VQ-VAE that turns depth into codes, or `embedded`."""
    depth_recipe: Literal["checkpoint", "reference"] = "checkpoint"
    """`checkpoint` = the range the codebook was trained on; `reference` = the public preprocessing."""
    pointer: str = "molmo"
    """Gripper pointer; `none` leaves points and traces out."""
    pointer_checkpoint: str | None = None
    """Hub id or folder of the pointing model; None = the published one."""
    pointer_url: str | None = None
    """Endpoint of the `server` pointer."""
    pointer_column: str | None = None
    """Dataset column of the `column` pointer."""
    pointer_units: Literal["unit", "pixels", "percent", "grid"] = "unit"
    """Unit of that column: 0..1, pixels, 0..100 or 0..255."""
    pointer_calibration: str | None = None
    """Calibration YAML of the `projection` pointer."""
    arms: int = 1
    """Grippers per frame, from left to right in the image; 2 for a bimanual robot."""
    pointer_prompt: str = DEFAULT_PROMPT
    """What the pointing model is asked."""
    point_every: int = 1
    """Ask the pointer on every K-th frame and track with optical flow in between."""
    line_length: int = schema.TRACE_MAX_POINTS
    """Points per trace, at most."""
    filter_traces: bool = True
    """Drop outlying points; off = every point is trusted, as the reference does."""
    process_actions: bool = True
    """Off leaves action columns out."""
    action_bins: int = 256
    """Bins over the normalised range [-1, 1]."""
    action_chunk_size: int = 8
    """Steps per chunk."""
    jpeg_quality: int = 95
    """For frames that come from video; images of the source keep their own bytes."""
    batch_size: int = 32
    """Frames decoded and labelled at once; decides the memory, and float rounding of the teachers."""

    def __post_init__(self) -> None:
        for kind, name, table in (
            ("depth teacher", self.depth, DEPTH_ESTIMATORS),
            ("gripper pointer", self.pointer, GRIPPER_POINTERS),
        ):
            if name not in (NONE, *table):
                raise unknown_name(kind, name, (NONE, *table))
        if self.depth != NONE and self.vqvae is None:
            raise ValueError(
                "depth codes need a VQ-VAE: give --vqvae PATH (the released vae-final.pt), "
                "or --depth none, or --preset embedded for rendered scenes"
            )
        if self.pointer == "column" and self.pointer_column is None:
            raise ValueError("--pointer column needs --pointer-column NAME")
        if self.pointer == "server" and self.pointer_url is None:
            raise ValueError("--pointer server needs --pointer-url URL")
        if self.pointer == "projection" and self.pointer_calibration is None:
            raise ValueError("--pointer projection needs --pointer-calibration FILE.yaml")
        if self.pointer == EMBEDDED and self.arms != 1:
            raise ValueError(
                "the embedded pointer knows one gripper; --arms needs another --pointer"
            )
        for name in ("arms", "point_every", "line_length", "action_chunk_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.line_length > schema.TRACE_MAX_POINTS:
            raise ValueError(f"line_length is at most {schema.TRACE_MAX_POINTS}")
        if self.action_chunk_size > 127:
            raise ValueError("action_chunk_size is at most 127 (num_valid_actions is an int8)")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality is 1..100, got {self.jpeg_quality}")


def embedded_labels() -> dict[str, Any]:
    """The preset of the demo: the small teachers that ship with the package."""
    return {"depth": EMBEDDED, "vqvae": EMBEDDED, "pointer": EMBEDDED}


def debug_labels() -> dict[str, Any]:
    """The quickest thing that still makes every column."""
    return {**embedded_labels(), "point_every": 8, "batch_size": 8, "jpeg_quality": 75}


PRESETS = {"embedded": embedded_labels, "debug": debug_labels}


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
