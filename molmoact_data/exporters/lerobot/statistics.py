"""What LeRobot's metadata say of every feature: exact quantiles of numbers, moments of every tenth picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from molmoact_data.outputs.columns import fixed_array
from molmoact_data.outputs.measuring import lerobot_statistics
from molmoact_data.pictures.images import decode_image

IMAGE_STATISTICS_EVERY = 10


class FeatureStatistics:
    """Numbers are kept (4 to 8 bytes each) because quantiles need them; images only as running sums."""

    def __init__(self, features: Mapping[str, Mapping[str, Any]]) -> None:
        numeric = [k for k, v in features.items() if v["dtype"] not in ("image", "video", "string")]
        self._values: dict[str, list[NDArray[Any]]] = {name: [] for name in numeric}
        coloured = {k: v for k, v in features.items() if k not in numeric and v["shape"][-1] == 3}
        self._images = {k: _ImageSums() for k in coloured}
        self._stored = [k for k, v in coloured.items() if v["dtype"] == "image"]
        self._seen = 0

    def add(self, table: pa.Table) -> None:
        """The next rows, with their stored images; frames of videos come by `add_frames`."""
        for name, parts in self._values.items():
            rows = _as_rows(table[name])
            # NaN means "not found": a quantile over the rest is what a normaliser wants.
            finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
            parts.append(rows[finite])
        first = -self._seen % IMAGE_STATISTICS_EVERY
        for name in self._stored:
            for row in range(first, table.num_rows, IMAGE_STATISTICS_EVERY):
                self._images[name].add(decode_image(table[name][row].as_py()["bytes"]))
        self._seen += table.num_rows

    def add_frames(self, camera: str, rgb_THWC: NDArray[np.uint8]) -> None:
        """The frames of one episode's video, uint8."""
        for rgb in rgb_THWC[::IMAGE_STATISTICS_EVERY]:
            self._images[camera].add(rgb)

    def to_json(self) -> dict[str, Any]:
        """Feature -> numbers, as LeRobot stores them; features without rows or frames are left out."""
        values = {name: np.concatenate(parts) for name, parts in self._values.items() if parts}
        numeric = {name: lerobot_statistics(rows) for name, rows in values.items() if len(rows)}
        images = {name: sums.to_json() for name, sums in self._images.items() if sums.frames}
        return numeric | images


def _as_rows(column: pa.ChunkedArray) -> NDArray[Any]:
    array = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        return fixed_array(array)
    while pa.types.is_list(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False).reshape(len(column), -1)


class _ImageSums:
    """Per-channel minimum, maximum, mean and deviation of values in 0..1."""

    def __init__(self) -> None:
        self.count = 0
        self.frames = 0
        self.low, self.high = np.full(3, np.inf), np.full(3, -np.inf)
        self.sum, self.square = np.zeros(3), np.zeros(3)

    def add(self, rgb_HWC: NDArray[np.uint8]) -> None:
        pixels = rgb_HWC.reshape(-1, 3).astype(np.float64) / 255
        self.count += len(pixels)
        self.frames += 1
        self.low = np.minimum(self.low, pixels.min(axis=0))
        self.high = np.maximum(self.high, pixels.max(axis=0))
        self.sum += pixels.sum(axis=0)
        self.square += np.square(pixels).sum(axis=0)

    def to_json(self) -> dict[str, Any]:
        mean = self.sum / self.count
        deviation = np.sqrt(np.maximum(self.square / self.count - mean**2, 0))
        values = {"min": self.low, "max": self.high, "mean": mean, "std": deviation}
        return {k: v.reshape(3, 1, 1).tolist() for k, v in values.items()} | {
            "count": [self.frames]
        }
