"""Exact statistics of any numeric feature, over one or several datasets or outputs, without Beam.

Two products: the action statistics that tokens are made with (`dataset_statistics.json`), and LeRobot's
quantile statistics (`q01 q10 q50 q90 q99`), which LeRobot itself only approximates and merges wrongly.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.errors import EpisodeRejected, UserError
from molmoact_data.files.storage import Storage
from molmoact_data.outputs.columns import fixed_array
from molmoact_data.outputs.output import Output
from molmoact_data.sources.base import EpisodeColumns
from molmoact_data.sources.opening import open_source
from molmoact_data.statistics import ActionSpec, DatasetStatistics, feature_statistics

logger = logging.getLogger(__name__)

LEROBOT_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
EXACT = 2**53
"""Up to here float64 holds every whole number."""
OWN_FEATURES = {"action": schema.ACTION, "observation.state": schema.STATE, "state": schema.STATE}


def lerobot_statistics(values_ND: NDArray[np.generic]) -> dict[str, list[float]]:
    """`min max mean std count` and the five quantiles of N >= 1 rows, as `meta/stats.json` has them.

    Quantiles interpolate linearly between order statistics, in float64; `std` is of the population. Whole
    numbers that float64 cannot hold (nanoseconds since 1970) are measured from their minimum: the spread is
    theirs, and `min` and `max` are whole numbers to the last digit.
    """
    rows_ND = np.asarray(values_ND).reshape(len(values_ND), -1)
    if _beyond_float64(rows_ND):
        return _from_minimum(rows_ND)
    values = rows_ND.astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError("the feature has NaN or infinite values; its quantiles mean nothing.")
    statistics = {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "std": values.std(axis=0),
    }
    statistics.update({k: np.quantile(values, q, axis=0) for k, q in LEROBOT_QUANTILES.items()})
    return {**{k: v.tolist() for k, v in statistics.items()}, "count": [len(values)]}


def _beyond_float64(values: NDArray[Any]) -> bool:
    """True where float64 may round whole numbers."""
    return values.dtype.kind in "iu" and bool(((values < -EXACT) | (values > EXACT)).any())


def _from_minimum(whole_ND: NDArray[Any]) -> dict[str, list[float]]:
    low_D, high_D = whole_ND.min(axis=0), whole_ND.max(axis=0)
    # Unsigned differences are exact: they wrap around as the numbers' own two's complement does.
    above_ND = whole_ND.astype(np.uint64) - low_D.astype(np.uint64)
    spread = lerobot_statistics(above_ND.astype(np.float64))
    moved = {k: (low_D + np.array(spread[k])).tolist() for k in ("mean", *LEROBOT_QUANTILES)}
    return {**spread, **moved, "min": low_D.tolist(), "max": high_D.tolist()}


def _together(parts: Sequence[NDArray[np.generic]], feature: str) -> NDArray[np.generic]:
    """The rows of all parts. Raises `UserError` where those of two cannot be one column."""
    shapes = sorted({part.shape[1:] for part in parts})
    if len(shapes) > 1:
        raise UserError(f"{feature!r} has rows of {shapes[0]} and of {shapes[1]} numbers.")
    rows = np.concatenate(parts)
    rounded = [part for part in parts if rows.dtype.kind == "f" and _beyond_float64(part)]
    if rounded:
        kinds = ", ".join(sorted({str(part.dtype) for part in parts}))
        raise UserError(
            f"{feature!r} is of different types ({kinds}), and its whole numbers are too large to be written "
            "as float64; store the column with one type."
        )
    return rows


def feature_values(path: str, feature: str) -> NDArray[np.generic]:
    """All rows of one numeric feature, [N, ...], of a dataset or of an output."""
    if is_output(path):
        return _output_values(Output.open(path), feature)
    parts = [_column(columns, feature, path) for columns in _good_episodes(path, feature)]
    return _together(parts, feature)


def action_statistics(
    paths: Sequence[str], *, key: str, spec: ActionSpec | None = None
) -> DatasetStatistics:
    """Exact statistics over all rows of all paths together; `spec` None = that of the outputs."""
    actions, states, episodes = [], [], 0
    for path in paths:
        action, state, count = _numbers(path)
        actions.append(action)
        states += [] if state is None else [state]
        episodes += count
    dims = sorted({action.shape[1] for action in actions})
    if len(dims) > 1:
        raise UserError(f"the actions have {dims} dimensions: statistics over them mean nothing.")
    whole = np.concatenate(actions)
    complete = len(states) == len(paths) and len({state.shape[1] for state in states}) == 1
    return DatasetStatistics(
        key=key,
        action=feature_statistics(whole),
        spec=spec or _common_spec(paths, dims[0]),
        state=feature_statistics(np.concatenate(states)) if complete else None,
        num_transitions=len(whole),
        num_trajectories=episodes,
    )


def is_output(path: str) -> bool:
    """True for a finished output of `molmoact preprocess`, False for a dataset."""
    return Storage(path).exists(schema.MANIFEST_FILE)


def _numbers(
    path: str,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, int]:
    """Actions [N, D], states [N, S] where there are some, and the number of episodes."""
    if is_output(path):
        output = Output.open(path)
        state = _output_values(output, schema.STATE) if output.layout.state_dim else None
        return _output_values(output, schema.ACTION), state, output.manifest.counts.episodes
    columns = list(_good_episodes(path))
    states = [c.state for c in columns if c.state is not None]
    return (
        np.concatenate([c.action for c in columns]),
        np.concatenate(states) if states else None,
        len(columns),
    )


def _output_values(output: Output, feature: str) -> NDArray[Any]:
    name = OWN_FEATURES.get(feature, feature)
    stored = output.layout.arrow_schema()
    numeric = [f.name for f in stored if not _is_text_or_image(f.type)]
    if name not in numeric:
        raise UserError(f"{output.storage.root} has no numeric feature {feature!r}; {numeric}.")
    parts = [fixed_array(batch.column(name)) for batch in output.batches([name], 65536)]
    return np.concatenate(parts)


def _is_text_or_image(arrow_type: Any) -> bool:
    import pyarrow as pa

    variable = pa.types.is_list(arrow_type)
    return variable or pa.types.is_string(arrow_type) or pa.types.is_struct(arrow_type)


def _good_episodes(path: str, feature: str | None = None) -> Iterator[EpisodeColumns]:
    """Numeric columns of the usable episodes; the others are counted and said."""
    source = open_source(path)
    standard = feature is None or feature in OWN_FEATURES
    rejected, last = 0, None
    for ref in source.episodes:
        try:
            yield source.read_columns(ref, extra=() if standard else (str(feature),))
        except EpisodeRejected as verdict:
            rejected, last = rejected + 1, verdict
            logger.warning("%s: episode %d is left out: %s", path, ref.episode_index, verdict)
    if rejected == len(source.episodes):
        raise UserError(f"{path} has no usable episode; the last was rejected as {last}.")


def _column(columns: EpisodeColumns, feature: str, path: str) -> NDArray[np.generic]:
    if feature == "action":
        return columns.action
    if feature in OWN_FEATURES:
        if columns.state is None:
            raise UserError(f"{path} has no state.")
        return columns.state
    return columns.extra[feature]


def _common_spec(paths: Sequence[str], action_dim: int) -> ActionSpec:
    specs = [_spec_of(Output.open(path)) for path in paths if is_output(path)]
    known = [spec for spec in specs if spec is not None]
    if not known:
        return ActionSpec.default(action_dim)
    if any(spec != known[0] for spec in known):
        raise UserError(
            "the outputs treat their action dimensions differently (gripper, inversion); give the spec "
            "with --gripper, and check that the grippers of these robots mean the same."
        )
    return known[0]


def _spec_of(output: Output) -> ActionSpec | None:
    return output.statistics.spec if output.statistics else None


def lerobot_statistics_of(
    paths: Sequence[str], features: Sequence[str]
) -> Mapping[str, Mapping[str, list[float]]]:
    """`{feature: statistics}` over all paths together, the content of a `meta/stats.json`."""
    return {
        feature: lerobot_statistics(_together([feature_values(p, feature) for p in paths], feature))
        for feature in features
    }
