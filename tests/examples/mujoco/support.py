"""What the suites of this folder share: checks, processes, models made by code, and pictures looked at."""

from __future__ import annotations

import os
import selectors
import struct
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "examples" / "mujoco"
CACHE = Path(os.environ.get("OSTLER_TEST_CACHE", ROOT / ".cache"))
PYTHON = CACHE / "python-mujoco" / "bin" / "python"
START_S, STOP_S = 30.0, 10.0

T = TypeVar("T")


def use_the_example() -> None:
    """Goes on with the Python that has the example's packages, and with its modules."""
    if not PYTHON.exists():
        sys.exit(f"{PYTHON} is missing: run scripts/setup-test-deps.sh")
    if Path(sys.prefix).resolve() != PYTHON.parents[1].resolve():
        os.execv(PYTHON, [str(PYTHON), *sys.argv])
    sys.path.insert(0, str(EXAMPLE))
    sys.dont_write_bytecode = True


class Count:
    passed = 0
    failed = 0

    @classmethod
    def check(cls, what: str, test: Callable[[], object]) -> None:
        """Runs one test; it fails by an exception. What it returns is a figure to show."""
        try:
            figure = test()
        except Exception as error:
            while isinstance(error, ExceptionGroup):    # anyio wraps what happens inside a client
                error = error.exceptions[0]
            cls.failed += 1
            at = traceback.extract_tb(error.__traceback__)[-1]
            print(f"FAIL {what}: {type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})", flush=True)
        else:
            cls.passed += 1
            print(f"ok   {what}{f': {figure}' if figure is not None else ''}", flush=True)

    @classmethod
    def end(cls) -> None:
        print(f"{cls.passed} passed, {cls.failed} failed")
        sys.exit(1 if cls.failed else 0)


def same(seen: object, wanted: object, what: str = "value") -> None:
    if seen != wanted:
        raise AssertionError(f"{what}: {seen!r} instead of {wanted!r}")


def holds(text: str, *parts: str) -> None:
    for part in parts:
        if part not in text:
            raise AssertionError(f"{part!r} is not in {text!r}")


def until(what: str, look: Callable[[], T | None], seconds: float = START_S) -> T:
    """Looks again and again until there is a value."""
    deadline = time.monotonic() + seconds
    while (value := look()) is None:
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {seconds:g} s")
        time.sleep(0.01)
    return value


class Program:
    """A viewer's process on a port that the kernel chose. Ended with the `with`."""

    def __init__(self, name: str, port: int = 0) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen([PYTHON, "-B", EXAMPLE / name, str(port)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
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

    def memory(self) -> int:
        """Its proportional share of resident memory, in bytes."""
        for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the kernel does not tell")

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


def picture(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and rows of a PNG, its checksums verified."""
    same(png[:8], b"\x89PNG\r\n\x1a\n", "signature")
    at, chunks = 8, []
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at:at + 8])
        data = png[at + 8:at + 8 + length]
        same(struct.unpack(">I", png[at + 8 + length:at + 12 + length])[0], zlib.crc32(kind + data), f"checksum of {kind!r}")
        chunks.append((kind, data))
        at += 12 + length
    same([kind for kind, _ in chunks], [b"IHDR", b"IDAT", b"IEND"], "chunks")
    width, height, depth, colour = struct.unpack(">IIBB", chunks[0][1][:10])
    same((depth, colour), (8, 2), "eight bits of red, green and blue")
    rows = zlib.decompress(chunks[1][1])
    same(len(rows), height * (1 + 3 * width), "bytes of the rows")
    return width, height, rows


def colours(width: int, rows: bytes) -> int:
    """How many different pixels there are."""
    line = 1 + 3 * width
    return len({rows[at + 1 + x:at + 4 + x] for at in range(0, len(rows), line) for x in range(0, 3 * width, 3)})
