"""The two examples of the golden MolmoAct2 batch as outputs of preprocessing: one recording of twelve steps each."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from golden_molmoact2 import FOLDER, TINY, arrays
from made_outputs import CAMERAS, DotSource, source_statistics, write_output
from PIL import Image

from molmoact_data.sources.base import CameraBatch, EpisodeColumns, EpisodeRef


@dataclass(frozen=True)
class GoldenChunk(DotSource):
    """Every frame is the example's pictures and state; the actions from the first one on are its chunk."""

    example: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "info", replace(self.info, state_dim=8))

    def read_columns(self, ref: EpisodeRef, extra: Sequence[str] = ()) -> EpisodeColumns:
        golden = arrays("training_sample.npz")
        task = json.loads((FOLDER / "training_sample.json").read_text())["tasks"][self.example]
        state = raw(golden["state_normalised"][self.example], "state_stats")
        return replace(
            super().read_columns(ref),
            instructions=(task,) * ref.num_frames,
            action=raw(golden["actions_normalised"][self.example], "action_stats"),
            state=np.repeat(state[None], ref.num_frames, axis=0),
        )

    def iter_frames(
        self, ref: EpisodeRef, camera_keys: Sequence[str], batch_size: int
    ) -> Iterator[dict[str, CameraBatch]]:
        for start in range(0, ref.num_frames, batch_size):
            count = min(batch_size, ref.num_frames - start)
            yield {
                key: of_picture(arrays("training_sample.npz")[f"image_{n}"][self.example], count)
                for n, key in enumerate(CAMERAS.values())
                if key in camera_keys
            }


def raw(normalised: np.ndarray, which: str) -> np.ndarray:
    """In the units of the golden checkpoint's `libero`; the inverse of its normalisation."""
    tags = json.loads((TINY / "norm_stats.json").read_text())["metadata_by_tag"]
    stats = {k: np.array(tags["libero"][which][k]) for k in ("q01", "q99", "mask")}
    scaled = (normalised + 1) / 2 * (stats["q99"] - stats["q01"]) + stats["q01"]
    return np.where(stats["mask"], scaled, normalised).astype(np.float32)


def of_picture(rgb: np.ndarray, count: int) -> CameraBatch:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return CameraBatch(np.repeat(rgb[None], count, axis=0), [buffer.getvalue()] * count)


def write_golden_chunks(folder: Path) -> list[Path]:
    """Two outputs; the first row of each holds one golden chunk."""
    written = []
    for n in range(2):
        source = GoldenChunk(lengths=(12,), name=f"golden_{n}", example=n)
        own = source_statistics(source, key=source.name)
        written.append(Path(write_output(folder / source.name, source, own, action_chunk_size=10)))
    return written
