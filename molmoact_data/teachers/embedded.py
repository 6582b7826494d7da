"""The teachers that ship inside the package: small networks trained on rendered table-top scenes.

For the demo, for tests and for a first look without network. They know one simulated robot; on real
video their output is not a label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor, nn

from molmoact_data.labels.pointing import GripperPoints
from molmoact_data.processes import pick_device
from molmoact_data.teachers.embedded_networks import DepthNetwork, PointerNetwork, to_input

ZOOM = 0.5
WEIGHTS_DIR = Path(__file__).parent / "weights"
DEPTH_WEIGHTS = WEIGHTS_DIR / "embedded_depth.safetensors"
POINTER_WEIGHTS = WEIGHTS_DIR / "embedded_pointer.safetensors"


@dataclass(frozen=True)
class EmbeddedDepthSettings:
    """It knows all it needs."""


@dataclass(frozen=True)
class EmbeddedPointerSettings:
    """What a run says of this teacher; fields are `TeacherConfig`'s."""

    arms: int = 1

    def __post_init__(self) -> None:
        if self.arms != 1:
            raise ValueError(
                "the embedded pointer knows one gripper; --arms needs another --pointer"
            )


class EmbeddedDepth:
    """`DepthEstimator` by a 0.9 M parameter network; about 5 ms per frame on one CPU core."""

    Settings = EmbeddedDepthSettings

    @classmethod
    def load(cls, settings: EmbeddedDepthSettings, device: str) -> EmbeddedDepth:
        """As a run asks for it."""
        return cls(device=device)

    def __init__(
        self, weights: Path = DEPTH_WEIGHTS, *, device: str = "auto", batch_size: int = 32
    ) -> None:
        self._device = pick_device(device)
        self._batch_size = batch_size
        self._network, self._sha256 = _load(DepthNetwork(), weights, self._device)

    def describe(self) -> dict[str, str]:
        """See `DepthEstimator.describe`; the revision is the weights' SHA-256."""
        return {"name": "embedded", "revision": self._sha256, "licence": "Apache-2.0"}

    @torch.inference_mode()
    def estimate(self, rgb_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB uint8 [N,H,W,3] -> float32 [N,H,W], larger = nearer, about 0..1 per image."""
        depth_NHW = np.empty(rgb_NHWC.shape[:3], np.float32)
        for start in range(0, len(rgb_NHWC), self._batch_size):
            rows = slice(start, start + self._batch_size)
            rgb = torch.from_numpy(np.ascontiguousarray(rgb_NHWC[rows])).to(self._device)
            small = self._network(to_input(rgb, DepthNetwork.input_size))
            size = (rgb_NHWC.shape[1], rgb_NHWC.shape[2])
            full = F.interpolate(small[:, None], size, mode="bilinear", align_corners=False)
            depth_NHW[rows] = full[:, 0].cpu().numpy()
        return depth_NHW


class EmbeddedPointer:
    """`GripperPointer` of one arm by a 0.8 M parameter network that looks twice; the prompt is ignored.

    The first look takes the whole frame, the second the `ZOOM` part of it around the first answer.
    The confidence is the probability that the grip point is in the frame and not hidden. Below
    `min_confidence` the point counts as not found.
    """

    Settings = EmbeddedPointerSettings

    @classmethod
    def load(cls, settings: EmbeddedPointerSettings, device: str) -> EmbeddedPointer:
        """As a run asks for it."""
        return cls(device=device)

    num_arms = 1

    def __init__(
        self,
        weights: Path = POINTER_WEIGHTS,
        *,
        device: str = "auto",
        batch_size: int = 32,
        min_confidence: float = 0.3,
    ) -> None:
        self._device = pick_device(device)
        self._batch_size = batch_size
        self._min_confidence = min_confidence
        self._network, self._sha256 = _load(PointerNetwork(), weights, self._device)

    def describe(self) -> dict[str, str]:
        """See `GripperPointer.describe`; the revision is the weights' SHA-256."""
        return {
            "name": "embedded",
            "revision": self._sha256,
            "licence": "Apache-2.0",
            "min_confidence": str(self._min_confidence),
        }

    @torch.inference_mode()
    def point(self, rgb_NHWC: NDArray[np.uint8], prompt: str) -> GripperPoints:
        """RGB uint8 [N,H,W,3] -> one point per frame."""
        count = len(rgb_NHWC)
        xy_NA2 = np.empty((count, 1, 2), np.float32)
        confidence_NA = np.empty((count, 1), np.float32)
        for start in range(0, count, self._batch_size):
            rows = slice(start, start + self._batch_size)
            rgb = torch.from_numpy(np.ascontiguousarray(rgb_NHWC[rows])).to(self._device)
            xy, confidence = look_twice(self._network, rgb)
            xy_NA2[rows, 0] = xy.cpu().numpy()
            confidence_NA[rows, 0] = confidence.cpu().numpy()
        lost_NA = confidence_NA < self._min_confidence
        xy_NA2[lost_NA] = np.nan
        confidence_NA[lost_NA] = 0.0
        return GripperPoints(xy_NA2, confidence_NA)


def look_twice(network: nn.Module, rgb_NHWC: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [N,H,W,3] -> unit coordinates [N,2] in 0..1 and confidence [N] of the first look."""
    first_N2, logit_N, _ = network(to_input(rgb_NHWC, PointerNetwork.input_size))
    window_NHWC, corner_N2 = windows(rgb_NHWC, first_N2)
    second_N2, _, _ = network(to_input(window_NHWC, PointerNetwork.input_size))
    xy_N2 = from_window(
        second_N2, corner_N2, window_NHWC.shape[1:3], rgb_NHWC.shape[1:3], PointerNetwork.input_size
    )
    return xy_N2.clamp(0.0, 1.0), logit_N.sigmoid()


def windows(rgb_NHWC: Tensor, xy_N2: Tensor) -> tuple[Tensor, Tensor]:
    """The `ZOOM` part of each image around its point, inside the image, and its corner (column, row) [N,2]."""
    _, height, width, _ = rgb_NHWC.shape
    size_hw = (max(1, round(ZOOM * height)), max(1, round(ZOOM * width)))
    cut, corners = [], []
    for image, (x, y) in zip(rgb_NHWC, xy_N2.tolist(), strict=True):
        left = min(max(round(x * (width - 1) - size_hw[1] / 2), 0), width - size_hw[1])
        top = min(max(round(y * (height - 1) - size_hw[0] / 2), 0), height - size_hw[0])
        cut.append(image[top : top + size_hw[0], left : left + size_hw[1]])
        corners.append([left, top])
    shape = (len(cut), *size_hw, 3)
    stacked = torch.stack(cut) if cut else rgb_NHWC.new_empty(shape)
    return stacked, torch.tensor(corners, device=xy_N2.device, dtype=xy_N2.dtype).reshape(-1, 2)


def from_window(
    xy_N2: Tensor,
    corner_N2: Tensor,
    window_hw: Sequence[int],
    image_hw: Sequence[int],
    input_size: int,
) -> Tensor:
    """Unit coordinates of the network's view of a window -> unit coordinates of the whole image.

    The network's view is the window resized to `input_size`, where pixel index i sits at the continuous
    coordinate i + 0.5.
    """
    window = xy_N2.new_tensor([window_hw[1], window_hw[0]])
    image = xy_N2.new_tensor([image_hw[1], image_hw[0]])
    share = (xy_N2 * (input_size - 1) + 0.5) / input_size
    return (corner_N2 + share * window - 0.5) / (image - 1)


def _load(network: nn.Module, weights: Path, device: torch.device) -> tuple[nn.Module, str]:
    """The network in float32 for inference, and the SHA-256 of the file it came from."""
    content = weights.read_bytes()
    state = {n: v.float() if v.is_floating_point() else v for n, v in load(content).items()}
    network.load_state_dict(state)
    network.eval().to(device, memory_format=torch.channels_last)
    return network, hashlib.sha256(content).hexdigest()
