#!/usr/bin/env python3
"""A MuJoCo simulator of one session, reached over a TCP port of its own. See protocol.py and README.md.

    viewer.py PORT

It listens at once and imports MuJoCo right after, before the first request is answered. Pictures are rendered without
a screen through EGL by Mesa's software renderer, unless MUJOCO_GL says otherwise.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any, ClassVar

import protocol
from protocol import Refused, World, check_mjcf, check_size

GL_PACKAGES = "libegl1 libgl1 libgl1-mesa-dri"
# Many viewers share the machine: one thread of the software renderer for each, and a shadow map of a size to match.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "1")
SHADOW_SIDE = 1_024

mujoco: Any = None


def warm_up() -> None:
    """Imports MuJoCo, which takes most of a viewer's start."""
    global mujoco
    try:
        import mujoco as module
    except (ImportError, AttributeError, OSError) as error:  # PyOpenGL without its library is an AttributeError
        sys.exit(f"viewer.py: importing mujoco failed ({type(error).__name__}: {error}). Rendering needs Debian's {GL_PACKAGES} "
                 f"(sudo apt-get install -y {GL_PACKAGES}), or MUJOCO_GL=disable to do without pictures")
    mujoco = module
    # Its own way would be a file MUJOCO_LOG.TXT in the working directory.
    mujoco.set_mju_user_warning(lambda text: print(f"viewer.py: warning: {text}", file=sys.stderr, flush=True))


class MujocoWorld(World):
    # The last renderer, and for whom: a context and its buffers are the largest thing that a viewer holds.
    painter: ClassVar[tuple[World, int, int, Any] | None] = None

    def __init__(self, xml: str) -> None:
        check_mjcf(xml)
        try:
            self.model = mujoco.MjModel.from_xml_string(xml)
        except (ValueError, mujoco.FatalError) as error:
            raise Refused("bad_model", f"MuJoCo does not take the model: {error}") from None
        check_size(self.model.nbody, self.model.nq, self.model.nv, self.model.nu)
        self.data = mujoco.MjData(self.model)
        self.controls = self.model.nu
        self.names = [self.model.body(at).name for at in range(self.model.nbody)]
        self.model.vis.quality.shadowsize = min(self.model.vis.quality.shadowsize, SHADOW_SIDE)
        mujoco.mj_forward(self.model, self.data)

    @property
    def time(self) -> float:  # type: ignore[override]
        return float(self.data.time)

    def summary(self) -> dict[str, Any]:
        model = self.model
        return {"bodies": model.nbody, "positions": model.nq, "velocities": model.nv, "controls": model.nu, "timestep": model.opt.timestep}

    def state(self) -> dict[str, Any]:
        data = self.data
        bodies = [{"name": name, "position": place} for name, place in zip(self.names, data.xpos.tolist())]
        return {"time": self.time, "qpos": data.qpos.tolist(), "qvel": data.qvel.tolist(), "control": data.ctrl.tolist(), "bodies": bodies}

    def step(self, steps: int) -> None:
        mujoco.mj_step(self.model, self.data, steps)

    def set_control(self, control: list[float]) -> None:
        self.data.ctrl[:] = control

    def reset(self) -> None:
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)

    def render(self, width: int, height: int) -> bytes:
        mujoco.mj_forward(self.model, self.data)
        renderer = self.renderer(width, height)
        renderer.update_scene(self.data)
        return renderer.render().tobytes()

    def renderer(self, width: int, height: int) -> Any:
        held = MujocoWorld.painter
        if held and held[:3] == (self, width, height):
            return held[3]
        if not hasattr(mujoco, "Renderer"):
            raise Refused("failed", "rendering is switched off by MUJOCO_GL=disable: start the viewer without it")
        MujocoWorld.put_down()
        # The buffer to draw into is as large as the model says, which may be anything.
        screen = self.model.vis.global_
        screen.offwidth, screen.offheight = width, height
        try:
            renderer = mujoco.Renderer(self.model, height, width)
        except Exception as error:  # each way to a GL context has errors of its own
            raise Refused("failed", f"a picture of {width} by {height} could not be begun ({type(error).__name__}: {error}). With "
                          f"MUJOCO_GL={os.environ['MUJOCO_GL']} this needs Debian's {GL_PACKAGES}") from None
        MujocoWorld.painter = (self, width, height, renderer)
        return renderer

    @staticmethod
    def put_down() -> None:
        if MujocoWorld.painter:
            MujocoWorld.painter[3].close()
        MujocoWorld.painter = None

    def close(self) -> None:
        if MujocoWorld.painter and MujocoWorld.painter[0] is self:
            MujocoWorld.put_down()


if __name__ == "__main__":
    if importlib.util.find_spec("mujoco") is None:
        sys.exit("viewer.py: the package mujoco is missing: pip install -r requirements.txt")
    protocol.main("mujoco", MujocoWorld, warm_up)
