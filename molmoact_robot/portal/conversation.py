"""What the portal knows between two clicks, and what it asks the model. No page in here.

Points are on the 0..255 grid of the first picture, x right, y down, whatever the size it is shown at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from molmoact_data.errors import UserError
from molmoact_data.labels.traces import GRID_MAX
from molmoact_data.pictures.overlay import POINT_RGB, draw_dot, draw_trace
from molmoact_data.policies import ActionChunk, Observation, Policy
from molmoact_data.schema import TRACE_MAX_POINTS
from molmoact_data.sources.images import as_rgb

Rgb = NDArray[np.uint8]
Point = tuple[int, int]


@dataclass(frozen=True)
class Table:
    """The pictures of one moment, external camera first, and the points drawn on the first."""

    pictures: tuple[Rgb, ...] = ()
    clicks: tuple[tuple[float, Point], ...] = ()
    """When the browser saw it, and where; in the order of time, which is not that of arrival."""

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(point for _, point in self.clicks)

    def with_picture(self, rgb_HWC: Rgb, budget: int) -> Table:
        """One more picture. Raises `UserError` beyond what the model reads."""
        if len(self.pictures) >= budget:
            raise UserError(
                f"this model reads {budget} picture{'s' * (budget > 1)}, and so many are here. Start anew first."
            )
        return replace(self, pictures=(*self.pictures, rgb_HWC))

    def with_upload(self, picture: Image.Image, budget: int) -> Table:
        """One more picture as a visitor gives it. Raises `UserError` beyond 8 bits, too."""
        return self.with_picture(np.array(as_rgb(picture)), budget)

    def with_click(self, column: int, row: int, at: float) -> Table:
        """One more point, from a click in pixels of the first picture; a sixth is not taken.

        `at` is the browser's clock: quick clicks may arrive in another order than they were made.
        """
        if not self.pictures or len(self.clicks) >= TRACE_MAX_POINTS:
            return self
        height, width = self.pictures[0].shape[:2]
        click = (at, to_grid_point(column, row, height, width))
        return replace(self, clicks=tuple(sorted((*self.clicks, click))))

    def drawn(self) -> Rgb | None:
        """The first picture with the points, as the model will see the trace."""
        return draw_points(self.pictures[0], self.points) if self.pictures else None


@dataclass(frozen=True)
class Answers:
    """The model's own answer, and the one that follows the points."""

    free: ActionChunk
    steered: ActionChunk | None

    @property
    def difference_HD(self) -> NDArray[np.float32] | None:
        """Steered minus free; None without steering."""
        return None if self.steered is None else self.steered.actions_HD - self.free.actions_HD


def ask(policy: Policy, table: Table, instruction: str) -> Answers:
    """Free, and steered where there are at least two points. Raises what the policy raises, and `UserError`."""
    if not table.pictures:
        raise UserError("add a picture first: the external camera's view.")
    if not instruction.strip():
        raise UserError("say what the robot is to do.")
    if len(table.points) == 1:
        raise UserError("one point is no path: click a second one, or clear it.")
    pictures = {f"picture {n}": rgb for n, rgb in enumerate(table.pictures, start=1)}
    observation = Observation(pictures, instruction.strip())
    free = policy.act(observation)
    if not table.points:
        return Answers(free, None)
    return Answers(free, policy.act(observation, trace=[list(p) for p in table.points]))


def to_grid_point(column: int, row: int, height: int, width: int) -> Point:
    """A pixel of a picture -> [x, y] on 0..255."""
    x = round(np.clip(column / max(width - 1, 1), 0, 1) * GRID_MAX)
    y = round(np.clip(row / max(height - 1, 1), 0, 1) * GRID_MAX)
    return int(x), int(y)


def draw_points(rgb_HWC: Rgb, points: Sequence[Point]) -> Rgb:
    """The path as training data draws it, and a dot where it begins."""
    drawn = draw_trace(rgb_HWC, points) if points else rgb_HWC
    return draw_dot(drawn, points[0], POINT_RGB, 4) if points else drawn
