"""Numbers of a dataset's features, sliced, converted and put side by side: what a mapping file says of actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

OWN_MAPPING = "molmoact_mapping.yaml"
"""The mapping in the dataset's own folder, of RLDS and LeRobot alike."""
RELATIVE_THRESHOLD = 0.1

Conversion = Literal["as_recorded", "one_minus", "closing_to_open"]


@dataclass(frozen=True)
class Channel:
    """Some numbers of one step feature."""

    feature: str
    """Column (LeRobot), or feature without `steps/` (RLDS), for example `action/world_vector`."""
    start: int = 0
    stop: int | None = None
    """Columns [start, stop) of the flattened feature, counted from 0; None = to its end."""
    convert: Conversion = "as_recorded"
    """`one_minus`: 1 - x. `closing_to_open`: commands +1 close, -1 open, 0 stay -> state, 1 = open."""

    def __post_init__(self) -> None:
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise ValueError(
                f"channel {self.feature!r}: needs 0 <= start < stop, got {self.start} and {self.stop}"
            )


class RoundedNumberError(ValueError):
    """A whole number that float32 cannot hold."""


def as_float32(values: NDArray[np.generic], name: str) -> NDArray[np.float32]:
    """The same numbers in float32; fractions are rounded, beyond its range is infinite.

    Raises `RoundedNumberError` for a whole number that would become another one: it counts something
    (ticks, nanoseconds, an identity), and its neighbour is no approximation of it.
    """
    if values.dtype.kind in "iu" and (wrong := np.argwhere(~_held_by_float32(values))).size:
        place = tuple(int(n) for n in wrong[0])
        raise RoundedNumberError(
            f"column {name!r}, row {place[0]}: {values[place]} is a whole number that float32 cannot hold "
            f"(it would become {int(np.float32(values[place]))}); scale or offset the column, then run again"
        )
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and rejected by who asked
        return values.astype(np.float32)


def _held_by_float32(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a whole number has at most 24 binary digits before its trailing zeros."""
    bits = values.astype(np.uint64)
    size = np.where(values < 0, ~bits + np.uint64(1), bits)
    lowest_bit = np.maximum(size & (~size + np.uint64(1)), np.uint64(1))
    return size // lowest_bit < 2**24


def concatenate(
    channels: Sequence[Channel], values: Mapping[str, NDArray[np.generic]]
) -> NDArray[np.float32]:
    """[T, D] float32 from step features [T, ...], each channel sliced and converted.

    Raises `ValueError` where a feature has fewer numbers than a channel names, `RoundedNumberError`
    where float32 cannot hold one of those.
    """
    parts = []
    for channel in channels:
        feature = np.asarray(values[channel.feature])
        flat = feature.reshape(len(feature), -1)
        if flat.shape[1] <= channel.start or flat.shape[1] < (channel.stop or 0):
            raise ValueError(
                f"{channel.feature!r} has {flat.shape[1]} values, the mapping wants "
                f"{channel.start}..{channel.stop or 'its end'}"
            )
        taken = as_float32(flat[:, channel.start : channel.stop], channel.feature)
        parts.append(convert(taken, channel.convert))
    return np.concatenate(parts, axis=1)


def convert(columns: NDArray[np.float32], how: Conversion) -> NDArray[np.float32]:
    """Apply one convention to [T, d]."""
    if how == "one_minus":
        return 1 - columns
    if how == "closing_to_open":
        return np.stack([_open_state(column) for column in columns.T], axis=1)
    return columns


def _open_state(closing: NDArray[np.float32]) -> NDArray[np.float32]:
    """Commands [T] (+1 close, -1 open, 0 stay) -> gripper state [T], 1 = open.

    Before the first command the gripper is in the opposite state (nobody closes a closed gripper);
    without any command it counts as open.
    """
    command = np.where(
        closing > RELATIVE_THRESHOLD, 0.0, np.where(closing < -RELATIVE_THRESHOLD, 1.0, np.nan)
    )
    given = np.flatnonzero(~np.isnan(command))
    if not len(given):
        return np.ones(len(closing), np.float32)
    last = np.maximum.accumulate(np.where(np.isnan(command), -1, np.arange(len(command))))
    before = 1 - command[given[0]]
    return np.where(last < 0, before, command[last]).astype(np.float32)
