"""Two sessions, two desktops: each opens a page of its own; both screenshots are saved, and they differ."""

from __future__ import annotations

import argparse
import asyncio
import base64
import sys
from pathlib import Path
from urllib.parse import quote

from mcp import Client, MCPError

PAGES = {"red": "the first session", "blue": "the second session"}
# Longest that a demo takes, in seconds: most of it is for two desktops to start where none is ready.
LIMIT_S = 120


async def one(url: str, colour: str, text: str, folder: Path) -> bytes:
    # A client of the legacy era has a session by itself, and with it a desktop.
    async with Client(url, mode="legacy", read_timeout_seconds=LIMIT_S) as client:
        page = f"<title>{text}</title><body style='background:{colour};color:white;font:80px sans-serif'>{text}"
        await call(client, "open", url="data:text/html;charset=utf-8," + quote(page))
        picture = base64.b64decode((await call(client, "screenshot")).data)
    file = folder / f"desktop-{colour}.png"
    file.write_bytes(picture)
    print(f"{text}: {file}, {len(picture):,} bytes")
    return picture


async def call(client: Client, tool: str, **arguments: object):
    result = await client.call_tool(tool, arguments)
    if result.is_error:
        raise SystemExit(f"{tool} failed: {result.content[0].text}")
    return result.content[0]


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--url", default="http://127.0.0.1:7320/mcp/desktop", help="the server's endpoint (%(default)s)")
    options.add_argument("--folder", type=Path, default=Path("."), help="where the screenshots go (the current folder)")
    given = options.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    async with asyncio.timeout(LIMIT_S):
        shots = await asyncio.gather(*(one(given.url, colour, text, given.folder) for colour, text in PAGES.items()))
    if shots[0] == shots[1]:
        sys.exit("the two screenshots are the same: the sessions did not have desktops of their own")
    print("the two differ: each session has its own desktop")


def reason(error: BaseException) -> str:
    """What went wrong, without the groups that it is wrapped in."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (OSError, MCPError, TimeoutError, BaseExceptionGroup) as error:
        sys.exit(f"the demo failed: {reason(error)}\nIs Ostler running (`ostler up ostler.toml`)? `ostler status desktop` "
                 "and `ostler logs desktop` say more.")
