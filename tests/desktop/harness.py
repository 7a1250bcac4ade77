"""What both suites share: counting checks, finding every process of a desktop, reading screenshots."""

from __future__ import annotations

import os
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/desktop"
# Inherited by everything that a test starts.
MARK = "OSTLER_TEST_MARK"

T = TypeVar("T")
Colour = tuple[int, int, int]


class Count:
    """Checks that passed and failed, each told as it comes."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def check(self, what: str, test: Callable[[], object]) -> bool:
        """Runs a test: it has failed if it raises."""
        begun = time.monotonic()
        try:
            test()
        except Exception as error:
            self.failed += 1
            print(f"FAIL {what}: {type(error).__name__}: {error}", flush=True)
            return False
        self.passed += 1
        print(f"ok   {what} ({time.monotonic() - begun:.1f} s)", flush=True)
        return True

    def end(self) -> None:
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        sys.exit(1 if self.failed else 0)


def expect(truth: object, otherwise: str) -> None:
    if not truth:
        raise AssertionError(otherwise)


def until(what: str, probe: Callable[[], T], limit_s: float, every_s: float = 0.05) -> T:
    """Asks until there is something, and gives it."""
    deadline = time.monotonic() + limit_s
    while not (found := probe()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not seen within {limit_s:g} s")
        time.sleep(every_s)
    return found


# Processes

def processes(mark: str, sessions: set[int]) -> list[int]:
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


def listening(pids: list[int]) -> list[str]:
    """TCP sockets that these processes listen on."""
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found[f"socket:[{fields[9]}]"] = fields[1]
    open_now = set()
    for pid in pids:
        try:
            for descriptor in os.scandir(f"/proc/{pid}/fd"):
                open_now.add(os.readlink(descriptor.path))
        except OSError:
            continue
    return [address for socket, address in found.items() if socket in open_now]


# Pages and pictures

def page(body: str, title: str = "page") -> str:
    """The address of a page with this content."""
    return "data:text/html;charset=utf-8," + quote(f"<!doctype html><title>{title}</title>{body}")


def filled(colour: Colour, body: str = "", title: str = "page") -> str:
    return page(f"<body style='margin:0;background:rgb{colour}'>{body}", title)


@dataclass
class Picture:
    """A screenshot, read without the library that made it."""
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
        expect([kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"], f"chunks {[kind for kind, _ in chunks]}")
        width, height, *form = struct.unpack(">IIBBBBB", chunks[0][1])
        expect(form == [8, 2, 0, 0, 0], f"not 8-bit RGB: {form}")
        rows = zlib.decompress(chunks[1][1])
        expect(len(rows) == height * (3 * width + 1), f"{len(rows)} bytes of pixels for {width}x{height}")
        stride = 3 * width + 1
        expect(not any(rows[0::stride]), "a row with a filter")
        return cls(width, height, b"".join(rows[start + 1:start + stride] for start in range(0, len(rows), stride)))

    def at(self, x: int, y: int) -> Colour:
        start = 3 * (y * self.width + x)
        return self.rgb[start], self.rgb[start + 1], self.rgb[start + 2]

    @cached_property
    def colours(self) -> Counter[Colour]:
        """Every colour, and how many pixels have exactly that."""
        return Counter(zip(self.rgb[0::3], self.rgb[1::3], self.rgb[2::3]))

    def count(self, colour: Colour) -> int:
        return self.colours[colour]

    def share(self, colour: Colour) -> float:
        return self.count(colour) / (self.width * self.height)

    def middle(self, colour: Colour) -> tuple[int, int]:
        """The middle of what has this colour."""
        places = [(x, y) for y in range(self.height) for x in range(self.width) if self.at(x, y) == colour]
        expect(places, f"nothing is {colour}")
        return places[len(places) // 2]
