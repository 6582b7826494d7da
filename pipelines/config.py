"""What a run is: frozen dataclasses over one flat namespace of flags and YAML keys; preset, then file, then flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from molmoact_data import schema
from molmoact_data.config import build, load_yaml, option
from molmoact_data.errors import UserError, unknown_name
from molmoact_data.labels.pointing import Keyframes
from molmoact_data.teachers.choice import EMBEDDED, NONE, TeacherConfig

Gripper = Literal["keep", "invert", "scale", "none"]
LOCAL = "local"
RUNNERS = (LOCAL, "FlinkRunner", "PortableRunner", "DataflowRunner", "SparkRunner")
BEAM_HERE = ("FnApiRunner", "PrismRunner")
"""Beam's own local runners; accepted, but `local` with --workers is what people want."""


@dataclass(frozen=True)
class LabelConfig(TeacherConfig):
    """Which labels are made and how: all that decides the content of a row, and nothing that does not.

    Workers, devices and progress are elsewhere, so that the hash of this names the shards.
    """

    depth_buffer: Literal["none", "consistent", "original"] = option("none", panel="Depth")
    """For MolmoAct2's Think, also codes that follow only where the picture changed: compared as its policy compares
    (consistent), or as its published annotation did (original)."""
    point_every: int = option(1, panel="Traces")
    """Ask the pointer on every K-th frame and track with optical flow in between."""
    keyframes: Keyframes = "regular"
    """motion = ask when the arm has moved a fifth of the picture; --point-every is then the longest gap, say 100."""
    line_length: int = schema.TRACE_MAX_POINTS
    """Points per trace, at most 5."""
    filter_traces: bool = True
    """Drop outlying points; off = every point is trusted, as the reference does."""
    process_actions: bool = option(default=True, panel="Actions")
    """Write action columns."""
    action_bins: int = 256
    """Bins per action dimension, over the normalised range -1..1."""
    action_chunk_size: int = 8
    """Steps per action chunk."""
    jpeg_quality: int = option(95, panel="Images")
    """1..100, for frames that come from video; images of the source keep their own bytes."""
    batch_size: int = 32
    """Frames decoded and labelled at once; decides the memory, and float rounding of the teachers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("point_every", "line_length", "action_chunk_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.depth_buffer != "none" and self.depth == NONE:
            raise ValueError("depth_buffer needs depth codes, and depth is none")
        if self.keyframes == "motion" and self.point_every == 1:
            raise ValueError(
                "keyframes motion asks at the latest after --point-every frames, which is 1: give the longest gap, "
                "for example --point-every 100"
            )
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
    return {
        **embedded_labels(),
        "depth_buffer": "consistent",
        "point_every": 8,
        "batch_size": 8,
        "jpeg_quality": 75,
    }


PRESETS = {"embedded": embedded_labels, "debug": debug_labels}


@dataclass(frozen=True)
class RunnerConfig:
    """Which engine runs the graph, and how wide."""

    runner: str = option(LOCAL, panel="Where it runs", choices=RUNNERS)
    """This machine, or a Beam runner."""
    workers: int = 1
    """Local worker processes. On a cluster the runner's own options decide."""
    beam_options: tuple[str, ...] = option((), flag="beam_option")
    """Passed to Beam as it is, repeatable: --flink_master=host:8081."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.runner == "DaskRunner":
            raise ValueError("Beam's DaskRunner loses data without an error; it is not supported")
        # A dotted name is a class of someone else's; Beam reads the others in any case.
        known = {name.lower() for name in (*RUNNERS, *BEAM_HERE)}
        if "." not in self.runner and self.runner.lower() not in known:
            raise unknown_name("runner", self.runner, RUNNERS)

    @property
    def in_child(self) -> bool:
        """True where a watchdog is needed."""
        return self.runner == LOCAL and self.workers > 1

    @property
    def is_cluster(self) -> bool:
        """True where the work leaves this machine."""
        return self.runner != LOCAL

    @property
    def needs_engine(self) -> bool:
        """False where one process of this machine does all: importing and starting Beam takes it 2 s."""
        return self.is_cluster or self.workers > 1

    def arguments(self) -> list[str]:
        """Beam's command-line options."""
        if self.runner != LOCAL:
            return [f"--runner={self.runner}", *self.beam_options]
        mode = ["--direct_running_mode=in_memory"]
        if self.workers > 1:
            mode = [
                "--direct_running_mode=multi_processing",
                f"--direct_num_workers={self.workers}",
            ]
        return ["--runner=FnApiRunner", *mode, *self.beam_options]


@dataclass(frozen=True)
class PreprocessConfig:
    """One run: what is read, where it goes, which labels, on which engine."""

    dataset_path: str = option(panel="Data")
    """LeRobot or RLDS dataset: folder, URL or Hub id."""
    output_path: str = option()
    """Folder or URL for the shards; never overwritten unless asked."""
    revision: str | None = None
    """Hub revision of the dataset."""
    dataset_name: str | None = None
    """What the dataset is called in rows, statistics and reports; left out = its folder's name or Hub id."""
    cameras: Mapping[str, str] = option(factory=dict, flag="camera", metavar="ROLE=KEY")
    """Role and feature key of a camera, repeatable; the first is labelled. Left out = guessed and said."""
    episodes: str | None = None
    """For example 0,1,5-9; left out = all."""
    labels: LabelConfig = field(default_factory=LabelConfig)
    """Which labels are made."""
    gripper: Mapping[int | Literal["none"], Gripper] = option(
        factory=dict, panel="Actions", metavar="none|DIM=keep|invert|scale", alone=("none",)
    )
    """Gripper dimension, repeatable: unscaled, as recorded (keep) or 1 - a (invert), or scaled like a joint;
    `none` scales all. Left out = by the names of the dimensions, then the last of seven, inverted."""
    statistics: str | None = None
    """Use this dataset_statistics.json, frozen, instead of computing one."""
    frames_per_shard: int = option(1000, panel="Shards and limits")
    """A shard is closed by the episode that reaches this; it is what a crash can cost."""
    max_reject_fraction: float = 0.0
    """Share of rejected episodes above which the run fails with exit code 3."""
    min_coverage: float | None = None
    """Share of frames with a usable trace below which the run fails with exit code 3."""
    point_cache: str | None = option(None, panel="Gripper points")
    """Folder where answers of a slow pointer are kept; left out = with the run, until it is complete."""
    device: str = option("auto", panel="Where it runs")
    """Where the teachers run: auto, cpu, cuda, cuda:1."""
    isolate_decoder: bool = False
    """Decode video in a child process that may crash without harm."""
    runner: RunnerConfig = field(default_factory=RunnerConfig)
    """The engine."""

    def __post_init__(self) -> None:
        for name in ("dataset_path", "output_path"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; the current folder is written as .")
        if self.dataset_name is not None and not self.dataset_name.strip():
            raise ValueError("dataset_name is empty")
        if self.min_coverage is not None and not 0 <= self.min_coverage <= 1:
            raise ValueError(f"min_coverage is 0..1, got {self.min_coverage}")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(f"max_reject_fraction is 0..1, got {self.max_reject_fraction}")
        if "none" in self.gripper and len(self.gripper) > 1:
            raise ValueError("gripper none says that there is none; name no dimension beside it")
        if any((how == "none") != (which == "none") for which, how in self.gripper.items()):
            raise ValueError("gripper wants a dimension and keep, invert or scale, or none alone")
        if self.frames_per_shard < 1:
            raise ValueError(f"frames_per_shard must be at least 1, got {self.frames_per_shard}")


def preprocess_config(flags: Mapping[str, Any], config_file: Path | None) -> PreprocessConfig:
    """The frozen configuration of one run. A misspelt key names the nearest match."""
    values = load_yaml(config_file) if config_file else {}
    values.update(flags)
    preset = values.pop("preset", None)
    if values.get("gripper") == "none":
        values["gripper"] = {"none": "none"}
    if "depth_encoder" in values:
        values.setdefault("depth", "depth-anything-v2")
    return nested({**_preset(preset), **values})


def nested(values: Mapping[str, Any]) -> PreprocessConfig:
    """Sort flat names into the dataclasses that own them."""
    owners = {"labels": LabelConfig, "runner": RunnerConfig}
    names = {part: {f.name for f in fields(cls)} for part, cls in owners.items()}
    top = {f.name for f in fields(PreprocessConfig)} - set(owners)
    for key in values:
        if not any(key in known for known in (top, *names.values())):
            raise unknown_name("configuration key", key, top.union(*names.values()))
    for required in ("dataset_path", "output_path"):
        if required not in values:
            raise UserError(f"--{required.replace('_', '-')} is missing.")
    parts: dict[str, Any] = {
        part: build(cls, {k: v for k, v in values.items() if k in names[part]})
        for part, cls in owners.items()
    }
    return build(PreprocessConfig, {**{k: values[k] for k in values if k in top}, **parts})


def _preset(name: object) -> dict[str, Any]:
    if name is None:
        return {}
    if not isinstance(name, str) or name not in PRESETS:
        raise unknown_name("preset", str(name), PRESETS)
    return PRESETS[name]()
