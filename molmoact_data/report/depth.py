"""What the depth codes of a few frames say, beside their pictures.

The maps are drawn over one fixed scale, not over their own range: a depth map fills 0..1 before it is coded, so codes
made with the wrong input range decode to a part of the scale and look flat.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.storage import Storage
from molmoact_data.labels.depth import DepthTokenizer
from molmoact_data.outputs.manifest import Manifest
from molmoact_data.outputs.output import open_parquet
from molmoact_data.outputs.shards import file_sha256
from molmoact_data.pages.page import Figure
from molmoact_data.pictures.images import decode_image
from molmoact_data.report.data import FrameRef, iter_by_row_group
from molmoact_data.report.pictures import jpeg_address
from molmoact_data.teachers import registry
from molmoact_data.teachers.codebook import codebooks_at_hand

logger = logging.getLogger(__name__)

TOKENIZER_ROLE, ESTIMATOR_ROLE = "depth_tokenizer", "depth"
SCALING_WORDS = {
    "image": "the range of each image",
    "steady": "a range kept over the episode (steady)",
}
STRIP_HEIGHT = 200
FULL_RANGE = (0.25, 0.75)
"""A depth map was scaled to 0..1 before it was coded; decoded, it reaches below the first and above the second."""


@dataclass(frozen=True)
class DepthFrame:
    """One frame and what its codes say."""

    ref: FrameRef
    rgb_HWC: NDArray[np.uint8]
    codes_K: NDArray[np.int64]
    instruction: str


@dataclass(frozen=True)
class DepthStrips:
    """The section: what is drawn, by which recipe, and the strips."""

    lead: str
    figures: Sequence[Figure]


def depth_strips(
    storage: Storage, manifest: Manifest, refs: Sequence[FrameRef]
) -> DepthStrips | None:
    """Strips of the frames `refs`: the picture, then depth from the codes; None where there are no frames.

    Without the VQ-VAE that made the codes (see `open_tokenizer`) the codes are drawn as a grey map of their grid.
    """
    if not refs:
        return None
    frames = read_frames(storage, refs, manifest.labelled_camera)
    tokenizer = open_tokenizer(manifest)
    recipe = recipe_words(manifest)
    if tokenizer is None:
        return DepthStrips(
            f"Left the picture, right its codes as grey values, 0 to {manifest.quality['codebook_size'] - 1}: the "
            f"VQ-VAE that made them was not at hand, so what they say about depth is not shown. {recipe}",
            [_codes_figure(f, manifest.quality["codebook_size"]) for f in frames],
        )
    depth_NHW = tokenizer.decode(np.stack([f.codes_K for f in frames]))
    return DepthStrips(
        "Left the picture, right the depth that its codes say, over a fixed scale from 0 (dark, far) to 1 (bright, "
        "near). A depth map fills this scale before it is coded. Where the decoded one does not (yellow numbers, flat "
        f"colours), it was coded with another range than its VQ-VAE was trained with. {recipe}",
        [_depth_figure(f, d) for f, d in zip(frames, depth_NHW, strict=True)],
    )


def open_tokenizer(manifest: Manifest) -> DepthTokenizer | None:
    """The VQ-VAE that made the codes, by its hash: the packaged one, or the one the run named. Never fetched.

    It decodes by the recipe of its checkpoint, whatever the codes were made with. None = not at hand.
    """
    wanted = manifest.teachers.get(TOKENIZER_ROLE, {}).get("revision")
    if wanted is None or importlib.util.find_spec("torch") is None:
        return None
    for path in codebooks_at_hand(manifest.labels.get("vqvae")):
        if path.is_file() and f"sha256:{file_sha256(path)}" != wanted:
            continue
        try:
            factory = registry.resolve("depth tokenizer", "vqvae", registry.DEPTH_TOKENIZERS)
            tokenizer: DepthTokenizer = factory(path, device="cpu")
        except UserError as error:
            logger.debug("%s is no VQ-VAE any more: %s", path, error)
            continue
        if tokenizer.describe()["revision"] == wanted:
            return tokenizer
    return None


def recipe_words(manifest: Manifest) -> str:
    """Which teacher made the depth, and how it was brought to the VQ-VAE."""
    teachers = manifest.teachers
    estimator, tokenizer = (teachers.get(r, {}) for r in (ESTIMATOR_ROLE, TOKENIZER_ROLE))
    known = [
        ("depth by", estimator.get("name")),
        ("encoder", estimator.get("encoder")),
        ("scaled by", SCALING_WORDS[manifest.depth_scaling]),
        ("coded with range", tokenizer.get("range")),
        ("resize", tokenizer.get("resize")),
        ("VQ-VAE", tokenizer.get("revision", "")[:19]),
    ]
    said = ", ".join(f"{what} {value}" for what, value in known if value)
    return f"Recipe: {said}." if said else "The recipe is not stated."


def read_frames(storage: Storage, refs: Sequence[FrameRef], camera: str) -> list[DepthFrame]:
    """Pictures and codes, by episode and frame; one row group in memory at a time."""
    names = [schema.image_column(camera), schema.DEPTH_CODES, schema.INSTRUCTION]
    frames = []
    for shard, group, members in iter_by_row_group(refs):
        with open_parquet(storage, shard) as file:
            table = file.read_row_group(group, columns=names)
        for ref in members:
            row: dict[str, Any] = {name: table[name][ref.row].as_py() for name in names}
            rgb_HWC = decode_image(row[names[0]]["bytes"])
            codes_K = np.array(row[schema.DEPTH_CODES], dtype=np.int64)
            frames.append(DepthFrame(ref, rgb_HWC, codes_K, row[schema.INSTRUCTION]))
    return sorted(frames, key=lambda f: (f.ref.shard, f.ref.episode, f.ref.frame))


def codes_map(codes_K: NDArray[np.int64], codebook_size: int) -> NDArray[np.uint8]:
    """Codes as a grey picture [H,W,3] of one pixel per code: as near to a square as their number allows, and tall."""
    count = len(codes_K)
    width = next(w for w in range(math.isqrt(count), 0, -1) if count % w == 0)
    grey = np.rint(codes_K * (255 / max(codebook_size - 1, 1))).astype(np.uint8)
    return np.repeat(grey.reshape(-1, width, 1), 3, axis=2)


def depth_map(depth_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Depth 0..1 as colours [H,W,3] over that whole range, near = bright."""
    import cv2

    level = np.rint(np.clip(depth_HW, 0, 1) * 255).astype(np.uint8)
    bgr = cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def fills_the_range(low: float, high: float) -> bool:
    """Whether decoded depth from `low` to `high` can be a map that was scaled to 0..1."""
    return low < FULL_RANGE[0] and high > FULL_RANGE[1]


def _depth_figure(frame: DepthFrame, depth_HW: NDArray[np.float32]) -> Figure:
    low, high = float(depth_HW.min()), float(depth_HW.max())
    right = depth_map(depth_HW)
    return _figure(frame, right, f"{low:.2f} to {high:.2f}", fills=fills_the_range(low, high))


def _codes_figure(frame: DepthFrame, codebook_size: int) -> Figure:
    words = f"{len(np.unique(frame.codes_K))} codes"
    return _figure(frame, codes_map(frame.codes_K, codebook_size), words, fills=True)


def _figure(frame: DepthFrame, right_HWC: NDArray[np.uint8], pill: str, *, fills: bool) -> Figure:
    """The two pictures side by side; the right one takes the shape of the left, whose whole frame it is about."""
    import cv2

    height, width = frame.rgb_HWC.shape[:2]
    size = (max(1, round(width * STRIP_HEIGHT / height)), STRIP_HEIGHT)
    left = cv2.resize(frame.rgb_HWC, size, interpolation=cv2.INTER_AREA)
    right = cv2.resize(right_HWC, size, interpolation=cv2.INTER_NEAREST)
    strip = np.concatenate([left, right], axis=1).astype(np.uint8, copy=False)
    return Figure(
        name=f"Episode {frame.ref.episode}, frame {frame.ref.frame}",
        address=jpeg_address(strip),
        pill=pill,
        verdict="good" if fills else "warn",
        caption=frame.instruction,
        width=strip.shape[1],
        height=strip.shape[0],
    )
