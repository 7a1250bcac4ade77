"""
An MCP server that owns one real desktop: an X server, a window manager and a browser that nobody else sees.

It answers the handshake only when all three are up and the browser shows its first page. So whoever waits for the
handshake (a client, or Ostler filling a pool) knows that the desktop is warm, and the first call costs nothing more.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import secrets
import select
import shutil
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from browser import Browser
from processes import Children, DesktopError, private_directory, remove_stale, say, start_ticks
from screen import Button, Screen, Window, wait_until

# Time for the X server to listen and for the window manager to run, each.
START_LIMIT_S = 20.0
# The screen's sizes: a screenshot of the largest is 15 MB at worst, as text in an answer.
WIDTHS, HEIGHTS = (320, 2560), (240, 1600)

T = TypeVar("T")


class Desktop:
    """Everything of one desktop. Its methods run in one thread of its own, one at a time."""

    def __init__(self, width: int, height: int) -> None:
        # One thread that lasts as long as this process: children are killed when the thread that started them ends.
        self.worker = ThreadPoolExecutor(1)
        self.size = (width, height)
        self.closing = threading.Lock()
        self.closer: int | None = None
        self.directory: Path | None = None
        self.children = Children()

    def start(self) -> None:
        self.worker.submit(self._start).result()

    def _start(self) -> None:
        self.directory = private_directory()
        for stale in remove_stale(self.directory.parent):
            say(f"removed {stale}, which a killed desktop left")
        env = self._environment(self.directory)
        number = self._start_x(self.directory, env)
        os.environ.update(env)
        self.screen = Screen(f":{number}")
        config = Path(__file__).with_name("openbox.xml")
        manager = self.children.start(["openbox", "--sm-disable", "--config-file", str(config)], env)
        self._end_with("the window manager", manager)
        root, running = self.screen.root, self.screen.display.get_atom("_NET_SUPPORTING_WM_CHECK")
        wait_until("the window manager", lambda: root.get_full_property(running, 0), START_LIMIT_S)
        self.browser = Browser(self.children, env, self.directory / "chromium", *self.size)
        self.screen.keyboard_changed = self.browser.settle
        self.browser.start()
        wait_until("the browser's window", self.screen.windows, START_LIMIT_S)
        self.browser.open("about:blank")

    def _environment(self, directory: Path) -> dict[str, str]:
        """What the programs get: all that they keep is in the private directory."""
        env = {name: value for name, value in os.environ.items()
               if not name.startswith("XDG_") and name not in ("WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS")}
        return env | dict.fromkeys(("HOME", "TMPDIR", "XDG_RUNTIME_DIR"), str(directory)) | {"XAUTHORITY": str(directory / "cookie")}

    def _start_x(self, directory: Path, env: dict[str, str]) -> int:
        """An X server that only who can read the cookie may connect to, on a display number it finds itself."""
        def field(data: bytes) -> bytes:
            return struct.pack(">H", len(data)) + data
        local = struct.pack(">H", 256) + field(socket.gethostname().encode()) + field(b"")  # any display number
        cookie = directory / "cookie"
        cookie.touch(mode=0o600)
        cookie.write_bytes(local + field(b"MIT-MAGIC-COOKIE-1") + field(secrets.token_bytes(16)))
        reader, writer = os.pipe()
        width, height = self.size
        server = self.children.start(
            ["Xvfb", "-displayfd", "3", "-screen", "0", f"{width}x{height}x24", "-auth", str(cookie),
             "-nolisten", "tcp", "-noreset"], env, {3: writer})
        os.close(writer)
        said = b""
        while not said.endswith(b"\n"):
            data = os.read(reader, 64) if select.select([reader], [], [], START_LIMIT_S)[0] else b""
            if not data:
                raise DesktopError("the X server (Xvfb) did not start: it says why in the lines above. Is /tmp/.X11-unix "
                                   "writable, and is there memory left?")
            said += data
        os.close(reader)
        (directory / "display").write_text(f"{int(said)} {server} {start_ticks(server)}")
        self._end_with("the X server", server)
        env["DISPLAY"] = f":{int(said)}"
        return int(said)

    def _end_with(self, what: str, pid: int) -> None:
        """Ends this process when that one ends: without it there is no desktop, and Ostler starts a new one."""
        def wait() -> None:
            self.children.wait(pid)
            self.close(1, f"{what} has ended by itself, and so the desktop ends")
        threading.Thread(target=wait, daemon=True).start()

    def close(self, status: int, why: str | None = None) -> None:
        """Ends this process, with everything that belongs to it."""
        me = threading.get_ident()
        if not self.closing.acquire(blocking=False):
            while self.closer != me and threading.current_thread() is threading.main_thread():
                signal.pause()  # another thread closes, and that ends the process
            return
        self.closer = me
        if why:
            say(why)
        if not self.children.end():
            say("some processes could not be ended")
        if self.directory:
            shutil.rmtree(self.directory, ignore_errors=True)
        os._exit(status)

    async def do(self, action: Callable[..., T], *args: Any) -> T:
        """Does something with the desktop, after what was asked for before."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self.worker, action, *args)
        except (DesktopError, TimeoutError) as error:
            raise ToolError(str(error)) from None


def tools(desktop: Desktop) -> MCPServer:
    width, height = desktop.size
    server = MCPServer("desktop", instructions=(
        f"A desktop of your own, {width} x {height} pixels, with a browser. Nobody else sees it or changes it. Input is "
        "sent at once; what comes of it is there a moment later, so look again if a screenshot seems too early."))

    @server.tool(structured_output=False)
    async def screenshot() -> Image:
        """What the screen shows now, as a PNG."""
        return Image(data=await desktop.do(desktop.screen.screenshot), format="png")

    @server.tool(structured_output=False)
    async def click(x: int, y: int, button: Button = "left", count: int = 1) -> str:
        """Clicks at a pixel of the screen, counted from its top left. Buttons: left, middle, right. Count: 1 to 3."""
        await desktop.do(desktop.screen.click, x, y, button, count)
        return f"clicked at ({x}, {y})"

    @server.tool(name="type", structured_output=False)
    async def type_text(text: str) -> str:
        """Types text where the focus is. A line end is Return."""
        await desktop.do(desktop.screen.type, text)
        return f"typed {len(text)} characters"

    @server.tool(structured_output=False)
    async def press(key: str) -> str:
        """Presses a key, such as enter, esc, pagedown, f5, a, or with others held: ctrl+shift+t."""
        await desktop.do(desktop.screen.press, key)
        return f"pressed {key}"

    @server.tool(name="open", structured_output=False)
    async def open_page(url: str) -> str:
        """Opens a page in the browser (http:, https:, data: or about:blank) in place of those that are open."""
        return await desktop.do(desktop.browser.open, url)

    @server.tool()
    async def windows() -> list[Window]:
        """The windows on the screen: their titles, places and sizes."""
        return await desktop.do(desktop.screen.windows)

    return server


def size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (WIDTHS[0] <= width <= WIDTHS[1] and HEIGHTS[0] <= height <= HEIGHTS[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write it as 1280x800, from {WIDTHS[0]}x{HEIGHTS[0]} "
                                         f"to {WIDTHS[1]}x{HEIGHTS[1]}")
    return width, height


def main() -> None:
    options = argparse.ArgumentParser(description="An MCP server with a desktop of its own, over standard input and output.")
    options.add_argument("--size", type=size, default=(1280, 800), metavar="WIDTHxHEIGHT", help="of the screen (1280x800)")
    desktop = Desktop(*options.parse_args().size)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda number, _: desktop.close(128 + number))
    try:
        desktop.start()
        tools(desktop).run()
    except DesktopError as error:
        desktop.close(1, str(error))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        desktop.close(1)
    desktop.close(0)


if __name__ == "__main__":
    main()
