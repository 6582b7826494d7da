"""Where depth is found: `--data` names a place, its content says what kind of place it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.errors import UserError, unknown_name
from molmoact_data.files.storage import Storage
from molmoact_data.labels.depth import DepthEstimator
from molmoact_data.outputs.output import EpisodeRows, Output
from molmoact_data.sources.base import EpisodeRef
from molmoact_data.teachers import registry
from vqvae.depth import data
from vqvae.depth.data import DepthEpisode, DepthKind

PROCEDURAL = "procedural"
SIMULATOR = "simulator"
_FRAMES_PER_BATCH = 32
_PROCEDURAL_FRAMES = 8


def open_place(
    place: str, kind: DepthKind | Literal["auto"], estimator: DepthEstimator | None, size: int
) -> Iterator[DepthEpisode]:
    """Episodes of one place.

    `procedural[:N[:SEED]]`: N ray-cast scenes of 8 frames (default 64). `simulator[:N[:train|test]]`: N
    independent rendered frames (default 512). Otherwise a folder or URL: an output of ours (depth from
    `estimator`), a LeRobot dataset with recorded depth, or a local folder of PNG/npy files.
    """
    name, *arguments = place.split(":")
    if name == PROCEDURAL:
        count, seed = _numbers(place, arguments, (64, 0))
        return data.procedural_episodes(count, _PROCEDURAL_FRAMES, size, seed)
    if name == SIMULATOR:
        split = arguments.pop() if len(arguments) == 2 else "train"
        return simulator_episodes(_numbers(place, arguments, (512,))[0], split)
    if Storage(place).is_remote:
        return _open_url(place, kind, estimator)
    return _open_folder(Path(place), kind, estimator)


def check_place(place: str) -> None:
    """Raises `UserError` for a folder that is not there; what is in it is looked at when it is opened."""
    made = place.partition(":")[0] in (PROCEDURAL, SIMULATOR)
    if not made and not Storage(place).is_remote and not Path(place).is_dir():
        raise UserError(
            f"no folder at {place}; --data takes folders, 'procedural:N' or 'simulator:N'."
        )


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


def _open_url(
    url: str, kind: DepthKind | Literal["auto"], estimator: DepthEstimator | None
) -> Iterator[DepthEpisode]:
    if Storage(url).exists(schema.MANIFEST_FILE):
        return shard_episodes(url, estimator)
    return dataset_episodes(url, "metric" if kind == "auto" else kind, estimator)


def _open_folder(
    folder: Path, kind: DepthKind | Literal["auto"], estimator: DepthEstimator | None
) -> Iterator[DepthEpisode]:
    check_place(str(folder))
    if (folder / schema.MANIFEST_FILE).is_file():
        return shard_episodes(str(folder), estimator)
    if (folder / "meta" / "info.json").is_file():
        return dataset_episodes(str(folder), "metric" if kind == "auto" else kind, estimator)
    if any(folder.rglob("*.png")) or any(folder.rglob("*.npy")):
        return data.folder_episodes(folder, "inverse" if kind == "auto" else kind)
    raise UserError(
        f"{folder} is neither an output of `molmoact preprocess` (no {schema.MANIFEST_FILE}), nor a LeRobot "
        "dataset (no meta/info.json), nor a folder of depth maps (*.png, *.npy)."
    )


def _needs_estimator(root: str, estimator: DepthEstimator | None) -> DepthEstimator:
    if estimator is None:
        raise UserError(
            f"{root} holds images but no depth maps; say which model makes them, for example "
            "--depth-encoder depth-anything-v2 (or --depth-encoder embedded to try things out)."
        )
    return estimator


def shard_episodes(root: str, estimator: DepthEstimator | None) -> Iterator[DepthEpisode]:
    """An output of ours, local or not: depth estimated from the first camera's images."""
    estimate = _needs_estimator(root, estimator).estimate
    output = Output.open(root)
    column = schema.image_column(output.layout.cameras[0])
    for episode in output.episodes():
        yield DepthEpisode(
            episode.dataset,
            f"episode {episode.index}",
            partial(_estimated, episode, column, estimate),
        )


def _estimated(
    episode: EpisodeRows, column: str, estimate: Callable[[Any], NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    from molmoact_data.pictures.images import decode_image

    for batch in episode.batches([column], _FRAMES_PER_BATCH):
        pictures = [decode_image(image["bytes"]) for image in batch.column(column).to_pylist()]
        yield estimate(np.stack(pictures))


def dataset_episodes(
    root: str, kind: DepthKind, estimator: DepthEstimator | None
) -> Iterator[DepthEpisode]:
    """A LeRobot dataset: its recorded depth, or with `estimator` the depth of its first colour camera."""
    from molmoact_data.sources.opening import open_source

    source = open_source(root)
    wanted = [c.key for c in source.info.cameras if c.is_depth == (estimator is None)]
    if not wanted:
        _needs_estimator(root, estimator)
        raise UserError(f"{root} has no colour camera to estimate depth from.")

    def depth_of(ref: EpisodeRef) -> Iterator[NDArray[np.float32]]:
        for batch in source.iter_frames(ref, wanted[:1], _FRAMES_PER_BATCH):
            pixels = batch[wanted[0]].rgb_NHWC
            if estimator is not None:
                yield estimator.estimate(pixels)
            elif kind == "metric":
                yield data.metric_to_inverse(pixels)
            else:
                yield pixels.astype(np.float32)

    for ref in source.episodes:
        key = f"episode {ref.episode_index}"
        yield DepthEpisode(source.info.name, key, partial(depth_of, ref))


def depth_estimator(name: str | None) -> DepthEstimator | None:
    """The depth model of this name, built with its defaults; None for None."""
    if name is None:
        return None
    estimator: DepthEstimator = registry.resolve("depth encoder", name, registry.DEPTH_ESTIMATORS)()
    return estimator


def simulator_episodes(count: int, split: str) -> Iterator[DepthEpisode]:
    """Independent frames of the table-top simulator, each an episode of one frame."""
    if split not in ("train", "test"):
        raise unknown_name("split of the simulator", split, ("train", "test"))
    frames = registry.resolve("simulator", SIMULATOR, registry.SIMULATORS)
    for index, frame in enumerate(frames(0, count, split)):
        yield DepthEpisode.of_maps(
            f"{SIMULATOR}-{split}", f"frame {index}", data.metric_to_inverse(frame.depth_HW[None])
        )
