"""Depth maps to train and measure on: from a few kinds of places to one array of 8-bit maps.

A source yields episodes of raw depth. They are scaled, resized and kept as uint8 [N,S,S] in a file that
training maps into memory, so that memory does not grow with the data.

Letters: N maps, T frames of an episode, H/W the source's size, S the network's size.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, UserError
from molmoact_data.files.folders import write_bytes
from molmoact_data.labels.depth_scaling import (
    DepthScaler,
    depth_scaler,
    image_ranges,
    scale_between,
)
from vqvae.depth import scenes
from vqvae.recipe import Recipe, Scaling, resize_u8

logger = logging.getLogger(__name__)

DepthKind = Literal["inverse", "metric"]
MAPS_FILE, INDEX_FILE = "maps.u8", "maps.json"


@dataclass(frozen=True)
class DepthEpisode:
    """Neighbouring frames of one camera."""

    dataset: str
    key: str
    """Unique within the dataset; decides whether the episode is held out."""
    batches: Callable[[], Iterator[NDArray[np.float32]]]
    """Maps [N,H,W] in order, from the first one at every call: inverse depth up to scale and shift, larger =
    nearer. May raise `EpisodeRejected`."""

    @classmethod
    def of_maps(cls, dataset: str, key: str, depth_THW: NDArray[np.float32]) -> DepthEpisode:
        """An episode that is in memory."""
        return cls(dataset, key, lambda: iter([depth_THW]))

    @property
    def depth_THW(self) -> NDArray[np.float32]:
        """All maps at once, for episodes that are known to be small."""
        return np.concatenate(list(self.batches()))


@dataclass(frozen=True)
class EpisodeScaler:
    """One range for all frames: what a `DepthScaler` would do that knew the whole episode."""

    range_2: NDArray[np.float32]
    """(low, high)"""
    looks_back: bool = False

    def scale(
        self, depth_NHW: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """See `DepthScaler`."""
        range_N2 = np.tile(self.range_2, (len(depth_NHW), 1))
        return scale_between(depth_NHW, range_N2), range_N2


def episode_scaler(episode: DepthEpisode, scaling: Scaling) -> DepthScaler:
    """For the frames of this episode; `episode` takes a pass over them."""
    if scaling != "episode":
        return depth_scaler(scaling)
    ends_N2 = np.concatenate([image_ranges(batch) for batch in episode.batches()])
    return EpisodeScaler(np.array([ends_N2[:, 0].min(), ends_N2[:, 1].max()], np.float32))


def metric_to_inverse(z_THW: NDArray[Any]) -> NDArray[np.float32]:
    """Distance (larger = farther, 0 = no measurement) -> 1/z; what was not measured becomes the farthest."""
    z = z_THW.astype(np.float32)
    if not (z > 0).any():
        raise UserError("a depth map without one positive distance; is it really metric depth?")
    measured: NDArray[np.float32] = np.where(z > 0, z, z.max())
    return np.float32(1) / measured


# Sources: each yields episodes.


def procedural_episodes(
    num_episodes: int, num_frames: int, size: int, seed: int
) -> Iterator[DepthEpisode]:
    """Ray-cast scenes of `vqvae.depth.scenes`."""
    for index in range(num_episodes):
        rng = np.random.default_rng([seed, index])
        scene = scenes.random_scene(rng)
        depth = scenes.render_episode(scene, rng, num_frames=num_frames, size=size)
        yield DepthEpisode.of_maps("procedural", f"seed {seed} scene {index}", depth)


def folder_episodes(folder: Path, kind: DepthKind) -> Iterator[DepthEpisode]:
    """PNG (8 or 16 bit) and npy files under `folder`; the files of one subfolder are one episode, in name
    order; an npy file of [T,H,W] is one episode by itself."""
    for path in sorted(folder.rglob("*.npy")):
        stack = np.load(path, allow_pickle=False)
        yield _episode(folder, path, stack[None] if stack.ndim == 2 else stack, kind)
    for directory in sorted({path.parent for path in folder.rglob("*.png")}):
        maps = [_read_png(path) for path in sorted(directory.glob("*.png"))]
        if len({m.shape for m in maps}) > 1:
            raise UserError(
                f"the depth maps in {directory} differ in size; one folder is one episode."
            )
        yield _episode(folder, directory, np.stack(maps), kind)


def _read_png(path: Path) -> NDArray[np.uint8 | np.uint16]:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 2:
        found = "nothing readable" if image is None else f"{image.shape[2]} channels"
        raise UserError(
            f"{path} is not a depth map: expected one channel of 8 or 16 bits, found {found}."
        )
    return image


def _episode(folder: Path, path: Path, stack: NDArray[Any], kind: DepthKind) -> DepthEpisode:
    if stack.ndim != 3 or stack.dtype.kind not in "uif":
        raise UserError(
            f"{path} must hold numbers [T,H,W] or [H,W], found {stack.dtype} {stack.shape}."
        )
    if not np.isfinite(stack).all():
        raise UserError(f"{path} holds depth that is not finite; mask it out as 0 (metric) first.")
    depth = metric_to_inverse(stack) if kind == "metric" else stack.astype(np.float32)
    return DepthEpisode.of_maps(folder.name, path.relative_to(folder).as_posix(), depth)


# The set.


@dataclass(frozen=True)
class DepthSet:
    """Maps ready for the network, with where each came from."""

    maps_NSS: NDArray[np.uint8]
    episode_N: NDArray[np.int32]
    """Index into `keys`, constant over an episode's frames, which are neighbours."""
    keys: tuple[tuple[str, str], ...]
    """(dataset, key) per episode."""

    def __len__(self) -> int:
        return len(self.maps_NSS)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names, sorted."""
        return tuple(sorted({dataset for dataset, _ in self.keys}))

    def split(self, hold_out_fraction: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices (training, held out). Whole episodes are held out, chosen by a hash of their key, so
        that the choice survives new episodes; of a single episode, the last frames."""
        count = max(1, round(len(self.keys) * hold_out_fraction))
        if len(self.keys) == 1:
            cut = len(self) - max(1, round(len(self) * hold_out_fraction))
            return np.arange(cut), np.arange(cut, len(self))
        order = sorted(range(len(self.keys)), key=lambda i: (_hash(self.keys[i]), i))
        held_out = np.isin(self.episode_N, order[:count])
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _hash(key: tuple[str, str]) -> int:
    return zlib.crc32("\0".join(key).encode())


def collect(
    episodes: Iterable[DepthEpisode], *, size: int, recipe: Recipe, scaling: Scaling
) -> DepthSet:
    """All episodes in memory; for what is known to be small."""
    maps: list[NDArray[np.uint8]] = [np.zeros((0, size, size), np.uint8)]
    owner, keys = [], []
    for index, episode in enumerate(episodes):
        for frames in prepare_frames(episode, size=size, recipe=recipe, scaling=scaling):
            maps.append(frames)
            owner += [index] * len(frames)
        keys.append((episode.dataset, episode.key))
    return DepthSet(np.concatenate(maps), np.array(owner, np.int32), tuple(keys))


def prepare_frames(
    episode: DepthEpisode, *, size: int, recipe: Recipe, scaling: Scaling
) -> Iterator[NDArray[np.uint8]]:
    """Raw depth -> what the codec would see, uint8 [N,size,size], batch by batch.

    One range for a whole episode takes two passes over it; memory is that of one batch either way.
    """
    scaler = episode_scaler(episode, scaling)
    for batch in episode.batches():
        scaled, _ = scaler.scale(batch)
        yield np.stack([resize_u8(frame, size, recipe.resize) for frame in scaled])


def write_cache(
    folder: Path,
    episodes: Iterable[DepthEpisode],
    *,
    size: int,
    recipe: Recipe,
    scaling: Scaling,
) -> None:
    """Stream the episodes into `folder`; the index is written last and means "complete".

    An episode that turns out to be bad halfway is left out as a whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner: list[int] = []
    keys: list[tuple[str, str]] = []
    with (folder / MAPS_FILE).open("wb") as file:
        for episode in episodes:
            start, count = file.tell(), 0
            try:
                for frames in prepare_frames(episode, size=size, recipe=recipe, scaling=scaling):
                    file.write(frames.data)
                    count += len(frames)
            except EpisodeRejected as reason:
                logger.warning("%s %s is left out: %s", episode.dataset, episode.key, reason)
                file.seek(start)
                file.truncate()
                continue
            owner += [len(keys)] * count
            keys.append((episode.dataset, episode.key))
    index = {"size": size, "episode": owner, "keys": keys}
    write_bytes(folder / INDEX_FILE, json.dumps(index).encode())


def read_cache(folder: Path) -> DepthSet:
    """The inverse of `write_cache`, mapped into memory rather than read."""
    index = json.loads((folder / INDEX_FILE).read_text())
    shape = (len(index["episode"]), index["size"], index["size"])
    if not shape[0]:
        raise UserError("no depth map was found in the data; check --data.")
    maps = np.memmap(folder / MAPS_FILE, np.uint8, mode="r", shape=shape)
    keys = tuple((dataset, key) for dataset, key in index["keys"])
    return DepthSet(maps, np.array(index["episode"], np.int32), keys)
