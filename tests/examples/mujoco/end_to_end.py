"""examples/mujoco on a real Ostler: twenty sessions with a model each, one viewer killed, ports used again, spares
handed out, the demonstrations, and 1,000 mocks at once."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from mcp import Client

from harness import Count, Daemon, artefacts, check, expect, free_ports, holds, memory, same
from ostler_client import Ostler, OstlerError, ViewerConnection
from support import EXAMPLE, arm

SESSIONS, TURNS = 20, 3
# Few enough that further sessions have to use some again, and more than the pool's `max`.
FEW_PORTS = 25
# How many mocks there are at once, and of these are started at once.
MOCKS, AT_ONCE = int(os.environ.get("OSTLER_TEST_MOCKS", "1000")), 16
CHECKOUTS = 12
CALL_S, DEMO_S = 60.0, 240.0


def ostler(daemon: Daemon) -> Ostler:
    return Ostler(str(daemon.folder / "run" / "api.sock"))


def spread(ports: range) -> str:
    return f"{ports[0]}-{ports[-1]}"


async def call(client: Client, tool: str, **arguments: object) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments, read_timeout_seconds=CALL_S)
    same(result.is_error, False, f"{tool}: {result.content}")
    return result.structured_content


class Twenty:
    """Twenty clients, half of them legacy and half modern, each with a model that no other has."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.ostler = ostler(daemon)
        self.clients: list[Client] = []
        self.handles: list[str] = []
        self.held: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = []

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            for links in range(1, SESSIONS + 1):
                modern = Client(f"{self.daemon.http}/mcp/mujoco/s/{self.daemon.mark}-{links}")
                legacy = Client(f"{self.daemon.http}/mcp/mujoco", mode="legacy")
                self.clients.append(await stack.enter_async_context(modern if links % 2 else legacy))
            for what, test in (
                (f"{SESSIONS} sessions, each with its own model: states do not mix", self.apart),
                ("each has a process and a port of its own", self.own),
                (f"one viewer is killed: {SESSIONS - 1} are untouched, the one comes back on a fresh port", self.killed),
            ):
                with Count.told(what) as figures:
                    figures.append(await test())
        # The legacy ones have ended with their clients.
        for handle in {one["id"] for one in self.ostler.sessions()}.intersection(self.handles):
            self.ostler.end_session(handle)

    async def use(self, at: int, turn: int) -> dict[str, Any]:
        await call(self.clients[at], "step_simulation", steps=10 * (at + 1))
        state = await call(self.clients[at], "get_state")
        same((len(state["qpos"]), round(state["time"], 6)), (at + 1, round(0.02 * (at + 1) * turn, 6)), f"state of session {at}")
        return state

    async def apart(self) -> str:
        begun = time.monotonic()
        loaded = await asyncio.gather(*(call(client, "load_model", xml=arm(at + 1)) for at, client in enumerate(self.clients)))
        took = time.monotonic() - begun
        self.handles = [answer["session_id"] for answer in loaded]
        same(len(set(self.handles)), SESSIONS, "different sessions")
        for turn in range(1, TURNS + 1):
            self.states = await asyncio.gather(*(self.use(at, turn) for at in range(SESSIONS)))
        return f"all loaded after {took:.1f} s"

    async def own(self) -> str:
        self.held = [self.ostler.instance(handle, "viewer") for handle in self.handles]
        for what in ("instance", "pid", "fence"):
            same(len({one[what] for one in self.held}), SESSIONS, f"different values of `{what}`")
        same(len(self.ports()), SESSIONS, "ports")
        known = {one["id"]: json.dumps(one["instances"]) for one in self.ostler.sessions()}
        for one in self.held:
            holds(known[one["session"]], f'"{one["instance"]}"')
        return f"{memory(one['pid'] for one in self.held) / SESSIONS / 2**20:.0f} MiB for each viewer"

    def ports(self) -> set[int]:
        return {one["ports"]["viewer"] for one in self.held}

    async def killed(self) -> str:
        victim = SESSIONS // 2
        os.kill(self.held[victim]["pid"], signal.SIGKILL)
        begun = time.monotonic()
        lost = await self.clients[victim].call_tool("get_state", {}, read_timeout_seconds=CALL_S)
        took = time.monotonic() - begun
        expect(lost.is_error, f"the call after it is answered: {lost.content}")
        holds(lost.content[0].text, "lost", "load_model")
        again = [self.ostler.instance(handle, "viewer") for handle in self.handles]
        others = [at for at in range(SESSIONS) if at != victim]
        same([again[at] for at in others], [self.held[at] for at in others], "instances of the others")
        after = await asyncio.gather(*(call(self.clients[at], "get_state") for at in others))
        same(after, [self.states[at] for at in others], "states of the others")
        before, now = self.held[victim], again[victim]
        same((now["instance"], now["fence"], now["generation"]), (before["instance"], before["fence"], before["generation"] + 1), "its instance")
        expect(now["ports"]["viewer"] not in self.ports(), f"its port is an old one: {now['ports']}")
        same((await call(self.clients[victim], "load_model", xml=arm(victim + 1)))["controls"], victim + 1)
        return f"told and replaced after {took:.1f} s"


def warm(daemon: Daemon, before: set[int]) -> str:
    """A session that finds a spare ready has that, and so at once; and the ports of earlier sessions are used again."""
    api, took, ports = ostler(daemon), [], set()
    for at in range(CHECKOUTS):
        spares = daemon.spares("viewer", 2)
        session = api.open_session(f"{daemon.mark}-warm-{at}")
        begun = time.perf_counter()
        held = api.instance(session, "viewer")
        took.append(time.perf_counter() - begun)
        expect(held["pid"] in spares, f"{held} is none of the spares {spares}")
        ports.add(held["ports"]["viewer"])
        api.end_session(session)
    expect(ports & before, f"none of the ports {sorted(before)} is used again: {sorted(ports)}")
    return f"p50 {statistics.median(took) * 1000:.2f} ms, longest {max(took) * 1000:.2f} ms; {len(ports & before)} of {CHECKOUTS} ports were another's before"


def demos(daemon: Daemon) -> None:
    ended = subprocess.run([sys.executable, "-B", EXAMPLE / "demo.py"], env=daemon.env | {"TMPDIR": str(daemon.folder)},
                           capture_output=True, text=True, timeout=DEMO_S)
    print("".join(f"     | {line}\n" for line in ended.stdout.splitlines()), end="")
    same(ended.returncode, 0, f"exit status: {ended.stderr}")
    pictures = list(daemon.folder.glob("demo-*.png"))
    same(len(pictures), 1, f"pictures: {pictures}")
    print(f"     the picture is kept: {shutil.copy(pictures[0], artefacts('mujoco') / 'demo.png')}")


def thousand(daemon: Daemon, ports: range, config: Path) -> str:
    api = ostler(daemon)

    def one(at: int) -> dict[str, Any]:
        held = api.instance(api.open_session(f"mock-{at}"), "viewer")
        viewer = ViewerConnection(held["ports"]["viewer"], held["session"])
        same(viewer.call("ping")["pid"], held["pid"], "pid of the one that answers")
        viewer.close()
        return held

    begun = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        held = list(pool.map(one, range(MOCKS)))
    took = time.monotonic() - begun
    same({one["ports"]["viewer"] for one in held}, set(ports), "ports")
    each = memory(one["pid"] for one in held) / MOCKS
    # Who is refused need not wait as long as the others might.
    config.write_text(mocks(ports, wait="100ms"))
    api.request("POST", "/api/v1/reload")
    further = api.open_session(f"mock-{MOCKS}")
    try:
        raise AssertionError(f"one more is not refused: {api.instance(further, 'viewer')}")
    except OstlerError as error:
        same((error.status, error.retry_after is not None), (503, True), f"refusal ({error})")
        holds(str(error), str(MOCKS), "pool.max")
        refusal = str(error)
    config.write_text(mocks(ports))
    api.request("POST", "/api/v1/reload")
    same(api.instance(held[-1]["session"], "viewer"), held[-1], "what another has, after both reloads")
    api.give_back(held[0]["session"], "viewer")
    expect(api.instance(further, "viewer")["ports"]["viewer"] in ports, "the further one has a port of somewhere else")
    print(f"     the refusal: {refusal}")
    return f"{took:.0f} s, {each / 2**20:.1f} MiB for each"


def mocks(ports: range, wait: str = "60s") -> str:
    # -S: no folder is looked through for packages. A thousand interpreters are many.
    return f"""
[limits]
processes = {MOCKS + 1}
sessions = {MOCKS + 100}
memory = "20GiB"
cleanups = 50

[ports]
range = "{spread(ports)}"

[servers.viewer]
command = "python3"
args = ["-B", "-S", "{EXAMPLE}/mock_viewer.py", "{{port.viewer}}"]
transport = "socket"
scope = "session"
ports = {{ viewer = "auto" }}
health = {{ probe = "tcp", port = "viewer" }}
pool = {{ spare = 0, max = {MOCKS}, on_return = "restart", wait = "{wait}" }}
stop = {{ grace = "1s" }}
"""


@contextmanager
def on_daemon(what: str, config: Path, servers: tuple[str, ...], **keys: str) -> Iterator[Daemon]:
    with Daemon(config, servers, **keys) as daemon:
        yield daemon
        check(f"{what}: nothing is left when Ostler has ended", daemon.stop)


def real() -> None:
    ports = free_ports(FEW_PORTS)
    with on_daemon("viewers", EXAMPLE / "ostler.toml", ("viewer", "mujoco"), PORTS__RANGE=spread(ports)) as daemon:
        twenty = Twenty(daemon)
        asyncio.run(twenty.run())
        check("who finds a spare gets it, and ports are used again", lambda: warm(daemon, twenty.ports()))
        check("the demonstrations", lambda: demos(daemon))
        check("a session manager's words", lambda: words(daemon))


def words(daemon: Daemon) -> None:
    script = EXAMPLE.parent / "session-manager" / "session_manager.py"
    command = [sys.executable, str(script), str(daemon.folder / "run" / "api.sock")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=DEMO_S)
    same(said.returncode, 0, said.stderr)
    lines = said.stdout.splitlines()
    same((lines[1], lines[-1]), ("ended: True", "sessions: 0"), said.stdout)


def many() -> None:
    ports = free_ports(MOCKS)
    with tempfile.TemporaryDirectory(prefix="oe-") as folder:
        config = Path(folder, "ostler.toml")
        config.write_text(mocks(ports))
        with on_daemon("mocks", config, ("viewer",)) as daemon:
            check(f"{MOCKS:,} mocks at once, and no more", lambda: thousand(daemon, ports, config))


def test() -> None:
    check("viewers: Ostler serves them to the end", real)
    check("mocks: Ostler serves them to the end", many)
