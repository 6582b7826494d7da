"""Which objects, of which colours, and where on the table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from molmoact_robot.tabletop.objects import CLUTTER, GRASPABLE, KINDS, Placed
from molmoact_robot.tabletop.randomization import COLOURS, Split, jitter

_WORK_AREA_M = ((-0.16, 0.14), (-0.24, 0.24))
_CLUTTER_AREA_M = ((-0.30, 0.10), (0.34, 0.52))
_MARGIN_M = 0.03
_ATTEMPTS = 400


def sample_layout(
    rng: np.random.Generator, split: Split, kinds: Sequence[str], *, clutter: int = 0
) -> list[Placed]:
    """`kinds` in the work area, each of its own colour, then `clutter` upright things at the sides."""
    palette = COLOURS[split]
    names = [str(n) for n in rng.permutation(list(palette))]
    kinds = [*kinds, *(str(k) for k in rng.choice(CLUTTER, clutter))]
    placed: list[Placed] = []
    for number, kind in enumerate(kinds):
        colour = names[number % len(names)]
        period = KINDS[kind].yaw_period_rad or 2 * np.pi
        placed.append(
            Placed(
                name=f"object_{number}",
                kind=kind,
                colour=colour,
                rgb=jitter(rng, palette[colour], 0.04),
                xy_m=_free_spot(rng, kind, placed),
                yaw_rad=float(rng.uniform(-period / 2, period / 2)),
            )
        )
    return placed


def sample_distractors(rng: np.random.Generator) -> list[str]:
    return [str(k) for k in rng.choice(GRASPABLE, int(rng.integers(1, 4)))]


def _free_spot(
    rng: np.random.Generator, kind: str, placed: Sequence[Placed]
) -> tuple[float, float]:
    (x0, x1), (y0, y1) = _CLUTTER_AREA_M if kind in CLUTTER else _WORK_AREA_M
    for _ in range(_ATTEMPTS):
        xy = rng.uniform((x0, y0), (x1, y1))
        if kind in CLUTTER and rng.random() < 0.5:
            xy[1] = -xy[1]
        gaps = [
            np.hypot(*(xy - p.xy_m)) - KINDS[p.kind].footprint_m - KINDS[kind].footprint_m
            for p in placed
        ]
        if all(gap > _MARGIN_M for gap in gaps):
            return float(xy[0]), float(xy[1])
    raise ValueError(f"no free spot for a {kind} among {len(placed)} objects")
