"""Chromium on one screen, told where to go over a pipe (the DevTools protocol), so that it listens on no port."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

from processes import Children, DesktopError

# Time for Chromium to show its first window: seconds on a busy machine, at most this.
START_LIMIT_S = 40.0
# Time for a page to load; one that is slower goes on loading, and `open` says so.
LOAD_LIMIT_S = 15.0
# Time for Chromium to answer anything else, and to paint a page that has loaded.
ANSWER_LIMIT_S = 10.0
PAINT_LIMIT_S = 2.0
# Longest address (a `data:` one carries the page), and longest message of Chromium.
URL_CHARS = 100_000
MESSAGE_BYTES = 16 * 1024 * 1024

FLAGS = [
    "--no-sandbox",               # it needs user namespaces, which containers rarely have; and root cannot have it
    "--test-type",                # no warning bar about that
    "--disable-gpu",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--disable-breakpad", "--disable-features=Translate,MediaRouter,OptimizationHints",
    "--no-first-run", "--no-default-browser-check", "--disable-search-engine-choice-screen",
    "--hide-crash-restore-bubble", "--noerrdialogs", "--mute-audio",
    "--password-store=basic",     # no key ring of the machine
    "--force-device-scale-factor=1", "--log-level=3", "--remote-debugging-pipe",
]


def checked(url: str) -> str:
    """The address, if `open` may go there."""
    if len(url) > URL_CHARS:
        raise DesktopError(f"the address has {len(url)} characters: the limit is {URL_CHARS}")
    scheme = re.match(r"([a-z][a-z0-9+.-]*):", url, re.IGNORECASE)
    name = scheme[1].lower() if scheme else ""
    if name == "file":
        raise DesktopError("file: addresses are refused: they would show this machine's files to whoever drives the "
                           "desktop. Serve the folder over http, or use a data: address")
    if name == "data" or url == "about:blank":
        return url
    if name not in ("http", "https"):
        raise DesktopError(f"cannot open {url!r:.80}: an address must begin with http://, https:// or data:, or be about:blank")
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    if not host:
        raise DesktopError(f"cannot open {url!r:.80}: it names no host. Write it as in http://127.0.0.1:8000/page")
    return url


class Gone(DesktopError):
    """Chromium has ended."""


class Browser:
    """Not for several threads at once."""

    def __init__(self, children: Children, env: dict[str, str], profile: Path, width: int, height: int) -> None:
        self.children, self.env = children, env
        self.command = ["chromium", *FLAGS, f"--user-data-dir={profile}", "--window-position=0,0",
                        f"--window-size={width},{height}", "about:blank"]
        self.pid: int | None = None
        self.pipe: tuple[int, int] | None = None
        self.received = b""
        self.asked = 0

    def start(self) -> None:
        """Returns when it answers, with its first page."""
        self._close_pipe()
        if self.pid is not None and not self.children.has_ended(self.pid):
            # It is closing. A second one would leave its work to this one, as they have one profile.
            os.kill(self.pid, signal.SIGKILL)
            self.children.wait(self.pid)
        their_reader, writer = os.pipe()
        reader, their_writer = os.pipe()
        self.received, self.pipe = b"", (reader, writer)
        try:
            self.pid = self.children.start(self.command, self.env, {3: their_reader, 4: their_writer})
        finally:
            os.close(their_reader)
            os.close(their_writer)
        deadline = time.monotonic() + START_LIMIT_S
        try:
            while not self._pages(deadline):
                if time.monotonic() > deadline:
                    raise TimeoutError
                time.sleep(0.02)
        except TimeoutError:
            self._close_pipe()
            raise DesktopError(f"Chromium has shown no page within {START_LIMIT_S:g} s: see the log") from None
        except Gone:
            raise DesktopError("Chromium ended as soon as it was started: it says why in the log") from None

    def open(self, url: str) -> str:
        """
        Loads a page in a new tab; when it is there, the other tabs are closed, so that their number is bounded. Says
        what came of it. If it cannot be loaded the other tabs stay.
        """
        url = checked(url)
        if self.pid is None or self.children.has_ended(self.pid):
            self.start()  # somebody closed it, or it crashed
        try:
            return self._open(url)
        except Gone:
            self.start()
            return self._open(url)

    def settle(self) -> None:
        """
        Returns when Chromium has seen what was sent to its window before, such as a changed keyboard: it reads that in
        the thread that answers here, but over several connections, so the first answer may come between two of them.
        """
        try:
            if self.pipe is not None:
                for _ in range(2):
                    self._ask("Browser.getVersion")
        except (DesktopError, TimeoutError):
            pass  # it has ended, or hangs: what is typed is for another window, or for nobody

    def _open(self, url: str) -> str:
        others = self._pages()
        try:
            page = self._ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        except DesktopError:
            raise self._gone() from None  # it is closing, or as good as gone
        try:
            session = self._ask("Target.attachToTarget", {"targetId": page, "flatten": True})["sessionId"]
            self._ask("Page.enable", session=session)
            deadline = time.monotonic() + LOAD_LIMIT_S
            loaded: list[bool] = []
            on_event = lambda message: loaded.append(True) if message.get("method") == "Page.loadEventFired" else None
            try:
                answer = self._ask("Page.navigate", {"url": url}, session, deadline, on_event)
            except TimeoutError:
                answer = {}  # not even the first byte has come
            if answer.get("errorText"):
                raise DesktopError(f"cannot open {url!r:.80}: {answer['errorText']}. Is the address right, and does the "
                                   "server answer? (A download is not a page.)")
            while not loaded and (message := self._receive(deadline)) is not None:
                on_event(message)
        except (DesktopError, TimeoutError):
            self._close_page(page)
            raise
        for other in others:
            self._close_page(other)
        while set(others) & set(self._pages()) and time.monotonic() < deadline:
            time.sleep(0.02)
        if loaded:
            self._paint(session)
        self._ask("Target.detachFromTarget", {"sessionId": session})
        return "loaded" if loaded else f"still loading after {LOAD_LIMIT_S:g} s: take a screenshot later"

    def _paint(self, session: str) -> None:
        """
        Returns when a page is on the screen, or will not be soon (a dialog holds it up). Chromium drops input before it
        has word of the first paint, of which a page that is blank has none.
        """
        paint = """new Promise(done => {
            const limit = performance.now() + 500;
            const look = () => location.href === 'about:blank' || performance.getEntriesByType('paint').length
                || performance.now() > limit ? done() : requestAnimationFrame(look);
            requestAnimationFrame(() => requestAnimationFrame(look));
        })"""
        try:
            self._ask("Runtime.evaluate", {"expression": paint, "awaitPromise": True}, session,
                      time.monotonic() + PAINT_LIMIT_S)
        except (DesktopError, TimeoutError):
            if self.children.has_ended(self.pid):
                raise

    def _pages(self, deadline: float | None = None) -> list[str]:
        targets = self._ask("Target.getTargets", deadline=deadline)["targetInfos"]
        return [target["targetId"] for target in targets if target["type"] == "page"]

    def _close_page(self, page: str) -> None:
        try:
            self._ask("Target.closeTarget", {"targetId": page})
        except Gone:
            raise
        except (DesktopError, TimeoutError):
            pass  # closed by itself meanwhile

    # The DevTools protocol: JSON with a zero byte at its end, both ways.

    def _ask(self, method, params=None, session=None, deadline=None, on_event=None) -> dict:
        """One question and its answer. DesktopError if it is refused, TimeoutError if none comes in time."""
        self.asked += 1
        question = {"id": self.asked, "method": method, "params": params or {}}
        if session:
            question["sessionId"] = session
        deadline = deadline or time.monotonic() + ANSWER_LIMIT_S
        self._send(json.dumps(question).encode() + b"\0", deadline)
        while (message := self._receive(deadline)) is not None:
            if message.get("id") == self.asked:
                if "error" in message:
                    raise DesktopError(f"Chromium refused {method}: {message['error'].get('message', 'no reason given')}")
                return message["result"]
            if on_event:
                on_event(message)
        raise TimeoutError(f"Chromium has not answered {method} in time: see the log")

    def _send(self, data: bytes, deadline: float) -> None:
        _, writer = self._pipe()
        os.set_blocking(writer, False)
        while data:
            if not select.select([], [writer], [], max(0.0, deadline - time.monotonic()))[1]:
                self._close_pipe()  # half a message is in it
                raise Gone("Chromium no longer reads: it was closed; try again")
            try:
                data = data[os.write(writer, data):]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._gone() from None

    def _receive(self, deadline: float) -> dict | None:
        """The next message; None if none comes in time."""
        reader, _ = self._pipe()
        while b"\0" not in self.received:
            if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            data = os.read(reader, 1 << 16)
            if not data or len(self.received) + len(data) > MESSAGE_BYTES:
                raise self._gone()
            self.received += data
        message, _, self.received = self.received.partition(b"\0")
        return json.loads(message)

    def _pipe(self) -> tuple[int, int]:
        if self.pipe is None:
            raise self._gone()
        return self.pipe

    def _gone(self) -> Gone:
        self._close_pipe()
        return Gone("Chromium has ended: `open` starts it again")

    def _close_pipe(self) -> None:
        """Chromium ends by itself when its pipe is closed."""
        if self.pipe is not None:
            os.close(self.pipe[0])
            os.close(self.pipe[1])
            self.pipe = None
