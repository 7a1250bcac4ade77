"""
Twelve sessions on five desktops, through Ostler, with the example's own configuration: see ../README.md. The screenshots
are kept, of each session one of the desktop as it was handed out and one with the session's page.
"""

from __future__ import annotations

import asyncio
import base64
import colorsys
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from mcp import Client, Implementation

from harness import DOWN_S, LOOK_S, Colour, Daemon, Picture, artefacts, check, expect, same
from support import EXAMPLE, page

SESSIONS, DESKTOPS, SPARE = 12, 5, 2
CALL_S, TURN_S, ASK_S = 90.0, 180.0, 30.0
# Between two looks at how many desktops there are.
WATCH_S = 0.1
# The part of the screen that the browser's own bars leave to a page, less what the name on it takes.
MOST = 0.6


def colour_of(number: int) -> Colour:
    """A colour for each session, far from the others' and from those of the browser's bars."""
    red, green, blue = colorsys.hsv_to_rgb(number / SESSIONS, 1.0, 0.55 + 0.4 * (number % 2))
    return round(255 * red), round(255 * green), round(255 * blue)


@dataclass
class Turn:
    """What one session did, and saw."""
    number: int
    handle: str = ""
    gone: bool = False
    before: Picture | None = None
    after: Picture | None = None
    titles_before: list[str] = field(default_factory=list)
    titles_after: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"session {self.number + 1}"

    @property
    def colour(self) -> Colour:
        return colour_of(self.number)

    def page(self) -> str:
        red, green, blue = self.colour
        return page(f"<body style='margin:0;background:rgb({red},{green},{blue});color:white;font:bold 120px sans-serif;"
                    f"display:grid;place-items:center;height:100vh'>{self.name}", self.name)


async def call(client: Client, tool: str, **arguments: object):
    result = await client.call_tool(tool, arguments)
    expect(not result.is_error, f"{tool}: {result.content}")
    return result


async def shot(client: Client) -> bytes:
    return base64.b64decode((await call(client, "screenshot")).content[0].data)


async def titles(client: Client) -> list[str]:
    found = (await call(client, "windows")).structured_content["result"]
    return [window["title"].removesuffix(" - Chromium") for window in found]


class Sessions:
    """All of them, on one daemon."""

    def __init__(self, daemon: Daemon, shots: Path) -> None:
        self.daemon, self.shots = daemon, shots
        self.turns = [Turn(number) for number in range(SESSIONS)]
        # The first to be served stay until they all are, so that as many desktops are in use at once as there are.
        self.all_there = asyncio.Barrier(DESKTOPS)
        self.most = self.most_leased = 0

    def client(self, turn: Turn) -> Client:
        # A client of the legacy era has a session by itself, and with it a desktop.
        return Client(f"{self.daemon.http}/mcp/desktop", mode="legacy", read_timeout_seconds=CALL_S,
                      client_info=Implementation(name=turn.name, version="1"))

    async def run(self) -> None:
        watching = asyncio.create_task(self.watch())
        try:
            async with asyncio.timeout(TURN_S), asyncio.TaskGroup() as group:
                for turn in self.turns:
                    group.create_task(self.take(turn))
                    await self.in_line(turn.number + 1)
        finally:
            watching.cancel()

    async def in_line(self, asked: int) -> None:
        """Who asked is known to have a desktop or a place in line, before the next asks."""
        async with asyncio.timeout(ASK_S):
            while True:
                pool = await asyncio.to_thread(self.daemon.pool, "desktop")
                if pool["leased"] + pool["waiting"] + sum(turn.gone for turn in self.turns) >= asked:
                    return
                await asyncio.sleep(LOOK_S)

    async def watch(self) -> None:
        """Counts the desktops that there are, as long as the sessions come and go."""
        while True:
            pool = await asyncio.to_thread(self.daemon.pool, "desktop")
            self.most = max(self.most, len(desktops(self.daemon)))
            self.most_leased = max(self.most_leased, pool["leased"])
            await asyncio.sleep(WATCH_S)

    async def take(self, turn: Turn) -> None:
        """One session: looks at the desktop as it is handed out, opens a page of its own, looks again, and goes."""
        async with self.client(turn) as client:
            turn.handle = await asyncio.to_thread(self.handle, turn)
            turn.before = self.keep(await shot(client), turn, "before")
            turn.titles_before = await titles(client)
            await call(client, "open", url=turn.page())
            async with asyncio.timeout(CALL_S):
                while not (turn.titles_after == [turn.name] and turn.after.share(turn.colour) > MOST):
                    data = await shot(client)
                    turn.after, turn.titles_after = Picture.read(data), await titles(client)
            self.keep(data, turn, "after")
            if turn.number < DESKTOPS:
                await self.all_there.wait()
        turn.gone = True

    def handle(self, turn: Turn) -> str:
        [found] = [row["id"] for row in self.daemon.get("/api/v1/sessions") if row["client"].startswith(f"{turn.name} ")]
        return found

    def keep(self, data: bytes, turn: Turn, when: str) -> Picture:
        (self.shots / f"session-{turn.number + 1:02}-{when}.png").write_bytes(data)
        return Picture.read(data)

    # What must hold, when all have had their turn

    def saw_their_page(self) -> None:
        for turn in self.turns:
            expect(turn.after and turn.after.share(turn.colour) > MOST, f"{turn.name} did not see its page")
            same(turn.titles_after, [turn.name], f"windows that {turn.name} saw")
        same(len({turn.after.rgb for turn in self.turns}), SESSIONS, "different screenshots")

    def saw_no_other(self) -> None:
        for turn in self.turns:
            for picture, when in ((turn.before, "when it came"), (turn.after, "with its page open")):
                for other in self.turns:
                    seen = 0 if other is turn else picture.count(other.colour)
                    expect(not seen, f"{turn.name} saw {seen} pixels of {other.name} {when}")

    def began_clean(self) -> None:
        for turn in self.turns:
            same(turn.titles_before, ["about:blank"], f"windows of the desktop that {turn.name} was given")
            expect(turn.before.share((255, 255, 255)) > MOST, f"{turn.name} was given a desktop that is not blank")

    def never_more(self) -> None:
        same(self.most_leased, DESKTOPS, "most desktops in use at once")
        expect(self.most <= DESKTOPS, f"there were {self.most} desktops")

    def leases(self) -> list[tuple[str, str]]:
        """Which desktop was given to which session, in order."""
        events = self.daemon.get("/api/v1/events?kind=leased&n=1000")
        given = [(event["subject"], re.match(r"given to session (\S+), as lease (\d+) ", event["message"])) for event in events]
        return [(desktop, said[1]) for desktop, said in sorted(given, key=lambda one: int(one[1][2]))]

    def were_served_in_order(self) -> None:
        names = {turn.handle: turn.number + 1 for turn in self.turns}
        same([names[handle] for _, handle in self.leases() if handle in names], list(range(1, SESSIONS + 1)), "order of the sessions")

    def were_given_each_once(self) -> None:
        given = [desktop for desktop, _ in self.leases()]
        same(sorted(set(given)), sorted(given), "desktops that were given")


def desktops(daemon: Daemon) -> dict[int, Path]:
    """The desktops that there are now, by the pid of their server."""
    found = {int(path.name.split("-")[2]): path for path in daemon.tmp.glob("ostler-desktop-*")}
    return {pid: path for pid, path in found.items() if Path(f"/proc/{pid}").exists()}


def warm(daemon: Daemon) -> str:
    """Two sessions get the two spares, and when they have gone, clean processes have taken the place of these."""
    spares = set(daemon.spares("desktop", SPARE))
    took: list[float] = []

    async def one() -> None:
        begun = time.monotonic()
        async with Client(f"{daemon.http}/mcp/desktop", mode="legacy", read_timeout_seconds=CALL_S) as client:
            took.append(time.monotonic() - begun)
            await shot(client)

    async def both() -> None:
        await asyncio.gather(one(), one())

    asyncio.run(both())
    others = daemon.spares("desktop", SPARE)
    expect(not spares.intersection(others), f"one of {spares} was used and is a spare again: {others}")
    return f"connected after {max(took):.2f} s"


def dies_with_the_daemon(daemon: Daemon) -> None:
    """SIGKILL to the daemon, while a session has a desktop: guards end every process, those without their mark too."""
    async def one() -> None:
        async with Client(f"{daemon.http}/mcp/desktop", mode="legacy", read_timeout_seconds=CALL_S) as client:
            await shot(client)
            expect(len(daemon.left()) > 5, "where is the desktop?")
            daemon.process.kill()
            daemon.process.wait(DOWN_S)
            daemon.leaves_nothing()

    try:
        asyncio.run(one())
    except* Exception as errors:  # the client finds its connection cut; a failed expectation counts
        failed, _ = errors.split(AssertionError)
        if failed:
            raise failed.exceptions[0]


def twelve(daemon: Daemon) -> None:
    check("sessions get the spares, and what was used is not used again", lambda: warm(daemon))
    sessions = Sessions(daemon, artefacts("desktop"))
    if check(f"{SESSIONS} sessions have a desktop each", lambda: asyncio.run(sessions.run())):
        check("each saw its own page, and all screenshots differ", sessions.saw_their_page)
        check("none saw a pixel of another's page, before or after it opened its own", sessions.saw_no_other)
        check("each was given a clean desktop", sessions.began_clean)
        check(f"{DESKTOPS} had a desktop at once, and there were never more", sessions.never_more)
        check("they were served in the order in which they asked", sessions.were_served_in_order)
        check("no desktop was given twice", sessions.were_given_each_once)
    print(f"     screenshots are kept in {sessions.shots}", flush=True)


def test() -> None:
    def ended() -> None:
        with Daemon(EXAMPLE / "ostler.toml", ("desktop",)) as daemon:
            twelve(daemon)
            check("nothing of any desktop is left when Ostler has ended", daemon.stop)

    def killed() -> None:
        with Daemon(EXAMPLE / "ostler.toml", ("desktop",)) as daemon:
            dies_with_the_daemon(daemon)

    check("desktops: Ostler serves them to the end", ended)
    check("when Ostler is killed, no process of a desktop is left", killed)
