"""Which teachers label a run, and how they are loaded. A teacher is one file and one line of the registry.

The file has a class with the methods of its protocol, a frozen dataclass `Settings` whose fields are some of
`TeacherConfig`'s, and `load(settings, device)`:

    class MyPointer:
        Settings = MySettings

        @classmethod
        def load(cls, settings: MySettings, device: str) -> MyPointer: ...

What a teacher needs is checked in the `__post_init__` of its settings, before anything is read.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from molmoact_data.config import build, option
from molmoact_data.errors import UserError, unknown_name
from molmoact_data.labels.depth import DepthEstimator, DepthTokenizer
from molmoact_data.labels.depth_scaling import DepthScaling
from molmoact_data.labels.pointing import (
    CLIP_PROMPT,
    DEFAULT_PROMPT,
    ClipConfig,
    ColumnPointer,
    GripperPointer,
)
from molmoact_data.sources.base import SourceInfo
from molmoact_data.teachers import registry
from molmoact_data.teachers.codebook import EMBEDDED as EMBEDDED, RELEASED, codebook_path
from molmoact_data.teachers.published import (
    DEPTH_WEIGHTS,
    MOLMO2_4B,
    MOLMO2_WEIGHTS,
    MOLMO_7B_D,
    POINTING_WEIGHTS,
    RELEASED_VQVAE,
    Published,
    is_hub_id,
)
from molmoact_data.teachers.registry import DEPTH_ESTIMATORS, GRIPPER_POINTERS

NONE = "none"


@dataclass(frozen=True)
class TeacherConfig:
    """Which teachers, and what each of them needs to know. Every field is part of the labels' hash."""

    depth: str = option("depth-anything-v2", panel="Depth", choices=(*DEPTH_ESTIMATORS, NONE))
    """Depth teacher; `none` leaves the depth columns out."""
    depth_encoder: str = option("vits", choices=("vits", "vitb", "vitl"))
    """Depth-Anything-V2 size. vitb (the reference's) and vitl are CC-BY-NC-4.0: not for commercial use."""
    depth_checkpoint: str | None = None
    """Hub id, folder or original .pth of the depth model instead of the published weights."""
    vqvae: str | None = RELEASED
    """VQ-VAE that turns depth into codes: `released` (the published vae-final.pt, fetched), a path, or `embedded`."""
    depth_recipe: Literal["checkpoint", "reference"] = "checkpoint"
    """checkpoint = the range the codebook was trained on; reference = the public preprocessing."""
    depth_scaling: DepthScaling = "image"
    """Range of the 8 bits that are coded: image = each frame's own, as released; steady = kept over the frames of an
    episode, so that what stands still keeps its codes."""
    pointer: str = option("molmo", panel="Gripper points", choices=(*GRIPPER_POINTERS, NONE))
    """Gripper pointer; `none` leaves points and traces out."""
    pointer_checkpoint: str | None = None
    """Hub id or folder of the pointing model instead of the published one; on a server, its name there."""
    pointer_url: str | None = None
    """OpenAI-compatible endpoint of the `server` pointer; ends in /v1."""
    pointer_column: str | None = None
    """Dataset column with the recorded points of the `column` pointer."""
    pointer_units: Literal["unit", "pixels", "percent", "grid"] = "unit"
    """Unit of that column: 0..1, pixels, 0..100 or 0..255."""
    pointer_calibration: str | None = None
    """Calibration YAML of the `projection` pointer."""
    arms: int = 1
    """Grippers per frame, from left to right in the image; 2 for a bimanual robot."""
    pointer_prompt: str = DEFAULT_PROMPT
    """What the pointing model is asked about a picture."""
    clip_frames: int = 1
    """Of --pointer molmo2: so many of the frames that are asked about (--point-every) go into one question, as a clip;
    1 = a picture at a time."""
    clip_overlap: int = 4
    """Frames that a clip shares with the one before it."""
    clip_fps: float = 2.0
    """Frames per second that a clip is told to have, whatever its real ones; Molmo2 was trained on 2."""
    clip_prompt: str = CLIP_PROMPT
    """What the pointing model is asked about a clip; `Track ...` tells which arm is which."""

    def __post_init__(self) -> None:
        for kind, name, table in (
            ("depth teacher", self.depth, DEPTH_ESTIMATORS),
            ("gripper pointer", self.pointer, GRIPPER_POINTERS),
        ):
            if name not in (NONE, *table):
                raise unknown_name(kind, name, (NONE, *table))
        if self.depth != NONE and self.vqvae is None:
            raise ValueError(
                "depth codes need a VQ-VAE: --vqvae released, the path of one, or --depth none"
            )
        if self.clip_frames != 1 and self.pointer != "molmo2":
            raise ValueError(
                f"--clip-frames is for --pointer molmo2, which reads clips; {self.pointer} is asked about pictures"
            )
        ClipConfig.of(self.clip_frames, self.clip_overlap, self.clip_fps, self.clip_prompt)
        if self.arms < 1:
            raise ValueError(f"arms must be at least 1, got {self.arms}")


@dataclass(frozen=True)
class Teachers:
    """The teachers of one run: depth, codebook, pointer; None = not asked for."""

    depth: DepthEstimator | None
    tokenizer: DepthTokenizer | None
    pointer: GripperPointer | ColumnPointer | None

    def describe(self) -> dict[str, dict[str, str]]:
        """Role -> the teacher's own description."""
        roles = {
            "depth": self.depth,
            "depth_tokenizer": self.tokenizer,
            "gripper_pointer": self.pointer,
        }
        return {role: teacher.describe() for role, teacher in roles.items() if teacher is not None}

    def check_source(self, info: SourceInfo) -> None:
        """Raises `UserError` where a pointer reads a column that the dataset does not have."""
        for name in self.pointer.columns if isinstance(self.pointer, ColumnPointer) else ():
            if name not in info.columns:
                raise unknown_name("column for the gripper pointer", name, info.columns)

    @property
    def answers_are_dear(self) -> bool:
        """True where the pointer is slow enough that its answers are worth keeping across a crash."""
        return bool(getattr(self.pointer, "answers_are_dear", False))


def downloads(config: TeacherConfig) -> dict[str, Published]:
    """Role -> what a run fetches once, if it is not in the cache yet: from where, how big, under which licence."""
    found: dict[str, Published] = {}
    if config.depth == "depth-anything-v2" and config.depth_checkpoint is None:
        found["depth"] = DEPTH_WEIGHTS[config.depth_encoder]
    if config.depth != NONE and config.vqvae == RELEASED:
        found["depth_tokenizer"] = RELEASED_VQVAE
    for name, default, known in (
        ("molmo", MOLMO_7B_D, POINTING_WEIGHTS),
        ("molmo2", MOLMO2_4B, MOLMO2_WEIGHTS),
    ):
        asked = config.pointer_checkpoint or default.repository
        if config.pointer == name and asked in known:
            found["gripper_pointer"] = known[asked]
    return found


def check_paths(config: TeacherConfig) -> None:
    """Raises `UserError` for a file that is not there, before any network is imported."""
    if config.depth != NONE and config.vqvae != RELEASED:
        codebook_path(str(config.vqvae))
    if config.pointer == "projection" and config.pointer_calibration is not None:
        path = Path(config.pointer_calibration)
        if not path.is_file():
            raise UserError(f"--pointer-calibration {path}: no such file.")
    for flag, given in (
        ("--depth-checkpoint", config.depth_checkpoint),
        ("--pointer-checkpoint", config.pointer_checkpoint if config.pointer != "server" else None),
    ):
        if given is not None and not Path(given).exists() and not is_hub_id(given):
            raise UserError(f"{flag} {given}: nothing is there, and it is no Hub id (owner/name).")


_lock = threading.Lock()
_loaded: dict[tuple[TeacherConfig, str], Teachers] = {}


def load_teachers(config: TeacherConfig, device: str) -> Teachers:
    """The process-wide teachers of this configuration: one copy, however many threads ask."""
    with _lock:
        key = (config, device)
        if key not in _loaded:
            check_paths(config)
            depth = _load("depth teacher", config.depth, DEPTH_ESTIMATORS, config, device)
            tokenizer = _tokenizer(config, device)
            pointer = _load("gripper pointer", config.pointer, GRIPPER_POINTERS, config, device)
            _loaded[key] = Teachers(depth, tokenizer, pointer)
        return _loaded[key]


def _load(
    kind: str, name: str, table: Mapping[str, str], config: TeacherConfig, device: str
) -> Any:
    """The teacher of this name with its own settings out of the common ones; None for `none`."""
    if name == NONE:
        return None
    teacher = registry.resolve(kind, name, table)
    known = {field.name for field in fields(config)}
    own = {f.name: getattr(config, f.name) for f in fields(teacher.Settings) if f.name in known}
    return teacher.load(build(teacher.Settings, own), device)


def _tokenizer(config: TeacherConfig, device: str) -> DepthTokenizer | None:
    if config.depth == NONE:
        return None
    factory = registry.resolve("depth tokenizer", "vqvae", registry.DEPTH_TOKENIZERS)
    tokenizer: DepthTokenizer = factory(
        str(config.vqvae), recipe=config.depth_recipe, device=device
    )
    return tokenizer
