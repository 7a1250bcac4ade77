"""What the suites of this folder share: a viewer's process, and models made by code."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time

from harness import ROOT, holds

EXAMPLE = ROOT / "examples" / "mujoco"
START_S, STOP_S = 30.0, 10.0


class Program:
    """A viewer's process on a port that the kernel chose. Ended with the `with`."""

    def __init__(self, name: str, port: int = 0) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen([sys.executable, "-B", EXAMPLE / name, str(port)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE)
        try:
            self.port = self.listening()
        except BaseException:
            self.stop()
            raise
        self.took = time.monotonic() - self.started

    def listening(self) -> int:
        seen = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stderr, selectors.EVENT_READ)
            while not seen.endswith(b"\n"):
                if not selector.select(START_S) or not (more := os.read(self.process.stderr.fileno(), 4096)):
                    raise AssertionError(f"it does not listen: {seen.decode()}")
                seen += more
        holds(seen.decode(), "listening on 127.0.0.1:")
        return int(seen.decode().split("127.0.0.1:")[1].split()[0])

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(STOP_S)
        self.process.stderr.close()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def arm(links: int, colour: str = "0.9 0.3 0.1 1") -> str:
    """An arm of that many links, each with a hinge and a motor: every number of links is another model."""
    body = ""
    for at in reversed(range(links)):
        place = "0 0 2" if at == 0 else "0.3 0 0"
        body = (f'<body name="link{at}" pos="{place}"><joint name="hinge{at}" axis="0 1 0" damping="0.05"/>'
                f'<geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.05" rgba="{colour}"/>{body}</body>')
    motors = "".join(f'<motor joint="hinge{at}"/>' for at in range(links))
    return (f'<mujoco model="arm{links}"><worldbody><light pos="0 0 4"/><geom type="plane" size="3 3 0.1" rgba="0.5 0.6 0.5 1"/>'
            f'{body}</worldbody><actuator>{motors}</actuator></mujoco>')
