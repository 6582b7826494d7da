"""A small table-top robot world with exact ground truth: images, metric depth, gripper pixel, success.

For the demo, for measuring labels and for training the embedded teachers. It says nothing about
accuracy on real video. Needs `pip install 'molmoact[sim]'` and software OpenGL (`MUJOCO_GL=egl`).
"""

from __future__ import annotations

import os
from ctypes.util import find_library

if not os.environ.get("DISPLAY") and find_library("EGL"):
    # MuJoCo chooses its OpenGL when it is imported; without a screen its default fails.
    os.environ.setdefault("MUJOCO_GL", "egl")
