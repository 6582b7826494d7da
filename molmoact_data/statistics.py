"""Statistics of actions and states: exact, and independent of the order in which values arrive.

The file format is the released models' `norm_stats`, plus our per-dimension spec under `spec`, which
readers of the original ignore. Values are float32, as the released numbers are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError

REFERENCE_ARM_DIM = 7
DEFAULT_NUM_BINS, MAX_NUM_BINS = 256, 1024
LARGEST = float(np.finfo(np.float32).max)
_GRIPPER_NAME = re.compile(r"grip|finger|claw|jaw|suction|vacuum")
_NAMES_OF_NOTHING = frozenset(
    ("action", "actions", "a", "motor", "motors", "dim", "dimension", "index", "value", "x", "axis", "axes",
     "feature", "channel", "main", "pos", "goal", "target", "unknown", "none", "name")
)  # fmt: skip
FEATURE_FIELDS = ("mean", "std", "min", "max", "q01", "q99")


@dataclass(frozen=True)
class FeatureStatistics:
    """Per-dimension statistics, float32 [D] each; q01/q99 are true quantiles over all frames."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    min: NDArray[np.float32]
    max: NDArray[np.float32]
    q01: NDArray[np.float32]
    q99: NDArray[np.float32]

    @property
    def dim(self) -> int:
        """Dimensions, D."""
        return self.q01.size

    def to_json(self) -> dict[str, list[float]]:
        """Lists of decimal numbers that read back to the same float32."""
        return {name: getattr(self, name).astype(float).tolist() for name in FEATURE_FIELDS}

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> FeatureStatistics:
        """The inverse of `to_json`. Raises UserError for what no statistics can be."""
        if not isinstance(obj, Mapping):
            raise UserError(f"statistics of a feature must be an object, found {repr(obj)[:40]}")
        missing = [name for name in FEATURE_FIELDS if name not in obj]
        if missing:
            raise UserError(
                f"statistics lack {', '.join(missing)}; found {', '.join(map(str, obj))}"
            )
        arrays = {name: _numbers(name, obj[name]) for name in FEATURE_FIELDS}
        if len({array.size for array in arrays.values()}) != 1:
            raise UserError("statistics lists differ in length: the file is damaged")
        for low, high in (("q01", "q99"), ("min", "max"), ("q01", "max"), ("min", "q99")):
            if (arrays[low] > arrays[high]).any():
                raise UserError(f"statistics have a {low} above its {high}: the file is damaged")
            with np.errstate(over="ignore"):
                if not np.isfinite(arrays[high] - arrays[low]).all():
                    raise UserError(f"statistics have {low} and {high} too far apart for float32")
        if (arrays["std"] < 0).any():
            raise UserError("statistics have a negative std: the file is damaged")
        return cls(**arrays)


# One dataset: its features, and how its actions become tokens


@dataclass(frozen=True)
class DimensionSpec:
    """How one action dimension becomes a number in [-1, 1].

    normalize: scale q01..q99 to -1..1; otherwise the raw value is kept (and clipped when binned).
    gripper: what the dimension drives; informs reports and decoding to a robot, changes no arithmetic.
    invert: a raw value a becomes 1 - a, a normalised one x becomes -x.
    """

    normalize: bool
    gripper: bool = False
    invert: bool = False


def named_grippers(names: Sequence[str]) -> tuple[int, ...] | None:
    """Dimensions whose name is a gripper's; None where the names say nothing about what a dimension drives.

    `motor_6`, `action_6` and `6` say nothing; `joint_7.pos` says that it is a joint.
    """
    words = [set(re.findall(r"[a-z]+", name.lower())) for name in names]
    if all(found <= _NAMES_OF_NOTHING for found in words):
        return None
    return tuple(d for d, name in enumerate(names) if _GRIPPER_NAME.search(name.lower()))


@dataclass(frozen=True)
class ActionSpec:
    """One `DimensionSpec` per action dimension; stored with the statistics, honoured both ways."""

    dimensions: tuple[DimensionSpec, ...]

    @classmethod
    def default(cls, action_dim: int, names: Sequence[str] | None = None) -> ActionSpec:
        """The reference's spec for 7-D; every dimension normalised, none called a gripper, otherwise.

        7-D is read as six end-effector deltas and a gripper stored as 1 - a, as all released models have
        it, unless the dimensions have `names` that say something else: then the named grippers are, or none.
        Any other D says nothing about where grippers are (14 may be two 7-D arms or 2 x (6 joints +
        gripper)), so nothing is guessed: quantile scaling is right for every dimension, including a
        gripper, and inverts exactly. Use `with_grippers` to say more.
        """
        if action_dim != REFERENCE_ARM_DIM:
            return cls(tuple(DimensionSpec(normalize=True) for _ in range(action_dim)))
        named = named_grippers(names) if names is not None and len(names) == action_dim else None
        grippers = (action_dim - 1,) if named is None else named
        return cls.with_grippers(action_dim, grippers, invert=True)

    @classmethod
    def with_grippers(
        cls, action_dim: int, gripper_dims: Sequence[int], *, invert: bool, normalize: bool = False
    ) -> ActionSpec:
        """All dimensions normalised except the named grippers, which follow `normalize` and `invert`."""
        wrong = [d for d in gripper_dims if not 0 <= d < action_dim]
        if wrong:
            raise UserError(
                f"gripper dimension {wrong[0]} does not exist: dimensions are 0..{action_dim - 1}"
            )
        gripper = DimensionSpec(normalize=normalize, gripper=True, invert=invert)
        arm = DimensionSpec(normalize=True)
        return cls(tuple(gripper if d in gripper_dims else arm for d in range(action_dim)))

    @property
    def dim(self) -> int:
        """Action dimensions, D."""
        return len(self.dimensions)

    @property
    def normalize_D(self) -> NDArray[np.bool_]:
        """Which dimensions are scaled by quantiles; the `mask` of the released format."""
        return np.array([d.normalize for d in self.dimensions], dtype=bool)

    @property
    def invert_D(self) -> NDArray[np.bool_]:
        """Which dimensions are inverted."""
        return np.array([d.invert for d in self.dimensions], dtype=bool)

    def to_json(self) -> list[dict[str, bool]]:
        """One object per dimension."""
        return [
            {"normalize": d.normalize, "gripper": d.gripper, "invert": d.invert}
            for d in self.dimensions
        ]

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, bool]]) -> ActionSpec:
        """The inverse of `to_json`."""
        fields = set(DimensionSpec.__dataclass_fields__)
        for row in rows if isinstance(rows, list) else [rows]:
            known = row if isinstance(row, dict) and set(row) <= fields else {}
            if "normalize" not in known or not all(type(v) is bool for v in known.values()):
                raise UserError(
                    "the action spec of the statistics is damaged: every dimension needs normalize, "
                    f"gripper, invert, each true or false; found {repr(row)[:60]}"
                )
        return cls(tuple(DimensionSpec(**row) for row in rows))


@dataclass(frozen=True)
class DatasetStatistics:
    """One entry of `dataset_statistics.json`: what is needed to encode and decode this dataset's actions."""

    key: str
    action: FeatureStatistics
    spec: ActionSpec
    state: FeatureStatistics | None
    num_transitions: int
    num_trajectories: int
    num_bins: int = DEFAULT_NUM_BINS
    """Action bins over the normalised range; a file says it only where it is not the released models' 256."""

    def __post_init__(self) -> None:
        if self.action.dim != self.spec.dim:
            raise UserError(
                f"statistics {self.key!r} have {self.action.dim} action dimensions, the spec {self.spec.dim}"
            )

    def to_json(self) -> dict[str, Any]:
        """{key: entry}. `mask` is what released models read, `spec` is the whole truth."""
        entry: dict[str, Any] = {
            "action": {**self.action.to_json(), "mask": self.spec.normalize_D.tolist()},
            "num_transitions": self.num_transitions,
            "num_trajectories": self.num_trajectories,
            "spec": self.spec.to_json(),
        }
        if self.state is not None:
            entry["proprio"] = self.state.to_json()
        if self.num_bins != DEFAULT_NUM_BINS:
            entry["num_bins"] = self.num_bins
        return {self.key: entry}

    @classmethod
    def from_json(cls, obj: Mapping[str, Any], key: str | None = None) -> DatasetStatistics:
        """Read one entry. A file without our `spec` gets its `mask`, inverted as the 7-D default is."""
        if not isinstance(obj, Mapping):
            raise UserError("statistics must be an object {dataset key: entry}")
        name = resolve_key(list(obj), key)
        entry = obj[name]
        if not isinstance(entry, Mapping) or not isinstance(entry.get("action"), Mapping):
            raise UserError(f"the statistics entry {name!r} has no object `action`")
        action = FeatureStatistics.from_json(entry["action"])
        mask = _mask(entry["action"].get("mask"), action.dim)
        spec = ActionSpec.from_json(entry["spec"]) if "spec" in entry else None
        if spec is not None and mask is not None and mask != spec.normalize_D.tolist():
            raise UserError(f"the statistics entry {name!r} has a mask and a spec that contradict")
        spec = spec or _spec_of_mask(mask, action.dim)
        state = entry.get("proprio")
        return cls(
            key=name,
            action=action,
            spec=spec,
            state=None if state is None else FeatureStatistics.from_json(state),
            num_transitions=_count(entry, "num_transitions"),
            num_trajectories=_count(entry, "num_trajectories"),
            num_bins=bins_of(entry),
        )

    def sha256(self) -> str:
        """Hash of the content; equal for equal values whatever order they arrived in."""
        return canonical_sha256(self.to_json())


def check_released_entry(entry: object, name: str) -> None:
    """Raises `UserError` where `entry` of a released `norm_stats` cannot say what an action is in a robot's units."""
    action = entry.get("action") if isinstance(entry, Mapping) else None
    if not isinstance(action, Mapping) or not {"q01", "q99"} <= action.keys():
        raise UserError(
            f"the statistics entry {name!r} has no action.q01 and action.q99, so actions cannot be "
            "un-normalised. Give a dataset_statistics.json or a released norm_stats file."
        )
    low, high, mask = (*(list(action[n]) if isinstance(action[n], tuple) else action[n] for n in ("q01", "q99")),
                       action.get("mask"))  # fmt: skip
    if not _are_finite(low) or not _are_finite(high):
        raise UserError(f"the statistics entry {name!r} holds values that are no finite numbers")
    if len(low) != len(high) or (mask is not None and not _are_flags(mask, len(low))):
        raise UserError(
            f"the statistics entry {name!r} has lists of different lengths, or a mask that is not of true and false"
        )
    if any(a > b for a, b in zip(low, high, strict=True)):
        raise UserError(f"the statistics entry {name!r} has a q01 above its q99: it is damaged")
    if isinstance(entry, Mapping):
        bins_of(entry)


def _are_finite(values: object) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(type(v) in (int, float) and abs(v) <= LARGEST for v in values)
    )


def _are_flags(values: object, count: int) -> bool:
    flags = isinstance(values, list | tuple) and all(type(v) is bool for v in values)
    return flags and len(values) == count  # type: ignore[arg-type]


def bins_of(entry: Mapping[str, Any]) -> int:
    """Action bins of an entry of a statistics file; 256 where it does not say."""
    found = entry.get("num_bins", DEFAULT_NUM_BINS)
    if not isinstance(found, int) or isinstance(found, bool) or not 2 <= found <= MAX_NUM_BINS:
        raise UserError(
            f"the statistics have num_bins {found!r}, not a number from 2 to {MAX_NUM_BINS}"
        )
    return found


def _numbers(name: str, values: object) -> NDArray[np.float32]:
    """[D] finite float32 from a list of numbers; true, text and what float32 cannot hold are refused."""
    if not isinstance(values, list) or not values:
        raise UserError(f"statistics must be lists of numbers; {name} is {repr(values)[:40]}")
    if any(v is None or (isinstance(v, float | int) and not abs(v) <= LARGEST) for v in values):
        raise UserError(f"statistics hold null, NaN or infinite values in {name}")
    wrong = [v for v in values if isinstance(v, bool) or not isinstance(v, int | float)]
    if wrong:
        raise UserError(f"statistics must be lists of numbers; {name} holds {repr(wrong[0])[:40]}")
    rounded = [v for v in values if isinstance(v, int) and int(np.float32(v)) != v]
    if rounded:
        raise UserError(f"{name} holds {rounded[0]}, a whole number that float32 cannot hold")
    return np.asarray(values, dtype=np.float32)


def _mask(mask: object, action_dim: int) -> list[bool] | None:
    if mask is None:
        return None
    if not isinstance(mask, list) or not all(type(m) is bool for m in mask):
        raise UserError(
            f"the mask of statistics must be a list of true and false: {repr(mask)[:60]}"
        )
    if len(mask) != action_dim:
        raise UserError(
            f"the mask of statistics has {len(mask)} entries for {action_dim} dimensions"
        )
    return mask


def _count(entry: Mapping[str, Any], name: str) -> int:
    value = entry.get(name)
    if type(value) is not int or not 0 <= value < 2**63:
        raise UserError(
            f"the statistics have no whole number {name!r}; it is {repr(value)[:40]} in {', '.join(entry)}"
        )
    return value


def _spec_of_mask(mask: list[bool] | None, action_dim: int) -> ActionSpec:
    default = ActionSpec.default(action_dim)
    if mask is None or mask == default.normalize_D.tolist():
        return default
    return ActionSpec(tuple(DimensionSpec(normalize=m) for m in mask))


# Files


def read_entries(path: Path) -> dict[str, Any]:
    """The entries {dataset key: entry} of a statistics file, not looked into. Raises `UserError` without one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the statistics {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold an object {{dataset key: statistics}}.")
    return content


def read_statistics(path: Path, key: str | None = None) -> DatasetStatistics:
    """One entry of a `dataset_statistics.json`; `key` may be left out where there is only one."""
    entries = read_entries(path)
    try:
        return DatasetStatistics.from_json(entries, key)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


# Computing


def feature_statistics(values_ND: NDArray[np.floating]) -> FeatureStatistics:
    """Exact statistics of N >= 1 finite rows; any permutation of the rows gives the same bits."""
    return column_statistics(np.array(column, np.float32) for column in np.asarray(values_ND).T)


def column_statistics(columns_DN: Iterable[NDArray[np.float32]]) -> FeatureStatistics:
    """The same from one array of N >= 1 finite values per dimension, one at a time; each is sorted in place.

    A column may be a writable memory map, so that no more than the operating system likes is in memory.
    """
    found: dict[str, list[Any]] = {name: [] for name in FEATURE_FIELDS}
    for column_N in columns_DN:
        if len(column_N) == 0:
            raise ValueError("statistics need at least one row")
        column_N += np.float32(0)  # -0.0 becomes 0.0, which sorting would leave in arrival order
        column_N.sort()
        mean = np.mean(column_N, dtype=np.float64)
        found["mean"].append(mean)
        found["std"].append(np.sqrt(np.mean(np.square(column_N.astype(np.float64) - mean))))
        found["min"].append(column_N[0])
        found["max"].append(column_N[-1])
        found["q01"].append(sorted_quantile(column_N, 0.01))
        found["q99"].append(sorted_quantile(column_N, 0.99))
    return FeatureStatistics(**{k: np.array(v).astype(np.float32) for k, v in found.items()})


def sorted_quantile(sorted_N: NDArray[np.float32], q: float) -> np.float32:
    """Linear-interpolation quantile of sorted values, in float32 throughout as the released statistics are.

    Equal to `np.quantile(values, np.float32(q))`; spelled out because numpy versions disagree on the
    precision of a Python float q.
    """
    last = np.float32(len(sorted_N) - 1)
    position = np.float32(q) * last
    low = min(int(position), len(sorted_N) - 1)
    high = min(low + 1, len(sorted_N) - 1)
    fraction = position - np.float32(low)
    below, above = sorted_N[low], sorted_N[high]
    if fraction >= 0.5:
        return np.float32(above - (above - below) * (np.float32(1) - fraction))
    return np.float32(below + (above - below) * fraction)


def canonical_sha256(obj: object) -> str:
    """Hash of a JSON value that does not depend on key order or white space."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def resolve_key(keys: Sequence[str], requested: str | None) -> str:
    """The entry to use: the one asked for, or the only one there is. Raises UserError otherwise."""
    if requested is not None:
        if requested in keys:
            return requested
        raise UserError(
            f"the statistics have no key {requested!r}. Keys: {', '.join(sorted(keys)) or 'none'}."
        )
    if len(keys) == 1:
        return keys[0]
    if not keys:
        raise UserError("the statistics are empty: there is not one dataset in them.")
    raise UserError(
        "the statistics hold several keys, and each un-normalises differently: choose one with "
        f"--unnorm-key. Keys: {', '.join(sorted(keys)) or 'none'}."
    )
