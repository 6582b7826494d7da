"""A finished output as a `torch.utils.data.Dataset`: one item is one frame with all of its labels.

For other people's training loops; `molmoact train` reads rows through its own sources.
Letters: H steps of a chunk, D action dimensions, S state dimensions, A arms, P = 5 places for trace points.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.outputs.output import Output
from molmoact_data.outputs.rows import ParquetRows, padded_chunk
from molmoact_data.sources.images import as_rgb


class FrameDataset(Dataset):
    """Row number -> a dict that `torch.utils.data.default_collate` can batch; in the order of the shards.

    Keys, each only where the output has the column:
    `image_<role>` uint8 [3, height, width]; `instruction` str; `depth_codes` int64 [100];
    `buffer_codes` int64 [100] and `depth_updated_mask` bool [100];
    `trace` int64 [A, P, 2] on 0..255, x right and y down, with `trace_points` int64 [A] of them real (0 = no usable
    trace); `action` float32 [H, D] as recorded from this frame on, `action_is_pad` bool [H] true behind the episode's
    end; `action_bins` int64 [H, D] 1..256; `state` float32 [S]; `episode_index`, `frame_index` int.
    """

    def __init__(self, output: Output | str | Path, cameras: Sequence[str] | None = None) -> None:
        """`cameras`: roles to decode, all of them by default. Raises `UserError` for a role that is not there."""
        self.output = output if isinstance(output, Output) else Output.open(output)
        self.layout = self.output.layout
        self.cameras = tuple(self.layout.cameras if cameras is None else cameras)
        unknown = sorted(set(self.cameras) - set(self.layout.cameras))
        if unknown:
            raise UserError(
                f"no camera {unknown[0]!r} in {self.output.storage.root}; it has: "
                f"{', '.join(self.layout.cameras)}."
            )
        self._rows = ParquetRows.of(self.output)
        others = {schema.image_column(r) for r in set(self.layout.cameras) - set(self.cameras)}
        self._columns = [n for n in self.layout.arrow_schema().names if n not in others]

    def __len__(self) -> int:
        return self._rows.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        values = self._rows.read(index, self._columns)
        item: dict[str, Any] = {
            schema.INSTRUCTION: values[schema.INSTRUCTION],
            schema.EPISODE_INDEX: values[schema.EPISODE_INDEX],
            schema.FRAME_INDEX: values[schema.FRAME_INDEX],
        }
        for role in self.cameras:
            column = schema.image_column(role)
            item[column] = _decoded(values[column]["bytes"])
        if self.layout.depth_codes is not None:
            item[schema.DEPTH_CODES] = torch.tensor(values[schema.DEPTH_CODES])
        if self.layout.depth_buffer:
            for name in (schema.BUFFER_CODES, schema.DEPTH_UPDATED_MASK):
                item[name] = torch.tensor(values[name])
        if self.layout.num_arms is not None:
            item |= _trace(values)
        if self.layout.action_dim is not None:
            item |= self._actions(index, values)
        if self.layout.state_dim is not None:
            item[schema.STATE] = torch.tensor(values[schema.STATE], dtype=torch.float32)
        return item

    def _actions(self, index: int, values: Mapping[str, Any]) -> dict[str, Tensor]:
        valid, steps = values[schema.NUM_VALID_ACTIONS], self.layout.action_chunk_size
        following = self._rows.read_column(index, valid, schema.ACTION, self._columns)
        return {
            schema.ACTION: torch.from_numpy(padded_chunk(following, steps)),
            "action_is_pad": torch.arange(steps) >= valid,
            schema.ACTION_BINS: torch.tensor(values[schema.ACTION_BINS]),
        }


def _decoded(encoded: bytes) -> Tensor:
    rgb_HWC = np.array(as_rgb(Image.open(io.BytesIO(encoded))))
    return torch.from_numpy(rgb_HWC).permute(2, 0, 1).contiguous()


def _trace(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Padded points and how many are real."""
    arms = values[schema.TRACE] or []
    points = torch.zeros(len(arms), schema.TRACE_MAX_POINTS, 2, dtype=torch.int64)
    for row, arm in zip(points, arms, strict=True):
        if arm:
            row[: len(arm)] = torch.tensor(arm)
    return {schema.TRACE: points, "trace_points": torch.tensor([len(arm) for arm in arms])}
