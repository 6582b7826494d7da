"""An episode of an output as a robot would have lived it: what was seen, what was said, and what was done then.

Letters: H steps of a chunk, D action dimensions, P points of a trace.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.outputs.output import EpisodeRows, Output
from molmoact_data.policies import Observation
from molmoact_data.sources.images import as_rgb
from molmoact_data.sources.selection import chosen_numbers


@dataclass(frozen=True)
class RecordedFrame:
    """One moment, and what was recorded from there on."""

    episode: int
    frame: int
    observation: Observation
    actions_HD: NDArray[np.float32]
    """At most the asked steps: fewer at the end of the episode, never padded."""
    trace_P2: NDArray[np.float32] | None
    """The first arm's label, 0..255; None where there is no usable one."""
    depth_codes: NDArray[np.int64] | None


def choose_episodes(output: Output, text: str | None) -> list[EpisodeRows]:
    """Episodes by number (`0,3,5-9`); None = all. Raises `UserError` for one that is not there."""
    episodes = list(output.episodes())
    if text is None:
        return episodes
    wanted = chosen_numbers(text, [episode.index for episode in episodes])
    return [episode for episode in episodes if episode.index in wanted]


def recorded_frames(
    output: Output,
    episode: EpisodeRows,
    *,
    steps: int,
    every: int = 1,
    only: int | None = None,
    cameras: int | None = None,
) -> Iterator[RecordedFrame]:
    """Every `every`-th frame, or the `only` one, with the `steps` actions from it on.

    `cameras`: only the first so many are decoded; None = all.
    """
    if output.layout.action_dim is None:
        raise UserError(f"{output.storage.root} holds no actions, so there is nothing to compare.")
    roles = output.layout.cameras[:cameras]
    images = {role: schema.image_column(role) for role in roles}
    others = [
        c for c in output.layout.arrow_schema().names if not c.startswith(schema.IMAGE_PREFIX)
    ]
    rows = [row for batch in episode.batches(others) for row in batch.to_pylist()]
    actions_TD = np.array([row[schema.ACTION] for row in rows], dtype=np.float32)
    position = 0
    for batch in episode.batches(list(images.values()), 32):
        for i in range(batch.num_rows):
            if position == only or (only is None and position % every == 0):
                pictures = {r: _picture(batch.column(c)[i].as_py()) for r, c in images.items()}
                following = actions_TD[position : position + steps]
                yield _frame(episode.index, rows[position], pictures, following)
            position += 1


def _frame(
    episode: int, row: dict[str, Any], pictures: dict[str, Any], actions_HD: NDArray[np.float32]
) -> RecordedFrame:
    state, codes = row.get(schema.STATE), row.get(schema.DEPTH_CODES)
    return RecordedFrame(
        episode=episode,
        frame=row[schema.FRAME_INDEX],
        observation=Observation(
            images=pictures,
            instruction=row[schema.INSTRUCTION],
            state=None if state is None else np.asarray(state, dtype=np.float32),
            episode=str(episode),
            step=row[schema.FRAME_INDEX],
        ),
        actions_HD=actions_HD,
        trace_P2=_first_trace(row),
        depth_codes=None if codes is None else np.asarray(codes, dtype=np.int64),
    )


def _first_trace(row: dict[str, Any]) -> NDArray[np.float32] | None:
    if row.get(schema.TRACE) is None or row.get(schema.TRACE_REJECT_REASON) is not None:
        return None
    arms: Sequence[Any] = row[schema.TRACE]
    return np.asarray(arms[0], dtype=np.float32) if arms and len(arms[0]) > 1 else None


def _picture(image: dict[str, Any]) -> NDArray[np.uint8]:
    """RGB [height, width, 3]."""
    from PIL import Image

    return np.asarray(as_rgb(Image.open(io.BytesIO(image["bytes"]))))
