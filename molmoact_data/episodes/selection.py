"""Which episodes: `0,1,5-9`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from molmoact_data.episodes.base import EpisodeRef
from molmoact_data.errors import UserError

_PART = re.compile(r"(\d+)(?:-(\d+))?")
_SHOWN = 5


def select_episodes(text: str | None, episodes: Sequence[EpisodeRef]) -> list[EpisodeRef]:
    """Episodes named by numbers and inclusive ranges, in the dataset's order; None = all.

    Raises `UserError` for anything else than numbers and ranges, or an episode that does not exist.
    """
    if text is None:
        return list(episodes)
    wanted: set[int] = set()
    for part in text.split(","):
        wanted.update(_range(part.strip(), text))
    chosen = [ref for ref in episodes if ref.episode_index in wanted]
    missing = sorted(wanted - {ref.episode_index for ref in chosen})
    if missing:
        shown = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        known = [ref.episode_index for ref in episodes]
        raise UserError(
            f"--episodes {text}: no episode {shown}; the dataset has {len(known)}, numbered "
            f"{min(known)} to {max(known)}"
        )
    return chosen


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
