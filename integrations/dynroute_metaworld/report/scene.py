"""Draws small pictures of a task's scene, and finds out whether OpenGL works here."""

import functools
import os
import subprocess
import sys
from typing import Any

import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from numpy.typing import NDArray
from PIL import Image

from ..envs.environment import CAMERA, TaskEnvironment

__all__ = ["BACKENDS", "Camera", "OpenGLError", "find_opengl"]

BACKENDS = ("egl", "osmesa")
"""The libraries that draw without a display, in the order in which they are tried."""

PROBE = """
import mujoco
context = mujoco.GLContext(8, 8)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
context.free()
"""


class OpenGLError(OSError):
    """Nothing can be drawn on this machine."""


def find_opengl() -> str:
    """Finds a library that can draw on this machine, and sets MuJoCo to use it.

    If ``MUJOCO_GL`` is set, this is the library that it names, otherwise the first of :data:`BACKENDS` that works. Each
    is tried in a process of its own, since it may crash.

    Returns:
        The value of ``MUJOCO_GL``.
    """
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()  # MuJoCo accepts capitals, gymnasium does not
    for backend in (wanted,) if wanted else BACKENDS:
        if _works(backend):
            os.environ["MUJOCO_GL"] = backend
            return backend
    tried = f"MUJOCO_GL={wanted} does not" if wanted else f"neither MUJOCO_GL={' nor MUJOCO_GL='.join(BACKENDS)} does"
    raise OpenGLError(
        f"frames need OpenGL that works without a display, but {tried}; install a graphics driver or Debian's libegl1 "
        "for egl, or libosmesa6 for osmesa."
    )


@functools.cache
def _works(backend: str) -> bool:
    try:
        probe = subprocess.run(
            [sys.executable, "-c", PROBE], env={**os.environ, "MUJOCO_GL": backend}, capture_output=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return probe.returncode == 0


class Camera:
    """Takes pictures of the scene of an environment, without shadows, which would take most of the time.

    Call :func:`find_opengl` first. Taking a picture changes nothing that steps depend on.
    """

    def __init__(self, environment: TaskEnvironment, size: int = 240) -> None:
        self.size = size
        model, data = environment.env.model, environment.env.data
        model.vis.quality.shadowsize, model.vis.quality.offsamples = 0, 0
        model.vis.global_.offwidth = model.vis.global_.offheight = 2 * size
        # Drawing at twice the size and shrinking gives smooth edges in less time than OpenGL's multisampling.
        self._renderer: Any = MujocoRenderer(model, data, width=2 * size, height=2 * size, camera_name=CAMERA)

    def frame(self) -> NDArray[np.uint8]:
        """A picture, with shape ``[size, size, 3]``."""
        self._make_current()
        picture = self._renderer.render("rgb_array")
        upright = np.ascontiguousarray(picture[::-1, ::-1])  # the cameras in the corners hang upside down
        return np.asarray(Image.fromarray(upright).resize((self.size, self.size), Image.Resampling.BOX))

    def close(self) -> None:
        """Frees the memory of OpenGL."""
        self._make_current()
        self._renderer.close()

    def _make_current(self) -> None:
        """Makes the OpenGL context of this camera the current one."""
        if self._renderer.viewer is not None:
            self._renderer.viewer.make_context_current()
