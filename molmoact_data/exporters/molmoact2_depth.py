"""`--format molmoact2-depth`: the adaptive-depth companion that MolmoAct2 reads beside a dataset.

A LeRobot v3.0 dataset with the source's rows and metadata, its videos linked, and three more columns per
frame: the codes, a buffer of codes that only follows where the picture changed, and the mask of what was
updated. v3.0 sources keep their files; v2.x and RLDS become v3.0. An output that has the buffer
(`preprocess --depth-buffer`) gives it; of another one frames are compared as they are decoded, one batch in memory.

T frames, G = 100 cells of a 10x10 grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.exporters.companion import (
    CODES,
    FRAMES_PER_BATCH,
    CompanionColumns,
    convert_to_v3,
    extend_v3,
)
from molmoact_data.labels.depth_memory import (
    CELL,
    CHANGE_RULES,
    COSINE_THRESHOLD,
    BufferedCodes,
    DepthMemory,
    buffered,
    grid_side,
)
from molmoact_data.outputs.columns import fixed_array
from molmoact_data.outputs.output import Output
from molmoact_data.sources.base import EpisodeRef, EpisodeSource
from molmoact_data.sources.opening import open_source, path_and_split


def export_depth_companion(
    output: Output, source_path: str, folder: Path, threshold: float | None
) -> int:
    """Write the companion of the source; returns its number of rows.

    With a `threshold` frames are compared anew; None = the buffer that the output has, where it has one.
    """
    if not Path(path_and_split(source_path)[0]).is_dir():
        raise UserError(
            f"a companion links the videos of its dataset, so that must be a local folder; {source_path!r} "
            "is none. Copy the dataset here and give its folder as --dataset-path."
        )
    source = open_source(source_path)
    labels = StoredCodes(output, source)
    camera = output.manifest.cameras[output.layout.cameras[0]]
    below = COSINE_THRESHOLD if threshold is None else threshold
    stream: _Columns
    if output.layout.depth_buffer and threshold is None:
        stream, rule = _Stored(labels), str(output.labels["depth_buffer"])
    else:
        stream, rule = _Compared(source, labels, camera, below), "original"
    extra = {"depth_vae": depth_vae_block(output, camera, below, rule)}
    if source.info.format == "lerobot-v3.0":
        return extend_v3(Path(source_path), folder, stream.episode, extra)
    cameras = set(output.manifest.cameras.values())
    return convert_to_v3(source, folder, stream.episode, extra, cameras)


def depth_vae_block(output: Output, camera: str, threshold: float, rule: str) -> dict[str, Any]:
    """The block of `info.json` that MolmoAct2's loader reads; `change_rule` and `depth_scaling` are ours."""
    side = grid_side(CODES)
    return {
        "vae_image_size": side * CELL,
        "patch_size": CELL,
        "grid_h": side,
        "grid_w": side,
        "num_tokens": output.layout.codebook_size,
        "cosine_threshold": threshold,
        "depth_encoder": output.labels["depth_encoder"],
        "depth_input_size": 518,
        "image_key": camera,
        "change_rule": rule,
        "depth_scaling": output.manifest.depth_scaling,
    }


class StoredCodes:
    """Depth codes of the output by episode, in memory: 200 bytes a frame, 600 with the buffer."""

    def __init__(self, output: Output, source: EpisodeSource) -> None:
        if output.layout.depth_codes != CODES:
            raise UserError(
                f"{output.storage.root} has no 10x10 depth codes; run `molmoact preprocess` with --depth."
            )
        names = [schema.DEPTH_CODES]
        if output.layout.depth_buffer:
            names += [schema.BUFFER_CODES, schema.DEPTH_UPDATED_MASK]
        self._columns: dict[int, list[list[NDArray[Any]]]] = {}
        for batch in output.batches([schema.EPISODE_INDEX, *names], 4096):
            episodes = batch.column(0).to_numpy()
            columns = [fixed_array(batch.column(name)).astype(np.int16) for name in names]
            for episode in np.unique(episodes):
                parts = [column[episodes == episode] for column in columns]
                self._columns.setdefault(int(episode), []).append(parts)
        missing = [r.episode_index for r in source.episodes if r.episode_index not in self._columns]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(source.episodes)} episodes of {source.info.name} are not in "
                f"{output.storage.root} (first: {missing[0]}); a companion needs the codes of every row. "
                "Preprocess all episodes, or export from a dataset without the rejected ones."
            )

    def episode(self, ref: EpisodeRef) -> list[NDArray[np.integer]]:
        """int16 [T, 100]: codes and, where the output has them, buffer and mask."""
        columns = zip(*self._columns[ref.episode_index], strict=True)
        return [np.concatenate(parts) for parts in columns]


class _Columns(Protocol):
    def episode(self, ref: EpisodeRef) -> Iterator[CompanionColumns]:
        """The columns of one episode, in batches."""
        ...


@dataclass(frozen=True)
class _Stored:
    """Columns that the output has; no frame is decoded."""

    labels: StoredCodes

    def episode(self, ref: EpisodeRef) -> Iterator[CompanionColumns]:
        codes_TG, buffer_TG, updated_TG = self.labels.episode(ref)
        if len(codes_TG) != ref.num_frames:
            raise _other_revision(ref)
        for start in range(0, ref.num_frames, FRAMES_PER_BATCH):
            rows = slice(start, start + FRAMES_PER_BATCH)
            kept = BufferedCodes(buffer_TG[rows].astype(np.int64), updated_TG[rows].astype(bool))
            yield CompanionColumns(codes_TG[rows], kept)


@dataclass(frozen=True)
class _Compared:
    """Columns from the frames, which are decoded once and forgotten, as the original's annotation makes them."""

    source: EpisodeSource
    labels: StoredCodes
    camera: str
    threshold: float

    def episode(self, ref: EpisodeRef) -> Iterator[CompanionColumns]:
        rule, start = CHANGE_RULES["original"], 0
        memory = DepthMemory(rule.labels_resize, rule.black_forgets, CODES, self.threshold)
        codes_TG = self.labels.episode(ref)[0]
        for batch in self.source.iter_frames(ref, [self.camera], FRAMES_PER_BATCH):
            rgb_NHWC = batch[self.camera].rgb_NHWC
            part = codes_TG[start : start + len(rgb_NHWC)]
            if len(part) != len(rgb_NHWC):
                raise _other_revision(ref)
            yield CompanionColumns(part, buffered(memory, rgb_NHWC, part))
            start += len(rgb_NHWC)


def _other_revision(ref: EpisodeRef) -> UserError:
    return UserError(
        f"episode {ref.episode_index} has not as many frames as the output has rows: it was made from another "
        "revision of the dataset."
    )
