#!/usr/bin/env python3
"""Four demonstrations against a running `ostler up ostler.toml`:

    demo.py [sequential|concurrent|ports|lifecycle]...     all four without an argument

It finds the daemon as the `ostler` command does (OSTLER_RUNTIME_DIR, XDG_RUNTIME_DIR). It exits with 1 if something
is not as it says.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from mcp import Client

from ostler_client import Ostler, OstlerError, runtime_dir

# Sessions at once: no more than the pool's `max`.
CLIENTS = 8
# A port that was just given back is the last to be given again: so often is looked for one.
PORT_ROUNDS = 5
CALL_S, DEMO_S = 60.0, 240.0
# Sets these sessions apart from those of another run.
RUN = f"demo-{os.getpid()}"


class Wrong(Exception):
    """Something is not as promised, or a call failed."""


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise Wrong(what)


def pendulum(links: int) -> str:
    """A chain of that many links: every number of links is another model."""
    body = ""
    for at in range(links):
        place = "0.2 0 0" if at < links - 1 else "0 0 2"
        body = (f'<body name="link{links - at}" pos="{place}"><joint axis="0 1 0" damping="0.02"/>'
                f'<geom type="capsule" fromto="0 0 0 0.2 0 0" size="0.04" rgba="0.9 0.4 0.1 1"/>{body}</body>')
    return ('<mujoco><worldbody><light pos="0 -1 4"/><geom type="plane" size="3 3 0.1" rgba="0.4 0.5 0.6 1"/>'
            f"{body}</worldbody></mujoco>")


def memory(pid: int) -> int:
    """Resident memory of a process in MiB; of what it shares with others, its part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return round(int(line.split()[1]) / 1024)
    raise Wrong(f"the kernel does not tell the memory of process {pid}")


class Simulator:
    """One client of the MCP server, with a session of its own."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def call(self, tool: str, **arguments: object) -> dict[str, Any]:
        result = await self.client.call_tool(tool, arguments, read_timeout_seconds=CALL_S)
        if result.is_error:
            raise Wrong(result.content[0].text)
        return result.structured_content or {"png": base64.b64decode(result.content[0].data)}


class Demo:
    def __init__(self, folder: Path) -> None:
        try:
            self.http = json.loads((folder / "endpoint.json").read_text())["http"].rstrip("/")
        except (OSError, ValueError, KeyError) as error:
            raise Wrong(f"no Ostler runs for {folder} ({error}): start `ostler up ostler.toml` first") from None
        self.ostler = Ostler(str(folder / "api.sock"))

    @asynccontextmanager
    async def simulator(self, name: str) -> AsyncIterator[Simulator]:
        """A client whose session is known by a key of its own; the session ends with it."""
        async with Client(f"{self.http}/mcp/mujoco/s/{RUN}-{name}") as client:
            simulator = Simulator(client)
            yield simulator
            await simulator.call("close")

    @asynccontextmanager
    async def simulators(self, name: str) -> AsyncIterator[list[Simulator]]:
        """As many clients as there may be at once."""
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self.simulator(f"{name}{at}")) for at in range(CLIENTS)]

    async def instance(self, session: str) -> dict[str, Any]:
        return await asyncio.to_thread(self.ostler.instance, session, "viewer")

    async def sequential(self) -> None:
        """One client after another, each finds a fresh simulator."""
        for turn in range(3):
            async with self.simulator(f"turn{turn}") as simulator:
                try:
                    await simulator.call("get_state")
                    raise Wrong("a model of an earlier client is still there")
                except Wrong as error:
                    expect("no model is loaded" in str(error), str(error))
                await simulator.call("load_model", xml=pendulum(turn + 1))
                await simulator.call("step_simulation", steps=100)
                state = await simulator.call("get_state")
                expect(len(state["qpos"]) == turn + 1, f"client {turn} sees {len(state['qpos'])} positions")
                print(f"  client {turn}, session {state['session_id']}: t = {state['time']:.2f} s, angles {[round(q, 3) for q in state['qpos']]}")

    async def concurrent(self) -> None:
        """Many clients at once, each with another model; no state mixes."""
        async def work(simulator: Simulator, links: int) -> str:
            await simulator.call("load_model", xml=pendulum(links))
            for turn in range(1, 11):
                await simulator.call("step_simulation", steps=10 * links)
                state = await simulator.call("get_state")
                expect(len(state["qpos"]) == links, f"the client of {links} links sees {len(state['qpos'])}")
                expect(abs(state["time"] - turn * links * 0.02) < 1e-9, f"the client of {links} links is at {state['time']} s")
            return state["session_id"]

        async with self.simulators("together") as simulators:
            begun = time.monotonic()
            sessions = await asyncio.gather(*(work(simulator, links) for links, simulator in enumerate(simulators, 1)))
            took = time.monotonic() - begun
            expect(len(set(sessions)) == CLIENTS, f"the sessions are not apart: {sessions}")
            print(f"  {CLIENTS} clients, 10 turns each, in {took:.1f} s; sessions {', '.join(sessions)}")
            held = [memory((await self.instance(session))["pid"]) for session in sessions]
            print(f"  memory of a viewer: {min(held)} to {max(held)} MiB, {sum(held)} MiB for all; of what they share, each counts its part")

    async def ports(self) -> None:
        """A port for each session, given back at its end and used again."""
        seen: set[int] = set()
        for turn in range(PORT_ROUNDS):
            async with self.simulators(f"ports{turn}-") as simulators:
                loaded = [await simulator.call("load_model", xml=pendulum(1)) for simulator in simulators]
                found = [await self.instance(one["session_id"]) for one in loaded]
            ports = {one["session"]: one["ports"]["viewer"] for one in found}
            again = seen & set(ports.values())
            expect(len(set(ports.values())) == CLIENTS, f"two sessions have one port: {ports}")
            print(f"  {', '.join(f'{session} has {port}' for session, port in ports.items())}; used before: {len(again)}")
            if again:
                return
            seen |= set(ports.values())
        raise Wrong(f"no port was used again in {PORT_ROUNDS} rounds: is `ports.range` of ostler.toml much wider than {CLIENTS}?")

    async def lifecycle(self) -> None:
        """A session from its beginning to its end, as the management API tells it."""
        async with self.simulator("life") as simulator:
            session = (await simulator.call("load_model", xml=pendulum(3)))["session_id"]
            before = await self.instance(session)
            print(f"  {before['instance']} has pid {before['pid']} and port {before['ports']['viewer']}")
            await simulator.call("step_simulation", steps=300)
            picture = Path(tempfile.gettempdir(), f"{RUN}.png")
            picture.write_bytes((await simulator.call("capture_render", width=320, height=240))["png"])
            print(f"  a picture of it: {picture}")
            print(f"  its session: {json.dumps(await asyncio.to_thread(self.ostler.session, session))}")
            os.kill(before["pid"], 9)
            notice = (await simulator.call("load_model", xml=pendulum(3))).get("notice")
            expect(notice is not None, "the loss of the viewer was not told")
            after = await self.instance(session)
            expect(after["pid"] != before["pid"], "the viewer was not replaced")
            print(f"  killed, and replaced by pid {after['pid']} on port {after['ports']['viewer']}: {notice}")
        await asyncio.to_thread(self.ostler.end_session, session)
        left = [one["id"] for one in await asyncio.to_thread(self.ostler.sessions)]
        expect(session not in left, f"session {session} is still listed")
        print(f"  ended: {session} is no longer among the {len(left)} sessions")


async def run(names: list[str]) -> None:
    demo = Demo(runtime_dir())
    for name in names:
        work: Callable[[], Awaitable[None]] = getattr(demo, name)
        print(f"{name}: {work.__doc__}", flush=True)
        await asyncio.wait_for(work(), DEMO_S)


def main() -> None:
    known = ["sequential", "concurrent", "ports", "lifecycle"]
    names = sys.argv[1:] or known
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"demo.py: there is no demonstration {unknown[0]!r}; there are {', '.join(known)}")
    try:
        asyncio.run(run(names))
    except (Wrong, OstlerError, TimeoutError, ExceptionGroup) as error:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        sys.exit(f"demo.py: {error or 'no end within the time limit (DEMO_S)'}")


if __name__ == "__main__":
    main()
