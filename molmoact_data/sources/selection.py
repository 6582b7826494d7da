"""Which episodes: `0,1,5-9`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

from molmoact_data.errors import UserError
from molmoact_data.sources.base import EpisodeRef

_PART = re.compile(r"(\d+)(?:-(\d+))?")
_SHOWN = 5


def select_episodes(text: str | None, episodes: Sequence[EpisodeRef]) -> list[EpisodeRef]:
    """Episodes named by numbers and inclusive ranges, in the dataset's order; None = all.

    Raises `UserError` for anything else than numbers and ranges, or an episode that does not exist.
    """
    if text is None:
        return list(episodes)
    wanted = chosen_numbers(text, [ref.episode_index for ref in episodes])
    return [ref for ref in episodes if ref.episode_index in wanted]


def chosen_numbers(text: str, known: Sequence[int]) -> set[int]:
    """Those of the known numbers that the text names; raises `UserError` as `select_episodes` does."""
    ranges = [_range(part.strip(), text) for part in text.split(",")]
    missing = _first_missing(ranges, set(known))
    if missing:
        shown = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        raise UserError(
            f"--episodes {text}: no episode {shown}; the dataset has {len(known)}, numbered "
            f"{min(known)} to {max(known)}"
        )
    return {number for number in known if any(number in r for r in ranges)}


def _first_missing(ranges: Sequence[range], known: set[int]) -> list[int]:
    """The first few, without counting through a range that a typing error made endless."""
    missing: set[int] = set()
    for numbers in ranges:
        absent = (number for number in numbers if number not in known)
        missing.update(islice(absent, _SHOWN + 1))
    return sorted(missing)


def _range(part: str, text: str) -> range:
    match = _PART.fullmatch(part)
    if not match:
        raise UserError(
            f"--episodes {text!r}: {part!r} is not a number or a range; write for example 0,1,5-9"
        )
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise UserError(f"--episodes {text!r}: the range {part} runs backwards")
    return range(first, last + 1)
