"""`--format molmoact2-depth`: the adaptive-depth companion that MolmoAct2 reads beside a dataset.

A LeRobot v3.0 dataset with the source's rows and metadata, its videos linked, and three more columns per
frame: the codes, a buffer of codes that only follows where the picture changed, and the mask of what was
updated. v3.0 sources keep their files; v2.x and RLDS become v3.0. Frames are compared as they are decoded,
one batch in memory.

T frames, G = 100 patches of a 10x10 grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.exporters.adaptive_codes import (
    FRAMES_PER_BATCH,
    GRID,
    IMAGE_SIZE,
    PATCH_SIZE,
    AdaptiveBuffer,
    AdaptiveCodes,
)
from molmoact_data.exporters.companion import convert_to_v3, extend_v3
from molmoact_data.outputs.columns import fixed_array
from molmoact_data.outputs.output import Output
from molmoact_data.sources.base import EpisodeRef, EpisodeSource
from molmoact_data.sources.opening import open_source, path_and_split


def export_depth_companion(output: Output, source_path: str, folder: Path, threshold: float) -> int:
    """Write the companion of the source; returns its number of rows. Below `threshold` a patch is new."""
    if not Path(path_and_split(source_path)[0]).is_dir():
        raise UserError(
            f"a companion links the videos of its dataset, so that must be a local folder; {source_path!r} "
            "is none. Copy the dataset here and give its folder as --dataset-path."
        )
    source = open_source(source_path)
    labels = StoredCodes(output, source)
    camera = output.manifest.cameras[output.layout.cameras[0]]
    stream = _Stream(source, labels, camera, threshold)
    extra = {"depth_vae": depth_vae_block(output, camera, threshold)}
    if source.info.format == "lerobot-v3.0":
        return extend_v3(Path(source_path), folder, stream.episode, extra)
    cameras = set(output.manifest.cameras.values())
    return convert_to_v3(source, folder, stream.episode, extra, cameras)


def depth_vae_block(output: Output, camera: str, threshold: float) -> dict[str, Any]:
    """The block of `info.json` that MolmoAct2's loader reads."""
    return {
        "vae_image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "grid_h": GRID,
        "grid_w": GRID,
        "num_tokens": output.layout.codebook_size,
        "cosine_threshold": threshold,
        "depth_encoder": output.labels["depth_encoder"],
        "depth_input_size": 518,
        "image_key": camera,
    }


class StoredCodes:
    """Depth codes of the output by episode, in memory: 100 bytes a frame."""

    def __init__(self, output: Output, source: EpisodeSource) -> None:
        if output.layout.depth_codes != GRID**2:
            raise UserError(
                f"{output.storage.root} has no 10x10 depth codes; run `molmoact preprocess` with --depth."
            )
        self._codes: dict[int, list[NDArray[np.integer]]] = {}
        for batch in output.batches([schema.EPISODE_INDEX, schema.DEPTH_CODES], 4096):
            episodes = batch.column(0).to_numpy()
            codes_TG = fixed_array(batch.column(1)).astype(np.uint8)
            for episode in np.unique(episodes):
                self._codes.setdefault(int(episode), []).append(codes_TG[episodes == episode])
        missing = [r.episode_index for r in source.episodes if r.episode_index not in self._codes]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(source.episodes)} episodes of {source.info.name} are not in "
                f"{output.storage.root} (first: {missing[0]}); a companion needs the codes of every row. "
                "Preprocess all episodes, or export from a dataset without the rejected ones."
            )

    def episode(self, ref: EpisodeRef) -> NDArray[np.integer]:
        """uint8 [T, 100]."""
        return np.concatenate(self._codes[ref.episode_index])


@dataclass(frozen=True)
class _Stream:
    source: EpisodeSource
    labels: StoredCodes
    camera: str
    threshold: float

    def episode(self, ref: EpisodeRef) -> Iterator[AdaptiveCodes]:
        """The columns of one episode, in batches; frames are decoded once and forgotten."""
        codes_TG, buffer, start = self.labels.episode(ref), AdaptiveBuffer(self.threshold), 0
        for batch in self.source.iter_frames(ref, [self.camera], FRAMES_PER_BATCH):
            rgb_NHWC = batch[self.camera].rgb_NHWC
            part = codes_TG[start : start + len(rgb_NHWC)]
            if len(part) != len(rgb_NHWC):
                raise UserError(
                    f"episode {ref.episode_index} has more frames than the output has rows: it was made "
                    "from another revision of the dataset."
                )
            yield buffer.push(rgb_NHWC, part)
            start += len(rgb_NHWC)
