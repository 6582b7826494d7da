"""Rendering: colour, metric depth and calibration of one camera."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from molmoact_data.errors import UserError
from molmoact_robot.tabletop.camera import PinholeCamera, intrinsics, is_visible, world_to_camera

DEPTH_UNIT_M = 0.0005  # of the 16-bit PNGs; reaches 32 m


@dataclass(frozen=True)
class Shot:
    """One rendered view before the sensor model."""

    rgb_HWC: NDArray[np.uint8]
    depth_HW: NDArray[np.float32]
    """Metres along the optical axis."""
    grip_pixel_2: NDArray[np.float64]
    """Pixel index (column, row), also outside the frame."""
    grip_visible: bool


class SceneRenderer:
    """Owns the GL context of one model; use as a context manager."""

    def __init__(self, model: Any, image_hw: tuple[int, int], *, shadows: bool) -> None:
        self._model = model
        self._image_hw = image_hw
        try:
            self._renderer = mujoco.Renderer(model, *image_hw)
        except (ImportError, AttributeError, RuntimeError, mujoco.FatalError) as error:
            # Which one depends on what is missing: the backend, its library, or a display.
            raise UserError(
                f"cannot render: no OpenGL here ({error}). Install Mesa's software GL "
                "(apt-get install libegl1 libgl1-mesa-dri) and set MUJOCO_GL=egl"
            ) from error
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = shadows

    def __enter__(self) -> SceneRenderer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._renderer.close()

    def colour(self, data: Any, camera: str) -> NDArray[np.uint8]:
        self._renderer.update_scene(data, camera)
        return self._renderer.render().copy()

    def depth(self, data: Any, camera: str) -> NDArray[np.float32]:
        """Metres along the optical axis [H,W]."""
        self._renderer.enable_depth_rendering()
        self._renderer.update_scene(data, camera)
        depth_HW = self._renderer.render().copy()
        self._renderer.disable_depth_rendering()
        return depth_HW

    def shoot(self, data: Any, camera: str, grip_position_3: NDArray[np.float64]) -> Shot:
        """Colour, depth and where the grip point is in them."""
        depth_HW = self.depth(data, camera)
        pinhole = self.calibration(data, camera)
        pixel_12, distance_1 = pinhole.project(grip_position_3[None])
        visible = is_visible(pixel_12[0], float(distance_1[0]), depth_HW)
        return Shot(self.colour(data, camera), depth_HW, pixel_12[0], visible)

    def calibration(self, data: Any, camera: str) -> PinholeCamera:
        return calibration(self._model, data, camera, self._image_hw)


def calibration(model: Any, data: Any, camera: str, image_hw: tuple[int, int]) -> PinholeCamera:
    """One camera of a posed model; needs no OpenGL."""
    index = model.camera(camera).id
    axes_33 = data.cam_xmat[index].reshape(3, 3)
    return PinholeCamera(
        intrinsics(float(model.cam_fovy[index]), image_hw),
        world_to_camera(data.cam_xpos[index], axes_33),
        image_hw,
    )


def depth_to_u16(depth_HW: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Metres -> steps of `DEPTH_UNIT_M`; beyond 32.7 m saturates."""
    return np.clip(np.rint(depth_HW / DEPTH_UNIT_M), 0, 65535).astype(np.uint16)


def depth_from_u16(steps_HW: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Inverse of `depth_to_u16`, to half a step."""
    return steps_HW.astype(np.float32) * np.float32(DEPTH_UNIT_M)
