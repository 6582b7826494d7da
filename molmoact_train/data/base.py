"""What stands between the data and a network: rows, samples, batches, and what turns one into the next.

Rows come from a source and know nothing of any network. An `Encoder` belongs to one checkpoint of one family.
Letters: H steps of a chunk, D action dimensions, S state dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from molmoact_data.statistics import DatasetStatistics
from molmoact_data.text.annotations import Annotation

Part = Literal["depth", "trace", "action", "state"]
"""What a row of ours may be labelled with."""


@dataclass(frozen=True)
class RobotRow:
    """One frame of our record, as training needs it; None = the record or this frame has no such label."""

    where: str
    """Dataset, episode and frame, for messages."""
    images: tuple[bytes, ...]
    """Encoded RGB per camera; labels belong to the first."""
    instruction: str
    depth_codes: tuple[int, ...] | None
    """Codebook ids, row-major."""
    traces: list[list[list[int]]] | None
    """Per arm [x, y] points of 0..255; None where there is no usable trace."""
    action_bins: NDArray[np.int16] | None
    """[H, D] bins 1..256."""
    actions_HD: NDArray[np.float32] | None = None
    """[H, D] as recorded, from this frame on; steps behind the episode's end repeat its last action."""
    num_valid: int = 0
    """Steps of the chunk that lie within the episode, 1..H."""
    state: NDArray[np.float32] | None = None
    """[S] as recorded."""
    buffer_codes: tuple[int, ...] | None = None
    """As `depth_codes`, but a cell whose picture did not change keeps its code."""
    statistics: DatasetStatistics | None = None
    """Of the row's dataset; actions and state are in its units."""

    @property
    def statistics_key(self) -> str | None:
        """The entry of `norm_stats` that this row's numbers belong to."""
        return None if self.statistics is None else self.statistics.key

    @property
    def parts(self) -> frozenset[Part]:
        """The labels it has."""
        found: dict[Part, object] = {
            "depth": self.depth_codes,
            "trace": self.traces,
            "action": self.action_bins,
            "state": self.state,
        }
        return frozenset(part for part, value in found.items() if value is not None)


@dataclass(frozen=True)
class ConversationRow:
    """One row of a published mixture: text is already rendered."""

    where: str
    images: tuple[bytes, ...]
    turns: tuple[tuple[str, str], ...]
    """(question, answer), at least one."""
    trace: list[list[int]] | None
    """To be drawn on the first image."""
    annotations: tuple[Annotation, ...] = ()
    """Of a general set: worded anew at each draw, all of them in one sample; `turns` are then for people."""
    weight: float = 1.0
    """Factor of the loss."""


Row = RobotRow | ConversationRow


class Sample(Protocol):
    """One row as numbers, unpadded."""

    @property
    def position(self) -> int:
        """Place in the stream."""
        ...

    @property
    def num_tokens(self) -> int:
        """What counts against `seq_len` and is similar within a batch."""
        ...


@dataclass(frozen=True)
class TooLong:
    """A sample that does not fit; it is left out of its batch and counted."""

    position: int
    where: str
    num_tokens: int


class Batch(Protocol):
    """Samples of one forward pass."""

    @property
    def positions(self) -> tuple[int, ...]:
        """Places in the stream; empty for a pass that only keeps processes in step."""
        ...

    @property
    def weights(self) -> Mapping[str, float]:
        """What each term of the loss is divided by, over all batches of a step; the main term first."""
        ...

    @property
    def num_tokens(self) -> int:
        """Real tokens."""
        ...

    @property
    def num_padded(self) -> int:
        """Tokens with padding."""
        ...

    def without_loss(self) -> Batch:
        """The same pass, contributing nothing."""
        ...


class Encoder(Protocol):
    """Rows to batches for one checkpoint. Goes to data workers, so it can be pickled."""

    def sample(self, position: int, row: Row, rng: np.random.Generator) -> Sample:
        """The row's sample under the random numbers of its position."""
        ...

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Samples of this encoder, padded to the longest."""
        ...

    def describe(self, row: Row, rng: np.random.Generator) -> dict[str, Any]:
        """The row's sample as people read it: where, kind, images, text."""
        ...
