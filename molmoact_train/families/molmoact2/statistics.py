"""`norm_stats.json`: per tag, the numbers and the words of one robot; normalising and its inverse.

A tag's own numbers are kept when it is used again. Arithmetic is float32, as in the original.
Legend: D dimensions; "masked" = mask false: passes through as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from molmoact_data.errors import UserError, unknown_name
from molmoact_data.files.typed import read_typed
from molmoact_data.statistics import LARGEST, FeatureStatistics
from molmoact_train.families.fields import Count, Depth, check_fields

FORMAT = "molmoact2_norm_stats.v1"
NormMode: TypeAlias = Literal["q01_q99", "q10_q90", "min_max", "mean_std", "none"]
_BOUNDS: dict[str, tuple[str, str]] = {
    "q01_q99": ("q01", "q99"),
    "q10_q90": ("q10", "q90"),
    "min_max": ("min", "max"),
}
MODES: tuple[NormMode, ...] = ("q01_q99", "q10_q90", "min_max", "mean_std", "none")
SMALLEST_RANGE = np.float32(1e-6)
Array: TypeAlias = NDArray[np.float32]
Large = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
_WORDS: dict[str, Any] = {"mask": list[bool] | None, "names": list[str] | None}
_TAG: dict[str, Any] = {
    "action_horizon": Depth,
    "n_action_steps": Count | None,
    "setup_type": str,
    "control_mode": str,
    "camera_keys": list[str] | tuple[str, ...] | None,
    "normalize_gripper": bool | None,
}


@dataclass(frozen=True)
class TagStatistics:
    """The numbers of one feature of one robot, float32 [D] each; those that are missing are not in `values`."""

    values: Mapping[str, Array]
    """min, max, mean, std, q01, q99 and, where known, q10, q90."""
    mask: NDArray[np.bool_]
    """False = passes through as it is."""
    names: tuple[str, ...]
    fields: Mapping[str, Any] = field(repr=False)
    """As read, so that they are written back as they were."""

    @property
    def dim(self) -> int:
        """Action dimensions, D."""
        return len(self.mask)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], what: str) -> TagStatistics:
        """Raises UserError naming `what` where numbers are missing, not finite or of different lengths."""
        known = ("min", "max", "mean", "std", "q01", "q99", "q10", "q90")
        numbers = dict.fromkeys(known, list[Large] | None)
        try:
            check_fields({"statistics": fields}, {"statistics": dict[str, Any]})
            check_fields({n: fields.get(n) for n in numbers}, numbers)
            check_fields({n: fields.get(n) for n in _WORDS}, _WORDS)
        except ValueError as error:
            raise UserError(f"{what}: {error}") from error
        values = {n: np.asarray(fields[n], np.float32) for n in known if fields.get(n) is not None}
        missing = [name for name in known[:6] if name not in values]
        if missing:
            raise UserError(f"{what}: statistics lack {', '.join(missing)}")
        dim = len(values["min"])
        mask = np.asarray(fields.get("mask") or [True] * dim, dtype=bool)
        wrong = [n for n, v in {**values, "mask": mask}.items() if v.shape != (dim,)]
        upside = [
            f"{low} above {high}"
            for low, high in (("min", "max"), ("q01", "q99"), ("q10", "q90"))
            if not wrong and low in values and high in values and (values[low] > values[high]).any()
        ]
        if upside:
            raise UserError(f"{what}: statistics are damaged ({', '.join(upside)})")
        if wrong or any(not np.isfinite(v).all() for v in values.values()):
            raise UserError(
                f"{what}: statistics are damaged ({', '.join(wrong) or 'numbers that are not finite'})"
            )
        names = fields.get("names") or [str(i) for i in range(dim)]
        if len(names) != dim:
            raise UserError(f"{what}: {len(names)} names for {dim} dimensions")
        return cls(values, mask, tuple(map(str, names)), fields)

    @classmethod
    def of(
        cls, found: FeatureStatistics, names: Sequence[str], count: int, *, normalize_gripper: bool
    ) -> TagStatistics:
        """From exact statistics of our own data."""
        mask = default_mask(names, found.min, found.max, normalize_gripper=normalize_gripper)
        numbers = found.to_json()
        fields = numbers | {"mask": mask.tolist(), "names": list(names), "count": [float(count)]}
        return cls.from_json(fields, "statistics of the data")

    def normalise(self, x: NDArray[np.floating], mode: NormMode = "q01_q99") -> Array:
        """Robot units -> about [-1, 1], float32 [..., D]; in bounded modes a constant dimension becomes 0."""
        x = self._checked(x)
        if mode == "none":
            return x
        if mode == "mean_std":
            scaled = (x - self.values["mean"]) / np.maximum(self.values["std"], SMALLEST_RANGE)
            return np.where(self.mask, scaled, x).astype(np.float32)
        low, high = self._bounds(mode)
        span = np.maximum(high - low, SMALLEST_RANGE)
        scaled = np.clip(np.float32(2) * (x - low) / span - np.float32(1), -1, 1)
        passed = np.where(self.mask, scaled, x)
        constant = self.values["min"] == self.values["max"]
        return np.where(constant, np.float32(0), passed).astype(np.float32)

    def unnormalise(self, y: NDArray[np.floating], mode: NormMode = "q01_q99") -> Array:
        """The inverse, into robot units; bounded modes clip to [-1, 1], and so do masked dimensions."""
        y = self._checked(y)
        if mode == "none":
            return y
        if mode == "mean_std":
            scaled = y * np.maximum(self.values["std"], SMALLEST_RANGE) + self.values["mean"]
            return np.where(self.mask, scaled, y).astype(np.float32)
        low, high = self._bounds(mode)
        clipped = np.clip(y, -1, 1)
        scaled = (clipped + np.float32(1)) / np.float32(2) * (high - low) + low
        return np.where(self.mask, scaled, clipped).astype(np.float32)

    def outside(self, x: NDArray[np.floating]) -> list[str]:
        """Names of the dimensions in which x [D] lies outside what was seen in training."""
        x = self._checked(x)
        beyond = (x < self.values["min"]) | (x > self.values["max"])
        return [self.names[d] for d in np.flatnonzero(beyond)]

    def _bounds(self, mode: NormMode) -> tuple[Array, Array]:
        if mode not in _BOUNDS:
            raise unknown_name("norm_mode", mode, MODES)
        low, high = _BOUNDS[mode]
        if low not in self.values or high not in self.values:
            raise UserError(
                f"norm_mode {mode} needs {low} and {high}, which these statistics lack."
            )
        return self.values[low], self.values[high]

    def _checked(self, x: NDArray[np.floating]) -> Array:
        x = np.asarray(x, dtype=np.float32)
        if x.shape[-1] != self.dim:
            raise UserError(
                f"{x.shape[-1]} numbers, but the statistics are of {self.dim} "
                f"({', '.join(self.names[:8])}{', ...' if self.dim > 8 else ''})."
            )
        return x


def default_mask(
    names: Sequence[str],
    low: NDArray[np.floating],
    high: NDArray[np.floating],
    *,
    normalize_gripper: bool,
) -> NDArray[np.bool_]:
    """True except for dimensions named `...gripper...`, which pass through unless `normalize_gripper`.

    A gripper that passes through must lie in [-1, 1] as it is recorded.
    """
    if normalize_gripper:
        return np.ones(len(names), dtype=bool)
    mask = np.array(["gripper" not in name.lower() for name in names], dtype=bool)
    beyond = ~mask & ((np.asarray(low) < -1) | (np.asarray(high) > 1))
    if beyond.any():
        raise UserError(
            f"the gripper {names[int(np.flatnonzero(beyond)[0])]!r} is recorded outside [-1, 1], so it cannot pass "
            "through as it is: set --normalize-gripper."
        )
    return mask


@dataclass(frozen=True)
class Tag:
    """One robot as a checkpoint knows it: words for the prompt, cameras, horizon, statistics."""

    name: str
    setup_type: str
    control_mode: str
    camera_keys: tuple[str, ...]
    """In the order in which the images are shown; empty = sorted by name."""
    action_horizon: int
    n_action_steps: int
    normalize_gripper: bool
    action: TagStatistics
    state: TagStatistics | None
    fields: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_json(cls, name: str, fields: Mapping[str, Any]) -> Tag:
        try:
            check_fields({"tag": fields}, {"tag": dict[str, Any]})
            check_fields({n: fields.get(n) for n in _TAG}, _TAG)
            horizon = fields["action_horizon"]
            return cls(
                name=name,
                setup_type=fields["setup_type"],
                control_mode=fields["control_mode"],
                camera_keys=tuple(fields.get("camera_keys") or ()),
                action_horizon=horizon,
                n_action_steps=fields.get("n_action_steps") or horizon,
                normalize_gripper=fields.get("normalize_gripper") or False,
                action=TagStatistics.from_json(fields["action_stats"], f"tag {name!r}, action"),
                state=TagStatistics.from_json(fields["state_stats"], f"tag {name!r}, state")
                if fields.get("state_stats")
                else None,
                fields=fields,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"tag {name!r} of the statistics cannot be read: {error!r}.") from error

    @classmethod
    def new(
        cls,
        name: str,
        *,
        setup_type: str,
        control_mode: str,
        camera_keys: Sequence[str],
        action_horizon: int,
        action_dim: int,
        normalize_gripper: bool,
        action: TagStatistics,
        state: TagStatistics | None,
    ) -> Tag:
        """A tag of our own data; `action_dim` is the expert's width, as released files have it."""
        fields = {
            "action_key": "action",
            "state_keys": ["observation.state"] if state is not None else [],
            "camera_keys": list(camera_keys),
            "normalize_gripper": normalize_gripper,
            "action_dim": action_dim,
            "action_horizon": action_horizon,
            "n_action_steps": action_horizon,
            "setup_type": setup_type,
            "control_mode": control_mode,
            "action_stats": dict(action.fields),
            "state_stats": None if state is None else dict(state.fields),
        }
        return cls.from_json(name, fields)


@dataclass(frozen=True)
class NormStats:
    """All tags of a checkpoint."""

    mode: NormMode
    tags: Mapping[str, Tag]
    fields: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> NormStats:
        """From a file; `UserError` where it is missing or is something else."""
        if not path.is_file():
            raise UserError(
                f"{path} is missing: the checkpoint does not say in which units it acts."
            )
        fields = read_typed(dict[str, Any], path)
        try:
            return cls.from_json(fields)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> NormStats:
        if not isinstance(fields, Mapping) or fields.get("format") != FORMAT:
            raise UserError(f"not statistics of MolmoAct2 (format {FORMAT!r}).")
        mode = fields.get("norm_mode", "q01_q99")
        if mode not in MODES:
            raise unknown_name("norm_mode", str(mode), MODES)
        given = fields.get("metadata_by_tag") or {}
        if not isinstance(given, Mapping):
            raise UserError(f"metadata_by_tag is {repr(given)[:60]}, not an object of tags.")
        return cls(
            mode, {name: Tag.from_json(name, entry) for name, entry in given.items()}, fields
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`; tags that were read are written as they were."""
        entries = {name: tag.fields for name, tag in self.tags.items()}
        return {**self.fields, "format": FORMAT, "norm_mode": self.mode, "metadata_by_tag": entries}

    def with_tags(self, tags: Mapping[str, Tag]) -> NormStats:
        """With more tags; one of the same name is replaced."""
        return NormStats(self.mode, {**self.tags, **tags}, self.fields)

    def tag(self, name: str | None) -> Tag:
        """The tag asked for, or the only one; `UserError` otherwise."""
        if name is None and len(self.tags) == 1:
            return next(iter(self.tags.values()))
        if name is None:
            raise UserError(
                "the checkpoint knows several robots, and each un-normalises differently: choose one with "
                f"--unnorm-key. Tags: {', '.join(sorted(self.tags)) or 'none'}."
            )
        if name not in self.tags:
            raise unknown_name("tag", name, self.tags)
        return self.tags[name]
