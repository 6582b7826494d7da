"""Depth-Anything-V2 as a depth teacher: transformers' network, the original's pre- and post-processing.

Weights are a Hugging Face repository (id or folder) or one of the original `depth_anything_v2_vit?.pth`
files. Answers equal the original's `infer_image(bgr, 518)`; transformers' own image processor does not
(it resizes uint8 images with another kernel).

Licence: Small is Apache-2.0; Base and Large are CC-BY-NC-4.0, so labels made with them are not for
commercial use.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn
from transformers import DepthAnythingForDepthEstimation

from molmoact_data.errors import UserError, first_line, unknown_name
from molmoact_data.files.inputs import is_git_lfs_pointer
from molmoact_data.processes import pick_device
from molmoact_data.teachers.depth_anything_weights import (
    OffsetEmbeddings,
    UnknownLayoutError,
    build_from_original,
)
from molmoact_data.teachers.published import (
    BRANCH,
    COMMIT,
    DEPTH_WEIGHTS,
    Published,
    fetch,
    is_hub_id,
)

logger = logging.getLogger(__name__)

INPUT_SIZE = 518
PATCH = 14
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


WIDTHS = {"vits": 384, "vitb": 768, "vitl": 1024}
"""Published sizes by the width of the encoder, by which weights are known."""


@dataclass(frozen=True)
class DepthAnythingSettings:
    """What a run says of this teacher; fields are `TeacherConfig`'s."""

    depth_encoder: str = "vits"
    depth_checkpoint: str | None = None


class DepthAnythingV2:
    """`DepthEstimator` over frames of any size; images of one call share a size, as the protocol says.

    Every forward pass on an accelerator has exactly `batch_size` images (the last one is filled up by
    repetition) and on a CPU exactly one, where batches gain nothing: kernels round differently for
    other batch shapes, and depth must not depend on how frames were grouped.
    """

    Settings = DepthAnythingSettings

    @classmethod
    def load(cls, settings: DepthAnythingSettings, device: str) -> DepthAnythingV2:
        """As a run asks for it."""
        return cls(settings.depth_encoder, settings.depth_checkpoint, device=device)

    def __init__(
        self,
        encoder: str = "vits",
        checkpoint: str | None = None,
        *,
        revision: str | None = None,
        device: str = "auto",
        batch_size: int = 8,
        num_heads: int | None = None,
    ) -> None:
        """`checkpoint`: Hub id, folder, or original .pth; None = the encoder's Hub id.

        `num_heads` is needed only for an original file of an unpublished width.
        """
        if encoder not in DEPTH_WEIGHTS:
            raise unknown_name("depth encoder", encoder, DEPTH_WEIGHTS)
        if batch_size < 1:
            raise UserError(f"batch size must be at least 1, got {batch_size}.")
        self.device = pick_device(device)
        self.scale_on_device = self.device.type != "cpu"
        self.batch_size = batch_size if self.scale_on_device else 1
        source = checkpoint if checkpoint is not None else DEPTH_WEIGHTS[encoder].repository
        self.model, self._revision = _load(source, encoder, revision, num_heads)
        self._licence = _licence(encoder, self.model.config.backbone_config.hidden_size)
        self.model.to(self.device).eval().requires_grad_(requires_grad=False)
        self._encoder = encoder
        self._source = source
        self._warn_if_licence_restricts()

    def describe(self) -> dict[str, str]:
        """`name`, `revision` and `licence` of the teacher, for the manifest."""
        return {
            "name": f"depth-anything-v2/{self._encoder}",
            "source": Path(self._source).name if Path(self._source).exists() else self._source,
            "revision": self._revision,
            "licence": self._licence,
        }

    def estimate(self, rgb_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB uint8 [N,H,W,3] -> float32 [N,H,W] relative inverse depth >= 0, larger = nearer."""
        height, width = rgb_NHWC.shape[1:3]
        if len(rgb_NHWC) == 0:
            return np.zeros((0, height, width), np.float32)
        return np.concatenate(list(self._estimate_batches(rgb_NHWC)))

    def _estimate_batches(self, rgb_NHWC: NDArray[np.uint8]) -> Iterator[NDArray[np.float32]]:
        image_hw = (rgb_NHWC.shape[1], rgb_NHWC.shape[2])
        for start in range(0, len(rgb_NHWC), self.batch_size):
            batch = rgb_NHWC[start : start + self.batch_size]
            short_by = self.batch_size - len(batch)
            full = np.concatenate([batch, batch[-1:].repeat(short_by, axis=0)])
            yield self._forward(self._network_input(full), image_hw)[: len(batch)]

    def _network_input(self, rgb_NHWC: NDArray[np.uint8]) -> torch.Tensor:
        """An accelerator scales its own frames: on the processor that takes 8 ms a frame, and it would wait."""
        if self.scale_on_device:
            return preprocess_on_device(torch.from_numpy(rgb_NHWC).to(self.device))
        return torch.from_numpy(np.stack([preprocess(rgb) for rgb in rgb_NHWC])).to(self.device)

    @torch.inference_mode()
    def _forward(self, pixels_NCHW: torch.Tensor, image_hw: tuple[int, int]) -> NDArray[np.float32]:
        depth_Nhw = self.model(pixel_values=pixels_NCHW).predicted_depth
        resized = F.interpolate(depth_Nhw[:, None], image_hw, mode="bilinear", align_corners=True)
        return resized[:, 0].float().cpu().numpy()

    def _warn_if_licence_restricts(self) -> None:
        if "NC" in self._licence:
            logger.warning(
                "Depth-Anything-V2 %s weights are %s: its labels are not for commercial use "
                "(vits is Apache-2.0).",
                self._encoder,
                self._licence,
            )


def network_size(height: int, width: int) -> tuple[int, int]:
    """The size the network sees: shorter side at least 518, aspect kept, multiples of 14."""
    scale = max(INPUT_SIZE / height, INPUT_SIZE / width)

    def multiple(side: int) -> int:
        rounded = round(scale * side / PATCH) * PATCH
        return rounded if rounded >= INPUT_SIZE else -(-INPUT_SIZE // PATCH) * PATCH

    return multiple(height), multiple(width)


def preprocess(rgb_HW3: NDArray[np.uint8]) -> NDArray[np.float32]:
    """One frame -> float32 [3,h,w]: /255, OpenCV cubic resize, ImageNet mean and std, in float64 as published."""
    height, width = network_size(*rgb_HW3.shape[:2])
    unit = cv2.resize(rgb_HW3 / 255.0, (width, height), interpolation=cv2.INTER_CUBIC)
    normalised = (unit - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), dtype=np.float32)


def preprocess_on_device(rgb_NHWC: torch.Tensor) -> torch.Tensor:
    """uint8 [N,H,W,3] -> float32 [N,3,h,w] as `preprocess`, which rounds positions differently (by 1e-4 and less)."""
    unit_NCHW = rgb_NHWC.permute(0, 3, 1, 2).float() / 255
    size = network_size(*rgb_NHWC.shape[1:3])
    resized = F.interpolate(unit_NCHW, size, mode="bicubic", align_corners=False)
    mean, std = (resized.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (resized - mean) / std


def _licence(encoder: str, hidden_size: int) -> str:
    """The licence of weights of this width; a published width under another size's name is an error."""
    published = {width: name for name, width in WIDTHS.items()}
    if hidden_size not in published:
        return "unknown (not a published checkpoint)"
    found = published[hidden_size]
    if found != encoder:
        raise UserError(
            f"the weights are those of {found} ({DEPTH_WEIGHTS[found].licence}), not of {encoder}. "
            f"Name the depth encoder {found}, so that the recorded licence is right."
        )
    return DEPTH_WEIGHTS[encoder].licence


def _load(
    source: str, encoder: str, revision: str | None, num_heads: int | None
) -> tuple[nn.Module, str]:
    path = Path(source)
    if path.suffix in {".pth", ".pt"} or path.is_file():
        return _load_original(path, num_heads)
    return _load_hub(source, encoder, revision)


def _load_original(path: Path, num_heads: int | None) -> tuple[nn.Module, str]:
    if not path.is_file():
        raise UserError(
            f"no depth weights at {path}. Download depth_anything_v2_vit{{s,b,l}}.pth from the "
            "repositories depth-anything/Depth-Anything-V2-{Small,Base,Large} on the Hugging Face Hub "
            "(Small: Apache-2.0; Base and Large: CC-BY-NC-4.0), or leave the checkpoint out."
        )
    if is_git_lfs_pointer(path):
        raise UserError(f"{path} is a Git LFS pointer; run `git lfs pull` in its folder.")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return build_from_original(state, num_heads=num_heads), f"sha256:{digest[:16]}"
    except (UnknownLayoutError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{path} is not a Depth-Anything-V2 checkpoint: {first_line(error)}"
        ) from error


def _load_hub(source: str, encoder: str, revision: str | None) -> tuple[nn.Module, str]:
    """A folder, or a Hub id that is fetched first, so that what is downloaded is said."""
    folder = Path(source)
    commit = None
    if not folder.is_dir():
        if not is_hub_id(source):
            raise UserError(
                f"cannot load the depth teacher {source!r}: no folder here and no Hub id (owner/name). Left out, "
                f"it is {DEPTH_WEIGHTS[encoder].describe()}."
            )
        folder = fetch(_published(source, encoder, revision))
        commit = folder.name if COMMIT.fullmatch(folder.name) else None
    weights = folder / "model.safetensors"
    if weights.is_file() and is_git_lfs_pointer(weights):
        raise UserError(f"{weights} is a Git LFS pointer; run `git lfs pull` in that folder.")
    try:
        model, loading = DepthAnythingForDepthEstimation.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{source} is no Depth-Anything-V2 checkpoint ({first_line(error)}). Give a folder of "
            "Depth-Anything-V2-{Small,Base,Large}-hf, or an original depth_anything_v2_vit{s,b,l}.pth."
        ) from error
    _check_complete(model, loading, source)
    _use_offset_embeddings(model)
    return model, commit or _folder_revision(folder)


def _published(source: str, encoder: str, revision: str | None) -> Published:
    """What a Hub id is fetched as. Only the published repositories have a commit that we know."""
    by_repository = {one.repository: one for one in DEPTH_WEIGHTS.values()}
    like = DEPTH_WEIGHTS[encoder]
    known = by_repository.get(source, replace(like, repository=source, revision=BRANCH))
    return known if revision is None else replace(known, revision=revision)


def _check_complete(model: nn.Module, loading: Mapping[str, Collection[Any]], source: str) -> None:
    """transformers draws at random what a file lacks, and warns; here that is an error, as are NaN."""
    for kind, what in (("missing_keys", "missing"), ("unexpected_keys", "unknown")):
        if odd := sorted(loading[kind]):
            raise UserError(
                f"{source} is no complete Depth-Anything-V2 checkpoint: the tensor {odd[0]!r} is {what} "
                f"({len(odd)} such in all); download it again."
            )
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{source} is damaged: the tensor {name!r} holds NaN or infinite values."
            )


def _use_offset_embeddings(model: nn.Module) -> None:
    embeddings = OffsetEmbeddings(model.config.backbone_config)
    embeddings.load_state_dict(model.backbone.embeddings.state_dict())
    model.backbone.embeddings = embeddings


def _folder_revision(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return f"sha256:{digest.hexdigest()[:16]}"
