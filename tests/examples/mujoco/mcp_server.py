"""The MCP server as its clients see it, in both eras, on an Ostler that is played. Its viewers are mocks, but for one test."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters

import server
from fake_ostler import FakeOstler
from ostler_client import Ostler
from harness import Count, Picture, check, expect, holds, same, until
from support import EXAMPLE, START_S, arm

TOOLS = {"load_model", "step_simulation", "get_state", "set_control", "reset", "capture_render", "close"}
META = server.SESSION_META
CALL_S = 60.0


class Calls:
    """Calls of one test, for two sessions of its own."""

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.one, self.two = f"{name}-1", f"{name}-2"

    async def raw(self, session: str | None, tool: str, **arguments: object) -> Any:
        return await self.client.call_tool(tool, arguments, read_timeout_seconds=CALL_S, meta={META: session} if session else {})

    async def good(self, session: str, tool: str, **arguments: object) -> dict[str, Any]:
        result = await self.raw(session, tool, **arguments)
        same(result.is_error, False, f"{tool}: {result.content}")
        return result.structured_content

    async def bad(self, session: str | None, tool: str, **arguments: object) -> str:
        result = await self.raw(session, tool, **arguments)
        same(result.is_error, True, f"{tool}: {result.content}")
        return result.content[0].text


def waiting(port: int) -> bool:
    """Whether a request lies unread at the port."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "01" and int(fields[4].split(":")[1], 16):
            return True
    return False


async def basics(calls: Calls, _fake: FakeOstler) -> str:
    same({tool.name for tool in (await calls.client.list_tools()).tools}, TOOLS, "tools")
    for links in (1, 2, 3):
        same((await calls.good(f"s{links}", "load_model", xml=arm(links)))["controls"], links)
    await asyncio.gather(*(calls.good(f"s{links}", "step_simulation", steps=10 * links) for links in (1, 2, 3)))
    for links in (1, 2, 3):
        state = await calls.good(f"s{links}", "get_state")
        same((state["session_id"], len(state["qpos"]), round(state["time"], 9)), (f"s{links}", links, 0.02 * links))
    await calls.good("s2", "set_control", control=[1, 2])
    same((await calls.good("s2", "get_state"))["control"], [1.0, 2.0])
    same((await calls.good("s2", "reset"))["time"], 0.0)
    return str(calls.client.protocol_version)


async def pictures(calls: Calls, _fake: FakeOstler) -> str:
    await calls.good(calls.one, "load_model", xml=arm(2))
    seen = []
    for _ in range(2):
        result = await calls.raw(calls.one, "capture_render", width=160, height=120)
        same((result.is_error, result.content[0].type, result.content[0].mime_type), (False, "image", "image/png"))
        seen.append(Picture.read(base64.b64decode(result.content[0].data)))
        same((seen[-1].width, seen[-1].height), (160, 120))
        await calls.good(calls.one, "step_simulation", steps=200)
    expect(seen[0] != seen[1] and len(seen[0].colours) > 1, "the pictures are alike, or all one colour")
    return f"{len(seen[0].colours)} colours"


async def bad_input(calls: Calls, fake: FakeOstler) -> None:
    asked = list(fake.asked)
    holds(await calls.bad(None, "get_state"), META, "tell_session")
    same(fake.asked, asked, "questions to Ostler")
    holds(await calls.bad(calls.one, "get_state"), "load_model")
    holds(await calls.bad(calls.one, "load_model", xml="<robot/>"), "<mujoco>")
    holds(await calls.bad(calls.one, "load_model", xml="x" * 2**20), "MAX_LINE")
    holds(await calls.bad(calls.one, "step_simulation", steps=10**6), "steps")
    await calls.good(calls.one, "load_model", xml=arm(1))


async def lost_between(calls: Calls, fake: FakeOstler) -> None:
    """Lost between two calls, once known to Ostler and once not yet; the other session notices nothing."""
    await calls.good(calls.two, "load_model", xml=arm(2))
    for blind in (0, 5):
        await calls.good(calls.one, "load_model", xml=arm(1))
        fake.kill(calls.one)
        fake.blind = blind
        holds(await calls.bad(calls.one, "get_state"), "lost", "load_model", fake.named(calls.one))
        await calls.good(calls.one, "load_model", xml=arm(1))
        fake.kill(calls.one)
        fake.blind = blind
        holds((await calls.good(calls.one, "load_model", xml=arm(1)))["notice"], "lost", fake.named(calls.one))
        if "notice" in await calls.good(calls.one, "get_state"):
            raise AssertionError("the loss is told twice")
    same(len((await calls.good(calls.two, "get_state"))["qpos"]), 2)


async def moved(calls: Calls, fake: FakeOstler) -> None:
    """Another lease is another viewer, even where the old one would still answer."""
    await calls.good(calls.one, "load_model", xml=arm(1))
    old = fake.move(calls.one)
    try:
        holds(await calls.bad(calls.one, "get_state"), "lost", fake.named(calls.one))
    finally:
        old.stop()


async def lost_in_a_call(calls: Calls, fake: FakeOstler) -> None:
    await calls.good(calls.one, "load_model", xml=arm(1))
    for tool, arguments in (("step_simulation", {"steps": 5}), ("load_model", {"xml": arm(1)})):
        program = fake.viewers[calls.one].program
        os.kill(program.process.pid, signal.SIGSTOP)
        call = asyncio.create_task(calls.raw(calls.one, tool, **arguments))
        await asyncio.to_thread(until, "request at the viewer", lambda: waiting(program.port))
        fake.kill(calls.one)
        result = await call
        if tool == "load_model":
            holds(result.structured_content["notice"], "lost")
        else:
            holds(result.content[0].text, "lost", "a new one", fake.named(calls.one), "load_model")
            await calls.good(calls.one, "load_model", xml=arm(1))


async def none_to_be_had(calls: Calls, fake: FakeOstler) -> None:
    fake.full = True
    holds(await calls.bad(calls.one, "get_state"), "all 5 instances are leased", "raise pool.max", "try again in 3 s")
    fake.full = False
    await calls.good(calls.one, "load_model", xml=arm(1))


async def gives_back(calls: Calls, fake: FakeOstler) -> None:
    await calls.good(calls.one, "load_model", xml=arm(1))
    same((await calls.good(calls.one, "close"))["closed"], True)
    same((fake.asked[-1], calls.one in fake.viewers), (f"DELETE /api/v1/sessions/{calls.one}/instances/viewer", False))
    holds(await calls.bad(calls.one, "get_state"), "no model is loaded")


async def no_ostler(calls: Calls, fake: FakeOstler) -> None:
    await calls.good(calls.one, "load_model", xml=arm(1))
    fake.server.shutdown()
    fake.server.server_close()
    os.unlink(fake.path)
    holds(await calls.bad(calls.one, "get_state"), "ostler up")


def bounded() -> str:
    viewers = server.Viewers(Ostler("/nowhere"))
    for at in range(2 * server.MAX_KEPT):
        viewers.seat(f"s{at}")
    same(len(viewers.seats), server.MAX_KEPT, "connections kept")
    return f"{server.MAX_KEPT} kept"


def unasked() -> None:
    env = {name: value for name, value in os.environ.items() if name != "OSTLER_SOCKET"}
    ended = subprocess.run([sys.executable, "-B", EXAMPLE / "server.py"], env=env, capture_output=True, text=True, timeout=START_S)
    same(ended.returncode, 1)
    holds(ended.stderr, "OSTLER_SOCKET", "tell_session")


async def played(mode: str, program: str, *tests: tuple[str, Callable[[Calls, FakeOstler], Awaitable[object]]]) -> None:
    """Runs some tests with an Ostler and an MCP server of their own."""
    with tempfile.TemporaryDirectory(prefix="ostler-mujoco-") as folder:
        fake = FakeOstler(Path(folder), program)
        target = StdioServerParameters(command=sys.executable, args=["-B", str(EXAMPLE / "server.py")], env={"OSTLER_SOCKET": fake.path})
        try:
            async with Client(target, mode=mode) as client:
                for what, test in tests:
                    with Count.told(f"server: {what}") as figures:
                        figures.append(await asyncio.wait_for(test(Calls(client, test.__name__), fake), CALL_S))
        finally:
            fake.stop()


def test() -> None:
    mock = "mock_viewer.py"
    asyncio.run(played("legacy", mock, ("three sessions apart (legacy)", basics)))
    asyncio.run(played("auto", "viewer.py", ("pictures of the real viewer", pictures)))
    asyncio.run(played("auto", mock, ("three sessions apart (modern)", basics), ("pictures of the mock", pictures), ("bad input", bad_input),
                       ("a viewer lost between two calls", lost_between), ("a viewer lost in a call", lost_in_a_call),
                       ("a viewer replaced while it lives", moved), ("no viewer to be had", none_to_be_had),
                       ("close gives the viewer back", gives_back), ("Ostler is gone", no_ostler)))
    check("server: what it keeps is bounded", bounded)
    check("server: started without Ostler", unasked)
