"""Statistics of actions and states: exact, and independent of the order in which values arrive.

The file format is the released models' `norm_stats`, plus our per-dimension spec under `spec`, which
readers of the original ignore. Values are float32, as the released numbers are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError

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
        """D."""
        return self.q01.size

    def to_json(self) -> dict[str, list[float]]:
        """Lists of decimal numbers that read back to the same float32."""
        return {name: getattr(self, name).astype(float).tolist() for name in FEATURE_FIELDS}

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> FeatureStatistics:
        """The inverse of `to_json`. Raises UserError when a list is missing or lengths differ."""
        missing = [name for name in FEATURE_FIELDS if name not in obj]
        if missing:
            raise UserError(f"statistics lack {', '.join(missing)}; found {', '.join(obj)}")
        try:
            arrays = {name: np.asarray(obj[name], dtype=np.float32) for name in FEATURE_FIELDS}
        except (TypeError, ValueError) as error:
            raise UserError(f"statistics must be lists of numbers: {error}") from error
        wrong = [name for name, array in arrays.items() if not np.isfinite(array).all()]
        if wrong:
            raise UserError(f"statistics hold null, NaN or infinite values in {', '.join(wrong)}")
        if not (arrays["q01"].shape == arrays["q99"].shape and arrays["q01"].ndim == 1):
            raise UserError("statistics lists differ in length: the file is damaged")
        if (arrays["q01"] > arrays["q99"]).any():
            raise UserError("statistics have a q01 above its q99: the file is damaged")
        if len({array.shape for array in arrays.values()}) != 1:
            raise UserError("statistics lists differ in length: the file is damaged")
        return cls(**arrays)


def feature_statistics(values_ND: NDArray[np.floating]) -> FeatureStatistics:
    """Exact statistics of N >= 1 finite rows; any permutation of the rows gives the same bits."""
    if len(values_ND) == 0:
        raise ValueError("statistics need at least one row")
    # Adding zero turns -0.0 into 0.0, which sorting would leave in arrival order.
    sorted_DN = np.sort(np.asarray(values_ND, dtype=np.float32).T + np.float32(0), axis=1)
    mean: NDArray[np.float64] = np.asarray(np.mean(sorted_DN, axis=1, dtype=np.float64))
    spread = np.empty_like(mean)
    for d, row in enumerate(sorted_DN):  # one dimension at a time bounds the float64 copy
        spread[d] = np.sqrt(np.mean(np.square(row.astype(np.float64) - mean[d])))
    return FeatureStatistics(
        mean=mean.astype(np.float32),
        std=spread.astype(np.float32),
        min=sorted_DN[:, 0].copy(),
        max=sorted_DN[:, -1].copy(),
        q01=sorted_quantile(sorted_DN, 0.01),
        q99=sorted_quantile(sorted_DN, 0.99),
    )


def sorted_quantile(sorted_DN: NDArray[np.float32], q: float) -> NDArray[np.float32]:
    """Linear-interpolation quantile of sorted rows, in float32 throughout as the released statistics are.

    Equal to `np.quantile(values, np.float32(q))`; spelled out because numpy versions disagree on the
    precision of a Python float q.
    """
    last = np.float32(sorted_DN.shape[1] - 1)
    position = np.float32(q) * last
    low = min(int(position), sorted_DN.shape[1] - 1)
    high = min(low + 1, sorted_DN.shape[1] - 1)
    fraction = position - np.float32(low)
    below, above = sorted_DN[:, low], sorted_DN[:, high]
    if fraction >= 0.5:
        return above - (above - below) * (np.float32(1) - fraction)
    return below + (above - below) * fraction


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
