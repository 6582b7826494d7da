"""Whether anything can be rendered here."""

from __future__ import annotations

import subprocess
import sys

import pytest


def gl_problem() -> str | None:
    """Why nothing can be rendered, or None; asked in another process, which may abort."""
    code = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["abort"])[-1]


GL_PROBLEM = gl_problem()

render = [
    pytest.mark.render,
    pytest.mark.skipif(
        GL_PROBLEM is not None,
        reason=f"no software OpenGL here (apt-get install libegl1 libgl1-mesa-dri): {GL_PROBLEM}",
    ),
]


def needs_gl(test):
    """Mark a test that renders."""
    for mark in render:
        test = mark(test)
    return test
