"""Which columns of a LeRobot dataset are its action and its state, where they are not called so.

`molmoact_mapping.yaml` in the dataset's folder names them, several side by side if need be (docs/sources.md);
without it, the usual names are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from molmoact_data.config import build, load_yaml
from molmoact_data.errors import UserError, unknown_name
from molmoact_data.files.inputs import Folder
from molmoact_data.sources.channels import OWN_MAPPING, Channel

ACTION_COLUMNS = ("action", "actions")
STATE_COLUMNS = ("observation.state", "state", "observation/state")


@dataclass(frozen=True)
class LeRobotMapping:
    """Columns and their order; every one as recorded unless its channel converts it."""

    action: tuple[Channel, ...]
    state: tuple[Channel, ...] = ()

    def __post_init__(self) -> None:
        if not self.action:
            raise ValueError("a mapping needs at least one action channel")

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is needed, once."""
        return tuple(dict.fromkeys(channel.feature for channel in (*self.action, *self.state)))


def read_mapping(folder: Folder) -> LeRobotMapping | None:
    """The dataset's own mapping, if it has one. Raises `UserError`."""
    if not folder.exists(OWN_MAPPING):
        return None
    try:
        return build(LeRobotMapping, load_yaml(folder.fetch(OWN_MAPPING)))
    except UserError as error:
        raise UserError(f"{OWN_MAPPING} of {folder.name!r}: {error}") from error


def choose_mapping(
    own: LeRobotMapping | None,
    numeric_columns: Sequence[str],
    name: str,
    others: Mapping[str, str] = {},
) -> LeRobotMapping:
    """The dataset's own mapping, all of whose columns exist, or the usual names. Raises `UserError`.

    `others`: the columns that hold no numbers, and what they hold.
    """
    if own is not None:
        for column in own.columns:
            if column in others:
                raise UserError(f"{OWN_MAPPING} of {name!r}: {no_numbers(column, others[column])}")
            if column not in numeric_columns:
                raise UserError(
                    f"{OWN_MAPPING} of {name!r}: {unknown_name('column', column, numeric_columns)}"
                )
        return own
    action = next((c for c in ACTION_COLUMNS if c in numeric_columns), None)
    if action is None:
        for column in (c for c in ACTION_COLUMNS if c in others):
            raise UserError(f"dataset {name!r}: {no_numbers(column, others[column])}")
        raise UserError(_no_action(numeric_columns, name))
    state = next((c for c in STATE_COLUMNS if c in numeric_columns), None)
    return LeRobotMapping((Channel(action),), (Channel(state),) if state else ())


def no_numbers(column: str, kind: str) -> str:
    """What is wrong with a column of this type that should hold numbers, and what to do."""
    return (
        f"column {column!r} is {kind}; it must hold one number or a list of numbers per row. Write it as "
        f"list<float>, or the parts as columns of their own that {OWN_MAPPING} names (docs/sources.md)"
    )


def _no_action(numeric_columns: Sequence[str], name: str) -> str:
    parts = [c for c in numeric_columns if "action" in c.lower()] or list(numeric_columns[:2])
    example = ", ".join(f"{{feature: {column}}}" for column in parts)
    how = (
        f"Say which: a line `action: [{example}]` in {OWN_MAPPING} in its folder (docs/sources.md)"
    )
    return (
        f"dataset {name!r} has no action column ({' or '.join(ACTION_COLUMNS)}); its numeric columns are "
        f"{', '.join(numeric_columns) or 'none'}. {how if parts else ''}"
    ).rstrip()
