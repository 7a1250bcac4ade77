"""The desktop's MCP server, tool by tool, on real desktops and without Ostler: see ../README.md."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mcp import Client, StdioServerParameters

from harness import MARK, Colour, Picture, check, end, expect, processes, until
from support import EXAMPLE, filled, listening, page

START_S, ANSWER_S, SEEN_S = 60.0, 25.0, 10.0
# After the end of input or a signal, everything must be gone within this (the promise is 2 s, on a busy machine more).
END_S = 6.0
WIDTH, HEIGHT = 800, 600
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
# The part of the screen that the browser's own bars leave to a page.
MOST = 0.7

folder = Path(tempfile.mkdtemp(prefix="dt-"))
mark = str(uuid.uuid4())
sessions: set[int] = set()


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "TMPDIR": str(folder), MARK: mark}


class Desktop:
    """A desktop and a client of it, which speaks over its standard input and output."""

    def __init__(self) -> None:
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, str(EXAMPLE / "desktop.py"), "--size", f"{WIDTH}x{HEIGHT}"], env=environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, start_new_session=True, bufsize=0)
        self.pid = self.process.pid
        sessions.add(self.pid)
        self.received, self.asked = b"", 0
        self.send({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}})

    def ready(self) -> Desktop:
        self.answer(0, START_S)
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return self

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    def send(self, message: dict) -> None:
        self.process.stdin.write(json.dumps(message).encode() + b"\n")

    def answer(self, number: int, limit_s: float) -> dict:
        deadline = time.monotonic() + limit_s
        while True:
            while b"\n" not in self.received:
                late = not select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]
                data = b"" if late else os.read(self.process.stdout.fileno(), 1 << 16)
                expect(data, f"{f'no answer within {limit_s:g} s' if late else 'the server has ended'}:\n{self.said()}")
                self.received += data
            line, _, self.received = self.received.partition(b"\n")
            message = json.loads(line)
            if message.get("id") == number:
                return message

    def request(self, method: str, params: dict) -> dict:
        self.asked += 1
        self.send({"jsonrpc": "2.0", "id": self.asked, "method": method, "params": params})
        return self.answer(self.asked, ANSWER_S)

    def call(self, tool: str, **arguments: object) -> dict:
        """What a tool gives, or the error that it tells, as {"isError": true, ...}."""
        answer = self.request("tools/call", {"name": tool, "arguments": arguments})
        if "error" in answer:
            return {"isError": True, "content": [{"text": answer["error"]["message"]}]}
        return answer["result"]

    def do(self, tool: str, **arguments: object) -> str:
        result = self.call(tool, **arguments)
        expect(not result.get("isError"), f"{tool} failed: {result['content'][0].get('text')}")
        return result["content"][0].get("text", "") if result["content"] else ""

    def refused(self, tool: str, *words: str, **arguments: object) -> None:
        result = self.call(tool, **arguments)
        text = result["content"][0].get("text", "")
        expect(result.get("isError"), f"{tool} {str(arguments):.80} was not refused: {text}")
        for word in words:
            expect(word in text, f"the refusal of {tool} does not say {word!r}: {text}")

    def picture(self) -> Picture:
        [content] = self.call("screenshot")["content"]
        expect(content["type"] == "image" and content["mimeType"] == "image/png", f"{str(content):.200}")
        return Picture.read(base64.b64decode(content["data"], validate=True))

    def titles(self) -> list[str]:
        return [window["title"].removesuffix(" - Chromium")
                for window in self.call("windows")["structuredContent"]["result"]]

    def shows(self, colour: Colour) -> Picture:
        return until(f"a page of {colour}", lambda: one if (one := self.picture()).share(colour) > MOST else None, SEEN_S)

    def is_titled(self, title: str) -> None:
        try:
            until("title", lambda: self.titles() == [title], SEEN_S)
        except AssertionError:
            raise AssertionError(f"the titles are {self.titles()}, not {title!r}") from None

    def tree(self) -> list[int]:
        return processes(str(uuid.uuid4()), {self.pid})  # by its POSIX session alone

    def directory(self) -> Path:
        [found] = folder.glob(f"ostler-desktop-{self.pid}-*")
        return found

    def display(self) -> tuple[int, int]:
        """The display's number and the pid of its X server."""
        number, pid, _ = (self.directory() / "display").read_text().split()
        return int(number), int(pid)

    def ended(self, status: int) -> None:
        """It has ended with this status, and nothing of it is left."""
        expect(self.process.wait(END_S) == status, f"exit status {self.process.returncode}, not {status}:\n{self.said()}")
        expect(not self.tree(), f"processes {self.tree()} are left")
        left = list(folder.glob(f"ostler-desktop-{self.pid}-*"))
        expect(not left, f"{left} is left")


def field(extra: str = "") -> str:
    """A page with one field that has the focus; its title is what the field holds."""
    return page(f"<body><input id=f autofocus oninput='document.title=f.value || `empty`' {extra}><script>f.focus()</script>", "empty")


# One desktop, tool by tool

def lists_its_tools(one: Desktop) -> None:
    names = sorted(tool["name"] for tool in one.request("tools/list", {})["result"]["tools"])
    expect(names == ["click", "open", "press", "screenshot", "type", "windows"], f"{names}")


def is_warm(one: Desktop) -> None:
    expect(one.titles() == ["about:blank"], f"windows {one.titles()}")
    expect(one.picture().share((255, 255, 255)) > MOST, "no blank page")
    [window] = one.call("windows")["structuredContent"]["result"]
    expect((window["x"], window["y"], window["width"], window["height"]) == (0, 0, WIDTH, HEIGHT), f"{window}")


def takes_screenshots(one: Desktop) -> None:
    picture = one.picture()
    expect((picture.width, picture.height) == (WIDTH, HEIGHT), f"{picture.width}x{picture.height}")


def opens_pages(one: Desktop) -> None:
    for colour in (RED, GREEN, BLUE):
        expect(one.do("open", url=filled(colour)) == "loaded", "not loaded")
        picture = one.shows(colour)
        expect(picture.at(WIDTH // 2, HEIGHT - 50) == colour, f"{picture.at(WIDTH // 2, HEIGHT - 50)}")
        for other in {RED, GREEN, BLUE} - {colour}:
            expect(picture.share(other) < 0.01, f"there is {other} on a page of {colour}")


def opens_http(one: Desktop, site: str) -> None:
    one.do("open", url=f"{site}/yellow")
    one.shows(YELLOW)
    one.is_titled("served")


def keeps_the_page_when_open_fails(one: Desktop) -> None:
    one.do("open", url=filled(GREEN, title="kept"))
    with socket.socket() as closed:  # a port that nobody listens on, and that nobody else gets
        closed.bind(("127.0.0.1", 0))
        one.refused("open", "ERR_CONNECTION_REFUSED", "127.0.0.1", url=f"http://127.0.0.1:{closed.getsockname()[1]}/")
    one.shows(GREEN)
    one.is_titled("kept")


def types(one: Desktop) -> None:
    one.do("open", url=field())
    text = "Hello, World! ~{}|\"'<>?/\\ 0123456789 ^_`@#$%&*()-+=[];:,."
    one.do("type", text=text)
    one.is_titled(text)


def types_what_no_key_has(one: Desktop) -> None:
    one.do("open", url=field())
    # More characters than there are spare keys, so that keys are used again.
    alphabets = ["äöüßéèñçåøæœ€£µ", "αβγδεζηθικλμνξοπρστυφχψω", "абвгдежзийклмнопрстуфхцчшщъыьэюя",
                 "աբգդեզէըթժիլխծկհձղճմյնշ", "漢字仮名交文日本語", "ăâîșțłżźćńęąśőűřěščžýáí", "😀🎉🚀"]
    expect(len(set("".join(alphabets))) > 110, "too few characters")
    for text in [*alphabets, alphabets[0]]:
        one.do("press", key="ctrl+a")
        one.do("type", text=text)
        one.is_titled(text)


def types_long_text(one: Desktop) -> None:
    one.do("open", url=page("<textarea id=f autofocus rows=10 cols=60 oninput='clearTimeout(self.rest); rest = setTimeout(() => document.title = f.value.length + `:` + f.value.slice(-2).trim() + `:`, 100)'></textarea><script>f.focus()</script>"))
    one.do("type", text="word \n" * 333 + "e\n")
    one.is_titled("2000:e:")


def presses(one: Desktop) -> None:
    one.do("open", url=page("<body><script>onkeydown = event => { document.title = [event.ctrlKey && 'c', event.shiftKey && 's', event.altKey && 'a', event.key]"
                            ".filter(Boolean).join(' '); event.preventDefault() }</script>"))
    for key, seen in {"enter": "Enter", "Return": "Enter", "esc": "Escape", "PageDown": "PageDown", "f2": "F2", "a": "a", "A": "s A",
                      "shift+a": "s A", "ctrl+k": "c k", "ctrl+shift+Left": "c s ArrowLeft", "+": "s +", "ctrl++": "c s +",
                      "Delete": "Delete", "alt+x": "a x"}.items():
        one.do("press", key=key)
        one.is_titled(seen)
    one.do("open", url=field())
    for key in ("x", "space", "é", "ж"):
        one.do("press", key=key)
    one.is_titled("x éж")


def clicks(one: Desktop) -> None:
    one.do("open", url=page("<body><button id=b style='position:fixed;left:40%;top:50%;width:120px;height:60px;border:0;background:rgb(1,200,3)'></button><script>"
                            "b.onclick = () => document.title = 'clicked'; b.ondblclick = () => document.title = 'twice';"
                            "onclick = event => { if (event.detail == 3) document.title = 'thrice' };"
                            "b.onauxclick = event => { if (event.button == 1) document.title = 'middle' };"
                            "b.oncontextmenu = event => { document.title = 'right'; event.preventDefault() }</script>"))
    x, y = until("the button", lambda: one.picture().count((1, 200, 3)) > 1000, SEEN_S) and one.picture().middle((1, 200, 3))
    one.do("click", x=x, y=y)
    one.is_titled("clicked")
    one.do("click", x=x, y=y, button="right")
    one.is_titled("right")
    one.do("click", x=x, y=y, button="middle")
    one.is_titled("middle")
    one.do("click", x=x - 100, y=y)
    one.do("click", x=x, y=y, count=2)
    one.is_titled("twice")
    one.do("click", x=x - 100, y=y)  # beside it; and further clicks at the same place would count on from two
    one.do("click", x=x, y=y, count=3)
    one.is_titled("thrice")
    one.do("click", x=x - 100, y=y)
    one.do("click", x=WIDTH - 1, y=HEIGHT - 1)  # the last pixel
    one.is_titled("thrice")


def refuses_bad_input(one: Desktop) -> None:
    one.do("open", url=filled(GREEN, title="untouched"))
    for x, y in ((WIDTH, 0), (0, HEIGHT), (-1, 0), (0, -1), (10 ** 30, 5)):
        one.refused("click", "off the screen", str(WIDTH - 1), x=x, y=y)
    one.refused("click", "'left', 'middle' or 'right'", x=1, y=1, button="fourth")
    one.refused("click", "1 to 3", x=1, y=1, count=0)
    one.refused("click", "1 to 3", x=1, y=1, count=4)
    one.refused("click", "x", x="here", y=1)
    one.refused("click", "y", x=1)
    one.refused("press", "did you mean enter", key="entr")
    one.refused("press", "no key", key="")
    one.refused("press", "no modifier", "ctrl", key="hyper+x")
    one.refused("press", "limit is 64", key="x" * 65)
    one.refused("type", "limit is 2000", text="x" * 2001)
    one.refused("type", "U+0007", text="bell \a")
    one.refused("type", "U+007F", text="\x7f")
    one.refused("type", "not on the keyboard", text="".join(map(chr, range(0x4E00, 0x4E00 + 61))))
    for url in ("file:///etc/passwd", "FILE:///etc/passwd"):
        one.refused("open", "file: addresses are refused", url=url)
    for url in (" file:///etc/passwd", "view-source:file:///etc/passwd", "javascript:document.title='no'", "chrome://settings",
                "about:config", "filesystem:http://x/", "blob:null/1", "/etc/passwd", "", "ftp://127.0.0.1/"):
        one.refused("open", "must begin with http", url=url)
    for url in ("http://", "https:///path", "http://[::1"):
        one.refused("open", "names no host", url=url)
    one.refused("open", "limit is 100000", url="data:text/html," + "x" * 100_000)
    one.refused("fly", "fly")
    one.is_titled("untouched")
    one.shows(GREEN)


def survives_pages_that_hold_on(one: Desktop) -> None:
    """A dialog, a question before leaving, a page that never rests: the next one is opened all the same."""
    for script in ("setTimeout(() => alert('wait'), 0)", "onbeforeunload = event => event.preventDefault()",
                   "onload = () => setTimeout(() => { while (true); }, 50)"):
        one.do("open", url=filled(RED, f"<script>{script}</script>", "held"))
        one.do("press", key="a")  # a page may only ask before leaving once somebody did something
        one.do("open", url=filled(BLUE, title="free"))
        one.is_titled("free")
        one.shows(BLUE)


def starts_the_browser_again(one: Desktop) -> None:
    one.do("press", key="ctrl+w")
    until("the browser's end", lambda: one.titles() == [], SEEN_S)
    one.do("open", url=filled(YELLOW, title="again"))
    one.is_titled("again")
    one.shows(YELLOW)


def listens_nowhere(one: Desktop) -> None:
    found = listening(one.tree())
    expect(not found, f"listens on {found}")


def refuses_who_has_no_cookie(one: Desktop) -> None:
    number, _ = one.display()
    hello = b"l\0" + (11).to_bytes(2, "little") + bytes(8)
    for cookie in (b"", b"MIT-MAGIC-COOKIE-1"):
        with socket.socket(socket.AF_UNIX) as x:
            x.connect(f"/tmp/.X11-unix/X{number}")
            data = (cookie + bytes(-len(cookie) % 4) + bytes(16)) if cookie else b""
            x.sendall(hello[:6] + len(cookie).to_bytes(2, "little") + (16 if cookie else 0).to_bytes(2, "little") + bytes(2) + data)
            x.settimeout(ANSWER_S)
            expect(x.recv(1) == b"\0", "the X server let somebody in without the cookie")
    for path in (one.directory(), one.directory() / "cookie"):
        expect(path.stat().st_mode & 0o077 == 0, f"{path} can be read by others: {path.stat().st_mode:o}")


# Two desktops

def never_show_each_other(one: Desktop, other: Desktop) -> None:
    expect(one.display()[0] != other.display()[0], "one display for both")
    for mine, theirs in ((RED, BLUE), (BLUE, RED)):
        one.do("open", url=filled(mine, title=f"one {mine}"))
        other.do("open", url=filled(theirs, title=f"other {theirs}"))
        for picture, own, strange in ((one.shows(mine), mine, theirs), (other.shows(theirs), theirs, mine)):
            expect(picture.count(strange) == 0, f"{picture.count(strange)} pixels of {strange} on the desktop of {own}")
        expect((one.titles(), other.titles()) == ([f"one {mine}"], [f"other {theirs}"]), f"{one.titles()} {other.titles()}")
    one.do("open", url=field())
    other.do("open", url=field())
    one.do("type", text="for one")
    other.do("type", text="for other")
    one.is_titled("for one")
    other.is_titled("for other")


def tells_of_a_slow_page(other: Desktop, site: str) -> None:
    text = other.do("open", url=f"{site}/never")
    expect("still loading" in text, text)
    other.do("open", url=filled(GREEN))
    other.shows(GREEN)


# The end, and what is left

def serves_both_eras() -> None:
    async def modern() -> None:
        server = StdioServerParameters(command=sys.executable, args=[str(EXAMPLE / "desktop.py")], env=environment())
        async with asyncio.timeout(START_S), Client(server, mode="auto") as client:
            expect(client.protocol_version == "2026-07-28", f"it speaks {client.protocol_version}")
            [content] = (await client.call_tool("screenshot", {})).content
            picture = Picture.read(base64.b64decode(content.data))
            expect((picture.width, picture.height) == (1280, 800), "not the default size")
    asyncio.run(modern())


def ends_with_its_input(one: Desktop) -> None:
    number, _ = one.display()
    one.process.stdin.close()
    one.ended(0)
    expect(not Path(f"/tmp/.X{number}-lock").exists(), "the X server's lock is left")


def ends_at_sigterm(one: Desktop) -> None:
    one.process.send_signal(signal.SIGTERM)
    one.ended(128 + signal.SIGTERM)


def ends_at_sigterm_while_it_starts() -> None:
    one = Desktop()
    until("a child", lambda: len(one.tree()) > 1, START_S)
    one.process.send_signal(signal.SIGTERM)
    one.ended(128 + signal.SIGTERM)


def ends_with_its_x_server(one: Desktop) -> None:
    os.kill(one.display()[1], signal.SIGKILL)
    one.ended(1)
    expect("has ended by itself" in one.said(), one.said())  # X, or the window manager that notices it first


def takes_all_along_when_killed(one: Desktop) -> Path:
    directory = one.directory()
    one.process.kill()
    one.process.wait(END_S)
    until("the end of its processes", lambda: not one.tree(), END_S)
    expect(directory.exists(), "who removed its directory?")
    return directory


def removes_what_a_killed_one_left(stale: Path, living: Desktop) -> None:
    parts = stale.name.split("-")
    elsewhere = folder / "-".join([*parts[:4], "1"])  # the same process of another pid namespace: cannot be seen
    others = [elsewhere, folder / "ostler-desktop-x", folder / f"ostler-desktop-{living.pid}"]
    for path in others:
        path.mkdir()
    target = folder / "target"
    target.mkdir()
    link = folder / "-".join([*parts[:3], "1", parts[4]])
    link.symlink_to(target)
    one = Desktop().ready()
    expect(not stale.exists(), f"{stale} is still there")
    for path in [*others, link, target, living.directory()]:
        expect(os.path.lexists(path), f"{path} is gone")
    for path in [*others, target]:
        path.rmdir()
    link.unlink()
    ends_with_its_x_server(one)


def says_what_is_missing() -> None:
    def run(words: str, status: int, *options: str, **changed: str) -> None:
        ended = subprocess.run([sys.executable, str(EXAMPLE / "desktop.py"), *options], env=environment() | changed,
                               stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=START_S)
        expect(ended.returncode == status and words in ended.stderr, f"{options} {changed}: {ended.returncode} {ended.stderr}")
        expect(not ended.stdout, f"it wrote to standard output: {ended.stdout}")
    run("apt-get install", 1, PATH="/nowhere")
    long = folder / ("x" * 100)
    long.mkdir()
    run("TMPDIR", 1, TMPDIR=str(long))
    long.rmdir()
    for size in ("9999x9999", "wide"):
        run("is no size", 2, "--size", size)


class Site(BaseHTTPRequestHandler):
    """A page, and one that never comes."""
    closing = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/never":
            self.closing.wait(START_S)
            return
        body = b"<title>served</title><body style='background:rgb(255,255,0)'>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    site = f"http://127.0.0.1:{http.server_address[1]}"

    check("what is missing is said, with what to do", says_what_is_missing)
    one, other = Desktop(), Desktop()
    if not (check("a desktop starts", one.ready) and check("and another beside it", other.ready)):
        return
    # The slow page is slow: it is opened beside the rest.
    slow: list[Callable[[], None]] = []
    beside = threading.Thread(target=lambda: slow.append(outcome(lambda: tells_of_a_slow_page(other, site))))
    beside.start()
    check("it has the tools it should", lambda: lists_its_tools(one))
    check("once the handshake is done the browser is there", lambda: is_warm(one))
    check("a screenshot is a PNG of the screen's size", lambda: takes_screenshots(one))
    check("a page that is opened fills the screen", lambda: opens_pages(one))
    check("a page of a web server is opened", lambda: opens_http(one, site))
    check("a page that cannot be opened leaves the last one", lambda: keeps_the_page_when_open_fails(one))
    check("text arrives as it was typed", lambda: types(one))
    check("characters that no key has arrive too", lambda: types_what_no_key_has(one))
    check("the longest text arrives", lambda: types_long_text(one))
    check("keys arrive, with others held", lambda: presses(one))
    check("a click hits what is there, with each button", lambda: clicks(one))
    check("bad input is refused and changes nothing", lambda: refuses_bad_input(one))
    check("no page can hold on to the browser", lambda: survives_pages_that_hold_on(one))
    check("a browser that was closed is started again", lambda: starts_the_browser_again(one))
    check("it listens on no port", lambda: listens_nowhere(one))
    check("nobody gets in without the cookie", lambda: refuses_who_has_no_cookie(one))
    beside.join()
    check("a page that never comes is told, and the next one opened", lambda: slow[0]())
    check("two desktops never show each other's pages or input", lambda: never_show_each_other(one, other))
    check("both eras are served", serves_both_eras)
    check("the end of input ends all of it", lambda: ends_with_its_input(one))
    check("SIGTERM while it starts ends all of it", ends_at_sigterm_while_it_starts)
    third = Desktop().ready()
    stale: list[Path] = []
    if check("SIGKILL leaves no process", lambda: stale.append(takes_all_along_when_killed(third))):
        check("the next start removes what that left, and nothing else; the end of X ends all of it",
              lambda: removes_what_a_killed_one_left(stale[0], other))
    check("SIGTERM ends all of it", lambda: ends_at_sigterm(other))
    Site.closing.set()
    http.shutdown()


def outcome(test: Callable[[], None]) -> Callable[[], None]:
    """Runs a test now, and gives what raises its error later."""
    try:
        test()
    except Exception as error:
        def failed(error: Exception = error) -> None:
            raise error
        return failed
    return lambda: None


def left_behind() -> None:
    left = processes(mark, sessions)
    end(left)
    expect(not left, f"processes {left} are left")
    expect(not list(folder.iterdir()), f"{list(folder.iterdir())} are left")


def test() -> None:
    try:
        check("the suite ran to its end", main)
    finally:
        check("nothing is left behind", left_behind)
        shutil.rmtree(folder, ignore_errors=True)
