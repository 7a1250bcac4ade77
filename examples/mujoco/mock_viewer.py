#!/usr/bin/env python3
"""A mock of `viewer.py`, for tests only: the same protocol without MuJoCo and without physics.

    mock_viewer.py PORT

Each joint is a damped spring that a control pushes; where it starts is a digest of the model's text, so that two
models never look alike. What is loaded is checked less than MuJoCo checks it.
"""

from __future__ import annotations

import zlib

from protocol import Refused, World, check_mjcf, check_size, main

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STIFFNESS, DAMPING, DEFAULT_TIMESTEP = 4.0, 0.2, 0.002
# Numbers of state that a joint has in MuJoCo: positions and velocities.
JOINTS = {"free": (7, 6), "ball": (4, 3), "slide": (1, 1), "hinge": (1, 1)}


class ToyWorld(World):
    def __init__(self, xml: str) -> None:
        root = check_mjcf(xml)
        kinds = [element.get("type", "hinge") for element in root.iter("joint")] + ["free"] * sum(1 for _ in root.iter("freejoint"))
        unknown = next((kind for kind in kinds if kind not in JOINTS), None)
        if unknown:
            raise Refused("bad_model", f"a joint is of the type {unknown!r}, not one of {', '.join(JOINTS)}")
        try:
            option = root.find("option")
            self.timestep = float(option.get("timestep", DEFAULT_TIMESTEP)) if option is not None else DEFAULT_TIMESTEP
        except ValueError:
            raise Refused("bad_model", "the option `timestep` is no number") from None
        self.names = ["world"] + [body.get("name", "") for body in root.iter("body")]
        self.positions = sum(JOINTS[kind][0] for kind in kinds)
        self.velocities = sum(JOINTS[kind][1] for kind in kinds)
        self.controls = sum(len(actuators) for actuators in root.iter("actuator"))
        check_size(len(self.names), self.positions, self.velocities, self.controls)
        self.seed = zlib.crc32(xml.encode("utf-8", "replace"))
        self.reset()

    def summary(self) -> dict[str, Any]:
        return {"bodies": len(self.names), "positions": self.positions, "velocities": self.velocities,
                "controls": self.controls, "timestep": self.timestep}

    def reset(self) -> None:
        self.time = 0.0
        self.qpos = [((self.seed + at * 7919) % 1000 + 1) / 1001 for at in range(self.positions)]
        self.qvel = [0.0] * self.positions
        self.ctrl = [0.0] * self.controls

    def step(self, steps: int) -> None:
        for _ in range(steps):
            for at in range(self.positions):
                push = self.ctrl[at] if at < self.controls else 0.0
                self.qvel[at] += self.timestep * (push - STIFFNESS * self.qpos[at] - DAMPING * self.qvel[at])
                self.qpos[at] += self.timestep * self.qvel[at]
            self.time += self.timestep

    def set_control(self, control: list[float]) -> None:
        self.ctrl = control

    def state(self) -> dict[str, Any]:
        height = self.qpos[0] if self.qpos else 0.0
        bodies = [{"name": name, "position": [0.0, float(at), height if at else 0.0]} for at, name in enumerate(self.names)]
        return {"time": self.time, "qpos": self.qpos, "qvel": self.qvel[:self.velocities], "control": self.ctrl, "bodies": bodies}

    def render(self, width: int, height: int) -> bytes:
        """A ground in the model's own colour, and a bar as long as the first position."""
        ground = bytes((self.seed >> shift & 0x7F) for shift in (0, 8, 16))
        share = 0.5 + 0.4 * max(-1.0, min(1.0, self.qpos[0] if self.qpos else 0.0))
        bar = max(1, min(width, int(share * width)))
        lit = b"\xff\xff\xff" * bar + ground * (width - bar)
        return b"".join(lit if height // 3 <= y < height // 3 * 2 + 1 else ground * width for y in range(height))


if __name__ == "__main__":
    main("mock", ToyWorld)
