"""
Twelve sessions on five desktops, through Ostler: see README.md.

    OSTLER_BIN=... .cache/python-desktop/bin/python tests/desktop/pool.py     # needs scripts/setup-test-deps.sh

Screenshots are kept in $DESKTOP_SHOTS if that names a folder. The last line is `N passed, M failed`; the exit status is
0 when M is 0. An Ostler without pools is asked for what it has: the sessions take turns, five at a time.
"""

from __future__ import annotations

import asyncio
import base64
import colorsys
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from mcp import Client

from harness import EXAMPLE, MARK, ROOT, Colour, Count, Picture, expect, page, processes, until

SESSIONS, DESKTOPS, SPARE = 12, 5, 2
# Between two sessions that ask, so that there is no doubt who asked first.
ASK_EVERY_S = 0.2
# By how much a session that asked later may have its first screenshot earlier: desktops that become free together are
# handed out in the line's order, but answers can overtake each other.
OVERTAKE_S = 2.0
UP_S, CALL_S, TURN_S, DOWN_S, EMPTY_S, SPARE_S = 30.0, 90.0, 180.0, 60.0, 5.0, 90.0
# The part of the screen that the browser's own bars leave to a page, less what the name on it takes.
MOST = 0.6

folders: list[Path] = []
mark = str(uuid.uuid4())
posix_sessions: set[int] = set()
count = Count()
check = count.check


def binary() -> Path:
    named = os.environ.get("OSTLER_BIN")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    candidates = [Path(named)] if named else [target / profile / "ostler" for profile in ("release", "debug")]
    for path in candidates:
        if path.exists():
            return path.resolve()
    sys.exit(f"error: no ostler binary (looked for {' and '.join(map(str, candidates))}): run `cargo build -p ostler`, or set OSTLER_BIN")


def colour_of(number: int) -> Colour:
    """A colour for each session, far from the others' and from those of the browser's bars."""
    red, green, blue = colorsys.hsv_to_rgb(number / SESSIONS, 1.0, 0.55 + 0.4 * (number % 2))
    return round(255 * red), round(255 * green), round(255 * blue)


class Daemon:
    """`ostler up` with the example's own configuration, but for the port and what tests add."""

    def __init__(self) -> None:
        self.folder = folder = Path(tempfile.mkdtemp(prefix="dp-"))
        folders.append(folder)
        self.env = {**os.environ, "OSTLER_RUNTIME_DIR": str(folder / "run"), "OSTLER_STATE_DIR": str(folder / "state"),
                    "DESKTOP_PYTHON": sys.executable}
        for name in ("run", "state", "tmp"):
            (folder / name).mkdir(mode=0o700)
        self.config = folder / "ostler.toml"
        text = (EXAMPLE / "ostler.toml").read_text()
        text = text.replace("${workspaceFolder}", str(EXAMPLE)).replace('"127.0.0.1:7320"', '"127.0.0.1:0"')
        text += f'\n[servers.desktop.env]\nTMPDIR = "{folder / "tmp"}"\n{MARK} = "{mark}"\n'
        self.config.write_text(text)
        checked = self.ostler("config", "check", str(self.config))
        self.pool = "`pool` is not available" not in checked.stderr
        if not self.pool:
            self.config.write_text(re.sub(r"^pool = .*$", "", text, flags=re.M))
            checked = self.ostler("config", "check", str(self.config))
        expect(checked.returncode == 0, f"the example's configuration is refused:\n{checked.stderr}")

        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen([binary(), "up", self.config], env=self.env, stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log, start_new_session=True)
        posix_sessions.add(self.process.pid)
        endpoint = until("endpoint.json", self._endpoint, UP_S)
        self.url = f"{endpoint['http']}/mcp/desktop"

    def _endpoint(self) -> dict | None:
        expect(self.process.poll() is None, f"ostler has ended:\n{self.said()}")
        try:
            return json.loads((self.folder / "run/endpoint.json").read_text())
        except (OSError, ValueError):
            return None  # not written yet

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    def ostler(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([binary(), *words], env=self.env, capture_output=True, text=True, timeout=DOWN_S)

    def desktops(self) -> dict[int, Path]:
        """The desktops that there are now, by the pid of their server."""
        found = {}
        for path in (self.folder / "tmp").glob("ostler-desktop-*"):
            pid = int(path.name.split("-")[2])
            if Path(f"/proc/{pid}").exists():
                found[pid] = path
        return found

    def down(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(DOWN_S)


@dataclass
class Turn:
    """What one session did, and saw."""
    number: int
    asked: float = 0.0
    served: float = 0.0
    left: float = 0.0
    before: Picture | None = None
    after: Picture | None = None
    titles: list[str] = field(default_factory=list)
    title_before: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"session {self.number + 1}"

    @property
    def colour(self) -> Colour:
        return colour_of(self.number)


async def call(client: Client, tool: str, **arguments: object):
    result = await client.call_tool(tool, arguments)
    if result.is_error:
        raise AssertionError(f"{tool}: {result.content[0].text}")
    return result


async def shot(client: Client) -> tuple[bytes, Picture]:
    data = base64.b64decode((await call(client, "screenshot")).content[0].data)
    return data, Picture.read(data)


async def titles(client: Client) -> list[str]:
    found = (await call(client, "windows")).structured_content["result"]
    return [window["title"].removesuffix(" - Chromium") for window in found]


async def take(turn: Turn, url: str, shots: Path, all_there: asyncio.Barrier | None) -> None:
    """
    One session: looks at the desktop as it is handed out, opens a page of its own, looks again, and goes. The first to be
    served stay until they all are, so that as many desktops are in use at once as there are.
    """
    turn.asked = time.monotonic()
    async with Client(url, mode="legacy", read_timeout_seconds=CALL_S) as client:
        _, turn.before = await shot(client)
        turn.served = time.monotonic()
        turn.title_before = await titles(client)
        red, green, blue = turn.colour
        body = (f"<body style='margin:0;background:rgb({red},{green},{blue});color:black;font:bold 120px sans-serif;"
                f"display:grid;place-items:center;height:100vh'>{turn.name}")
        await call(client, "open", url=page(body, turn.name))
        deadline = time.monotonic() + CALL_S
        while True:
            data, turn.after = await shot(client)
            turn.titles = await titles(client)
            if turn.after.share(turn.colour) > MOST and turn.titles == [turn.name]:
                break
            expect(time.monotonic() < deadline, f"{turn.name} never saw its page: the titles are {turn.titles}")
        (shots / f"session-{turn.number + 1:02}.png").write_bytes(data)
        if all_there:
            await all_there.wait()
    turn.left = time.monotonic()


async def all_turns(daemon: Daemon, shots: Path, turns: list[Turn]) -> None:
    async with asyncio.timeout(TURN_S), asyncio.TaskGroup() as group:
        barrier = asyncio.Barrier(DESKTOPS)
        if daemon.pool:
            for turn in turns:  # all of them: Ostler keeps the line
                group.create_task(take(turn, daemon.url, shots, barrier if turn.number < DESKTOPS else None))
                await asyncio.sleep(ASK_EVERY_S)
            return
        line = asyncio.Semaphore(DESKTOPS)  # without a pool: the clients keep it

        async def in_line(turn: Turn) -> None:
            async with line:
                await take(turn, daemon.url, shots, barrier if turn.number < DESKTOPS else None)
        for turn in turns:
            group.create_task(in_line(turn))


def all_saw_their_page(turns: list[Turn]) -> None:
    for turn in turns:
        expect(turn.after and turn.after.share(turn.colour) > MOST, f"{turn.name} did not see its page")
        expect(turn.titles == [turn.name], f"{turn.name} saw windows {turn.titles}")
    seen = {turn.after.rgb for turn in turns}
    expect(len(seen) == SESSIONS, f"{SESSIONS} sessions, but {len(seen)} different screenshots")


def none_saw_another(turns: list[Turn]) -> None:
    for turn in turns:
        for picture, when in ((turn.before, "when it came"), (turn.after, "with its page open")):
            for other in turns:
                if other is not turn and picture.count(other.colour):
                    raise AssertionError(f"{turn.name} saw {picture.count(other.colour)} pixels of {other.name} {when}")


def all_began_clean(turns: list[Turn]) -> None:
    for turn in turns:
        expect(turn.title_before == ["about:blank"], f"{turn.name} was given a desktop with {turn.title_before}")
        expect(turn.before.share((255, 255, 255)) > MOST, f"{turn.name} was given a desktop that is not blank")


def at_most(turns: list[Turn], desktops: int) -> None:
    for turn in turns:
        busy = [other.name for other in turns if other.served <= turn.served < other.left]
        expect(len(busy) <= desktops, f"{len(busy)} sessions had a desktop at once: {busy}")
    most = max(sum(other.served <= turn.served < other.left for other in turns) for turn in turns)
    expect(most == desktops, f"only {most} sessions ever had a desktop at once")


def in_order(turns: list[Turn]) -> None:
    """Who asked later was not served earlier."""
    served = ", ".join(f"{turn.name} after {turn.served - turn.asked:.1f} s" for turn in sorted(turns, key=lambda one: one.served))
    for turn in turns:
        for later in turns[turn.number + 1:]:
            expect(later.served > turn.served - OVERTAKE_S, f"{later.name} was served before {turn.name}: {served}")


class Watch:
    """Counts the desktops that exist, as long as the sessions come and go."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon, self.most, self.pids = daemon, 0, set()

    async def run(self) -> None:
        while True:
            now = self.daemon.desktops()
            self.most = max(self.most, len(now))
            self.pids |= now.keys()
            await asyncio.sleep(0.1)


async def run_all(daemon: Daemon, shots: Path, turns: list[Turn]) -> Watch:
    watch = Watch(daemon)
    watching = asyncio.create_task(watch.run())
    try:
        await all_turns(daemon, shots, turns)
    finally:
        watching.cancel()
    return watch


def uses_each_once(daemon: Daemon) -> None:
    """Two sessions get the two spares, and when they have gone, clean processes have taken the place of these."""
    spares = set(until("the spares", lambda: now if len(now := daemon.desktops()) == SPARE else None, SPARE_S))

    async def one() -> float:
        begun = time.monotonic()
        async with Client(daemon.url, mode="legacy", read_timeout_seconds=CALL_S) as client:
            await shot(client)
            return time.monotonic() - begun

    async def both() -> list[float]:
        return await asyncio.gather(one(), one())
    took = asyncio.run(both())
    print(f"     from connecting to a screenshot: {', '.join(f'{one:.2f} s' for one in took)}", flush=True)
    until("clean processes for the next", lambda: not spares & daemon.desktops().keys() and len(daemon.desktops()) >= SPARE, SPARE_S)


def dies_with_the_daemon() -> None:
    """SIGKILL to the daemon, while a session has a desktop: guards end every process, those without their mark too."""
    daemon = Daemon()

    async def one() -> None:
        async with Client(daemon.url, mode="legacy", read_timeout_seconds=CALL_S) as client:
            await shot(client)
            expect(len(processes(mark, posix_sessions)) > 5, "where is the desktop?")
            daemon.process.kill()
            daemon.process.wait(DOWN_S)
            until("the end of all", lambda: not processes(mark, posix_sessions), EMPTY_S)
    try:
        asyncio.run(one())
    except* Exception as errors:  # the client finds its connection cut; a failed expectation counts
        failed, _ = errors.split(AssertionError)
        if failed:
            raise failed.exceptions[0]


def main() -> None:
    daemon = Daemon()
    shots = Path(os.environ.get("DESKTOP_SHOTS") or daemon.folder / "shots")
    shots.mkdir(parents=True, exist_ok=True)
    if not daemon.pool:
        print("     this Ostler has no pools: the clients take turns, and what only a pool can do is not looked at", flush=True)
    turns = [Turn(number) for number in range(SESSIONS)]
    watched: list[Watch] = []
    try:
        if daemon.pool:
            check("sessions get the spares, and what was used is not used again", lambda: uses_each_once(daemon))
        if check(f"{SESSIONS} sessions have a desktop each", lambda: watched.append(asyncio.run(run_all(daemon, shots, turns)))):
            waits = sorted(turn.served - turn.asked for turn in turns)
            print(f"     from asking to the first screenshot: {waits[0]:.1f} s to {waits[-1]:.1f} s; at most {watched[0].most} desktops, "
                  f"{len(watched[0].pids)} in all", flush=True)
            check("each saw its own page, and all screenshots differ", lambda: all_saw_their_page(turns))
            check("none saw a pixel of another's page, before or after it opened its own", lambda: none_saw_another(turns))
            check("each was given a clean desktop", lambda: all_began_clean(turns))
            check(f"{DESKTOPS} had a desktop at once, and never more", lambda: at_most(turns, DESKTOPS))
            if daemon.pool:
                check(f"there were never more than {DESKTOPS} desktops",
                      lambda: expect(watched[0].most <= DESKTOPS, f"there were {watched[0].most}"))
                check("the line was fair", lambda: in_order(turns))
            check("each had processes of its own", lambda: expect(len(watched[0].pids) >= SESSIONS, f"{len(watched[0].pids)} servers"))
    finally:
        check("the daemon ends", daemon.down)
    check("nothing of any desktop is left", lambda: until("the end of all", lambda: not processes(mark, posix_sessions)
                                                           and not list((daemon.folder / "tmp").iterdir()), EMPTY_S))
    check("when the daemon is killed, no process of a desktop is left", dies_with_the_daemon)


def left_behind() -> None:
    left = processes(mark, posix_sessions)
    for pid in left:  # ours by the mark or the POSIX session: leave none behind
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    expect(not left, f"processes {left} are left")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        check("the suite ran to its end", main)
    finally:
        check("nothing is left behind", left_behind)
        for path in folders:
            shutil.rmtree(path, ignore_errors=True)
    count.end()
