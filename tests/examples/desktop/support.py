"""What the suites of this folder share: pages, and who listens."""

from __future__ import annotations

import os
from urllib.parse import quote

from harness import ROOT, Colour, listened

EXAMPLE = ROOT / "examples" / "desktop"


def page(body: str, title: str = "page") -> str:
    """The address of a page with this content."""
    return "data:text/html;charset=utf-8," + quote(f"<!doctype html><title>{title}</title>{body}")


def filled(colour: Colour, body: str = "", title: str = "page") -> str:
    return page(f"<body style='margin:0;background:rgb{colour}'>{body}", title)


def listening(pids: list[int]) -> list[int]:
    """The TCP ports on which these processes listen."""
    ports, found = listened(), set()
    for pid in pids:
        try:
            for descriptor in os.scandir(f"/proc/{pid}/fd"):
                found.add(os.readlink(descriptor.path).removeprefix("socket:[").removesuffix("]"))
        except OSError:
            continue
    return [port for inode, port in ports.items() if inode in found]
