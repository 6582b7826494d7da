"""Where depth is found: `--data` names a place, its content says what kind of place it is."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.errors import EpisodeRejected, UserError, unknown_name
from molmoact_data.labels.depth import DepthEstimator
from molmoact_data.teachers import registry
from vqvae import data
from vqvae.data import DepthEpisode, DepthKind

logger = logging.getLogger(__name__)

PROCEDURAL = "procedural"
SIMULATOR = "simulator"
_FRAMES_PER_BATCH = 32
_PROCEDURAL_FRAMES = 8


def open_place(
    place: str, kind: DepthKind | Literal["auto"], estimator: DepthEstimator | None, size: int
) -> Iterator[DepthEpisode]:
    """Episodes of one place.

    `procedural[:N[:SEED]]`: N ray-cast scenes of 8 frames (default 64). `simulator[:N[:train|test]]`: N
    independent rendered frames (default 512). Otherwise a folder: our shards (depth from `estimator`), a
    LeRobot dataset with recorded depth, or PNG/npy files.
    """
    name, *arguments = place.split(":")
    if name == PROCEDURAL:
        count, seed = _numbers(place, arguments, (64, 0))
        return data.procedural_episodes(count, _PROCEDURAL_FRAMES, size, seed)
    if name == SIMULATOR:
        split = arguments.pop() if len(arguments) == 2 else "train"
        return simulator_episodes(_numbers(place, arguments, (512,))[0], split)
    return _open_folder(Path(place), kind, estimator)


def _numbers(place: str, arguments: list[str], defaults: tuple[int, ...]) -> list[int]:
    try:
        given = [int(a) for a in arguments]
    except ValueError:
        given = [0] * (len(defaults) + 1)
    if len(given) > len(defaults) or any(n < 0 for n in given):
        raise UserError(
            f"cannot read {place!r}; write for example procedural:64 or simulator:512:test."
        )
    return given + list(defaults[len(given) :])


def _open_folder(
    folder: Path, kind: DepthKind | Literal["auto"], estimator: DepthEstimator | None
) -> Iterator[DepthEpisode]:
    if not folder.is_dir():
        raise UserError(
            f"no folder at {folder}; --data takes folders, 'procedural:N' or 'simulator:N'."
        )
    if (folder / schema.MANIFEST_FILE).is_file():
        return shard_episodes(folder, estimator)
    if (folder / "meta" / "info.json").is_file():
        return dataset_episodes(folder, "metric" if kind == "auto" else kind, estimator)
    if any(folder.rglob("*.png")) or any(folder.rglob("*.npy")):
        return data.folder_episodes(folder, "inverse" if kind == "auto" else kind)
    raise UserError(
        f"{folder} is neither an output of `molmoact preprocess` (no {schema.MANIFEST_FILE}), nor a LeRobot "
        "dataset (no meta/info.json), nor a folder of depth maps (*.png, *.npy)."
    )


def _needs_estimator(folder: Path, estimator: DepthEstimator | None) -> DepthEstimator:
    if estimator is None:
        raise UserError(
            f"{folder} holds images but no depth maps; say which model makes them, for example "
            "--depth-encoder depth-anything-v2 (or --depth-encoder embedded to try things out)."
        )
    return estimator


def shard_episodes(folder: Path, estimator: DepthEstimator | None) -> Iterator[DepthEpisode]:
    """Preprocessed shards: depth recomputed from the first camera's images, one episode at a time."""
    import pyarrow.parquet as pq

    estimator = _needs_estimator(folder, estimator)
    for path in sorted((folder / schema.DATA_DIR).glob("*.parquet")):
        file = pq.ParquetFile(path)
        layout = schema.RecordLayout.from_arrow_schema(file.schema_arrow)
        column = schema.image_column(layout.cameras[0])
        pending: list[NDArray[np.float32]] = []
        current: tuple[str, int] | None = None
        keys = [schema.DATASET, schema.EPISODE_INDEX, column]
        for batch in file.iter_batches(batch_size=_FRAMES_PER_BATCH, columns=keys):
            rows = batch.to_pylist()
            depth = estimator.estimate(np.stack([_decode(row[column]["bytes"]) for row in rows]))
            for row, frame in zip(rows, depth, strict=True):
                owner = (row[schema.DATASET], row[schema.EPISODE_INDEX])
                if current not in (None, owner) and current is not None:
                    yield _from_frames(current, pending)
                    pending = []
                current = owner
                pending.append(frame)
        if current is not None:
            yield _from_frames(current, pending)


def _decode(encoded: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _from_frames(owner: tuple[str, int], frames: list[NDArray[np.float32]]) -> DepthEpisode:
    return DepthEpisode(owner[0], f"episode {owner[1]}", np.stack(frames))


def dataset_episodes(
    folder: Path, kind: DepthKind, estimator: DepthEstimator | None
) -> Iterator[DepthEpisode]:
    """A LeRobot dataset: its recorded depth, or with `estimator` the depth of its first colour camera."""
    from molmoact_data.sources.opening import open_source

    source = open_source(str(folder))
    wanted = [c.key for c in source.info.cameras if c.is_depth == (estimator is None)]
    if not wanted:
        _needs_estimator(folder, estimator)
        raise UserError(f"{folder} has no colour camera to estimate depth from.")
    for ref in source.episodes:
        frames = []
        try:
            for batch in source.iter_frames(ref, wanted[:1], _FRAMES_PER_BATCH):
                pixels = batch[wanted[0]].rgb_NHWC
                if estimator is not None:
                    frames.append(estimator.estimate(pixels))
                else:
                    frames.append(
                        data.metric_to_inverse(pixels)
                        if kind == "metric"
                        else pixels.astype(np.float32)
                    )
        except EpisodeRejected as reason:
            logger.warning("%s episode %d is left out: %s", folder, ref.episode_index, reason)
            continue
        yield DepthEpisode(source.info.name, f"episode {ref.episode_index}", np.concatenate(frames))


def simulator_episodes(count: int, split: str) -> Iterator[DepthEpisode]:
    """Independent frames of the table-top simulator, each an episode of one frame."""
    if split not in ("train", "test"):
        raise unknown_name("split of the simulator", split, ("train", "test"))
    frames = registry.resolve("simulator", SIMULATOR, registry.SIMULATORS)
    for index, frame in enumerate(frames(0, count, split)):
        yield DepthEpisode(
            f"{SIMULATOR}-{split}", f"frame {index}", data.metric_to_inverse(frame.depth_HW[None])
        )
