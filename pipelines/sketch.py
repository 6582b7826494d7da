"""Quantiles of more numbers than fit in memory, with a stated error; mergeable in any order.

Used only beyond what `statistics.feature_statistics` can hold: that one is exact, this one is not. A KLL
sketch of size k answers a quantile whose rank is off by about 1.3 % (k = 200) or 0.17 % (k = 1600, the
default here) with 99 % confidence. Mean, standard deviation, minimum and maximum are exact up to rounding.
KLL compaction is random, so two runs may differ within the error; exact statistics never do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data.statistics import FeatureStatistics

if TYPE_CHECKING:
    import datasketches

DEFAULT_K = 1600


@dataclass(frozen=True)
class FeatureSketch:
    """The running summary of some rows of a D-dimensional feature; as plain data it can be shipped."""

    count: int
    total_D: NDArray[np.float64]
    total_of_squares_D: NDArray[np.float64]
    kll_D: tuple[bytes, ...]
    """One serialised KLL float sketch per dimension."""

    @property
    def rank_error(self) -> float:
        """With 99 % confidence, no quantile's rank is further off than this share of the rows."""
        return float(_load(self.kll_D[0]).normalized_rank_error(False))  # noqa: FBT003


def sketch_rows(values_ND: NDArray[np.floating], k: int = DEFAULT_K) -> FeatureSketch:
    """Summarise N >= 1 finite rows."""
    from datasketches import kll_floats_sketch

    if len(values_ND) == 0:
        raise ValueError("a sketch needs at least one row")
    values = np.asarray(values_ND, dtype=np.float32)
    sketches = []
    for column in values.T:
        sketch = kll_floats_sketch(k)
        sketch.update(np.ascontiguousarray(column))
        sketches.append(sketch.serialize())
    wide = values.astype(np.float64)
    return FeatureSketch(
        len(values), wide.sum(axis=0), np.square(wide).sum(axis=0), tuple(sketches)
    )


def merge_sketches(parts: Iterable[FeatureSketch]) -> FeatureSketch:
    """The summary of all rows of the parts."""
    parts = list(parts)
    dims = len(parts[0].kll_D)
    merged = [_load(parts[0].kll_D[d]) for d in range(dims)]
    for part in parts[1:]:
        for d in range(dims):
            merged[d].merge(_load(part.kll_D[d]))
    return FeatureSketch(
        count=sum(part.count for part in parts),
        total_D=np.sum([part.total_D for part in parts], axis=0),
        total_of_squares_D=np.sum([part.total_of_squares_D for part in parts], axis=0),
        kll_D=tuple(sketch.serialize() for sketch in merged),
    )


def sketched_statistics(sketch: FeatureSketch) -> FeatureStatistics:
    """The same fields as the exact statistics; q01 and q99 within `rank_error`."""
    sketches = [_load(data) for data in sketch.kll_D]
    mean = sketch.total_D / sketch.count
    variance = np.maximum(sketch.total_of_squares_D / sketch.count - np.square(mean), 0)
    return FeatureStatistics(
        mean=mean.astype(np.float32),
        std=np.sqrt(variance).astype(np.float32),
        min=_each(sketches, lambda s: s.get_min_value()),
        max=_each(sketches, lambda s: s.get_max_value()),
        q01=_each(sketches, lambda s: s.get_quantile(0.01)),
        q99=_each(sketches, lambda s: s.get_quantile(0.99)),
    )


def quantile_table(sketch: FeatureSketch, num_rows: int = 2001) -> NDArray[np.float32]:
    """Evenly spaced quantiles [num_rows, D], smallest and largest value included: the shape of each column."""
    ranks = np.linspace(0, 1, num_rows).tolist()
    return np.array([_load(data).get_quantiles(ranks) for data in sketch.kll_D], np.float32).T


def _each(sketches: list[Any], ask: Any) -> NDArray[np.float32]:
    return np.array([ask(sketch) for sketch in sketches], dtype=np.float32)


def _load(data: bytes) -> datasketches.kll_floats_sketch:
    from datasketches import kll_floats_sketch

    return kll_floats_sketch.deserialize(data)
