"""What the suites of the examples share: their Python, checks, processes, pictures and a daemon."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("OSTLER_TEST_CACHE", ROOT / ".cache"))
# What is kept to be looked at: pictures.
ARTEFACTS = Path(os.environ.get("OSTLER_TEST_ARTEFACTS", ROOT / "target" / "artefacts"))
# In the environment of everything that a test starts.
MARK = "OSTLER_TEST_MARK"
# Longest for a daemon to begin, to end, to answer, and after its end for the last process to be gone.
UP_S, DOWN_S, ANSWER_S, EMPTY_S = 30.0, 120.0, 60.0, 5.0
# Between two looks at what is waited for.
LOOK_S = 0.02

PORT_TRIES = 200

T = TypeVar("T")
Colour = tuple[int, int, int]


def use(example: str) -> None:
    """Goes on with the Python that has the example's packages, with the example's modules, and so that SIGTERM cleans up."""
    python = CACHE / f"python-{example}" / "bin" / "python"
    if not python.exists():
        sys.exit(f"{python} is missing: run scripts/setup-test-deps.sh")
    if Path(sys.prefix).resolve() != python.parents[1].resolve():
        os.execv(python, [str(python), "-B", *sys.argv])
    sys.path.insert(0, str(ROOT / "examples" / example))
    sys.dont_write_bytecode = True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def artefacts(example: str) -> Path:
    """An empty folder for what is kept of this run."""
    folder = ARTEFACTS / example
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


# Checks

class Count:
    """Checks that passed and failed, each told as it comes."""
    passed = failed = 0

    @classmethod
    @contextmanager
    def told(cls, what: str) -> Iterator[list[object]]:
        """What is done within is one check: it has failed if that raises. A text that is put into the list is shown."""
        begun, figures = time.monotonic(), []
        try:
            yield figures
        except Exception as error:
            while isinstance(error, ExceptionGroup):    # anyio wraps what happens inside a client
                error = error.exceptions[0]
            cls.failed += 1
            frames = traceback.extract_tb(error.__traceback__)
            at = next((frame for frame in reversed(frames) if frame.filename != __file__), frames[-1])
            print(f"FAIL {what}: {type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})", flush=True)
        else:
            cls.passed += 1
            shown = "".join(f": {figure}" for figure in figures if isinstance(figure, str))
            print(f"ok   {what}{shown} ({time.monotonic() - begun:.1f} s)", flush=True)

    @classmethod
    def check(cls, what: str, test: Callable[[], object]) -> bool:
        """The same of a function."""
        failed = cls.failed
        with cls.told(what) as figures:
            figures.append(test())
        return cls.failed == failed

    @classmethod
    def end(cls) -> None:
        print(f"{cls.passed} passed, {cls.failed} failed", flush=True)
        sys.exit(1 if cls.failed else 0)


check = Count.check


def expect(truth: object, otherwise: str) -> None:
    if not truth:
        raise AssertionError(otherwise)


def same(seen: object, wanted: object, what: str = "value") -> None:
    expect(seen == wanted, f"{what}: {seen!r} instead of {wanted!r}")


def holds(text: str, *parts: str) -> None:
    for part in parts:
        expect(part in text, f"{part!r} is not in {text!r}")


def until(what: str, look: Callable[[], T | None], seconds: float = UP_S) -> T:
    """Looks again and again until there is something, and gives it."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        expect(time.monotonic() < deadline, f"no {what} within {seconds:g} s")
        time.sleep(LOOK_S)
    return found


# Processes

def processes(mark: str, sessions: Iterable[int] = ()) -> list[int]:
    """
    Every live process with this mark in its environment, or in one of these POSIX sessions: Chromium's renderers
    overwrite their environment with a title. What such a process started is found by its parent.
    """
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            if fields[0] in "ZX":
                continue  # dead already, it waits for its parent only
            parents[int(entry)] = int(fields[1])
            environment = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if int(fields[3]) in sessions or f"{MARK}={mark}".encode() in environment:
            found.add(int(entry))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def end(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def memory(pids: Iterable[int]) -> int:
    """The share of resident memory that is theirs, in bytes: of what processes share, each has its part."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024
    return total


# Ports

def free_ports(count: int) -> range:
    """So many in a row that nobody listens on, below those that the kernel gives to whoever connects."""
    below = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(PORT_TRIES):
        found = range(first := random.randrange(8001, below - count), first + count)
        if not set(found).intersection(listened().values()):
            return found
    raise AssertionError(f"no {count} ports in a row are free between 8001 and {below} (PORT_TRIES)")


def listened() -> dict[str, int]:
    """The TCP sockets on which anybody listens, by inode, and their ports."""
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found[fields[9]] = int(fields[1].rpartition(":")[2], 16)
    return found


# Pictures

@dataclass
class Picture:
    """A PNG, read without the library that made it."""
    width: int
    height: int
    rgb: bytes

    @classmethod
    def read(cls, data: bytes) -> Picture:
        expect(data.startswith(b"\x89PNG\r\n\x1a\n"), "no PNG")
        at, chunks = 8, []
        while at < len(data):
            length, kind = struct.unpack_from(">I4s", data, at)
            content = data[at + 8:at + 8 + length]
            crc, = struct.unpack_from(">I", data, at + 8 + length)
            expect(crc == zlib.crc32(kind + content), f"the checksum of chunk {kind!r} is wrong")
            chunks.append((kind, content))
            at += 12 + length
        same([kind for kind, _ in chunks], [b"IHDR", b"IDAT", b"IEND"], "chunks")
        width, height, *form = struct.unpack(">IIBBBBB", chunks[0][1])
        same(form, [8, 2, 0, 0, 0], "form of the pixels (8-bit RGB)")
        rows = zlib.decompress(chunks[1][1])
        stride = 3 * width + 1
        same(len(rows), height * stride, f"bytes of the pixels of {width}x{height}")
        expect(not any(rows[0::stride]), "a row with a filter")
        return cls(width, height, b"".join(rows[start + 1:start + stride] for start in range(0, len(rows), stride)))

    def at(self, x: int, y: int) -> Colour:
        start = 3 * (y * self.width + x)
        return self.rgb[start], self.rgb[start + 1], self.rgb[start + 2]

    @cached_property
    def colours(self) -> Counter[Colour]:
        """Every colour, and how many pixels have exactly that. Most rows of a page are alike, and counted once."""
        stride, found = 3 * self.width, Counter()
        for row, times in Counter(self.rgb[start:start + stride] for start in range(0, len(self.rgb), stride)).items():
            for colour, count in Counter(zip(row[0::3], row[1::3], row[2::3])).items():
                found[colour] += count * times
        return found

    def count(self, colour: Colour) -> int:
        return self.colours[colour]

    def share(self, colour: Colour) -> float:
        return self.count(colour) / (self.width * self.height)

    def middle(self, colour: Colour) -> tuple[int, int]:
        """The middle of what has this colour."""
        places = [(x, y) for y in range(self.height) for x in range(self.width) if self.at(x, y) == colour]
        expect(places, f"nothing is {colour}")
        return places[len(places) // 2]


# Ostler

def binary() -> str:
    named = os.environ.get("OSTLER_BIN")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    candidates = [Path(named)] if named else [target / profile / "ostler" for profile in ("release", "debug")]
    for path in candidates:
        if path.exists():
            return str(path.resolve())
    sys.exit(f"error: no ostler binary (looked for {' and '.join(map(str, candidates))}): run `cargo build -p ostler`, or set OSTLER_BIN")


class Daemon:
    """
    `ostler up` with directories and a port of its own. Its servers run with this Python, `TMPDIR` and a mark. The `with`
    ends it, and whatever it left.
    """

    def __init__(self, config: Path, servers: Iterable[str], **keys: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="oe-"))
        self.tmp = self.folder / "tmp"
        self.mark = uuid.uuid4().hex
        for name in ("run", "state", "tmp"):
            (self.folder / name).mkdir(mode=0o700)
        own = {"GATEWAY__LISTEN": "127.0.0.1:0", **keys}
        for name in servers:
            own[f"SERVERS__{name.upper()}__COMMAND"] = sys.executable
            own[f"SERVERS__{name.upper()}__ENV"] = f'{{ TMPDIR = "{self.tmp}", {MARK} = "{self.mark}" }}'
        self.env = os.environ | {f"OSTLER_{key}": value for key, value in own.items()} | {
            "OSTLER_RUNTIME_DIR": str(self.folder / "run"), "OSTLER_STATE_DIR": str(self.folder / "state")}
        self.log = (self.folder / "log").open("w+b")
        self.process = subprocess.Popen([binary(), "up", config], env=self.env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                        start_new_session=True)
        try:
            self.http = until("endpoint.json", self._endpoint)
        except BaseException:
            self.kill()
            raise

    def _endpoint(self) -> str | None:
        expect(self.process.poll() is None, f"ostler has ended:\n{self.said()}")
        try:
            return json.loads((self.folder / "run" / "endpoint.json").read_text())["http"].rstrip("/")
        except (OSError, ValueError):
            return None  # not written yet

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")[-4000:]

    def get(self, target: str) -> Any:
        """What the management API answers."""
        connection = http.client.HTTPConnection("localhost", timeout=ANSWER_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(ANSWER_S)
        try:
            connection.sock.connect(str(self.folder / "run" / "api.sock"))
            connection.request("GET", target)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        same(response.status, 200, f"{target}: {text}")
        return json.loads(text)

    def pool(self, server: str) -> dict[str, int]:
        return self.get(f"/api/v1/servers/{server}")["pool"]

    def spares(self, server: str, wanted: int) -> list[int]:
        """The pids of the instances that are ready and nobody's, once there are so many."""
        def ready() -> list[int]:
            rows = self.get("/api/v1/instances")
            return [row["pid"] for row in rows if (row["server"], row["state"], row["owner"]) == (server, "ready", "nobody yet")]
        return until(f"{wanted} spares of {server}", lambda: found if len(found := ready()) == wanted else None, ANSWER_S)

    def left(self) -> list[int]:
        """What runs of all that it started, and of itself."""
        return processes(self.mark, {self.process.pid})

    def stop(self) -> None:
        """Ends it as a person would: nothing may be left, in the servers' TMPDIR neither."""
        self.process.terminate()
        same(self.process.wait(DOWN_S), 0, f"exit status of ostler:\n{self.said()}")
        self.leaves_nothing()
        same([path.name for path in self.tmp.iterdir()], [], "files in TMPDIR")

    def leaves_nothing(self) -> None:
        until("end of every process that it started", lambda: not self.left(), EMPTY_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        end(self.left())
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
