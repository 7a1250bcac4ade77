#!/usr/bin/env python3
"""examples/mujoco on a real Ostler: twenty sessions with a model each, one viewer killed, ports used again, the warm
check-out, the demonstrations, and 1,000 mocks at once.

    end_to_end.py      the binary is $OSTLER_BIN; needs scripts/setup-test-deps.sh

The last line is `N passed, M failed`; the exit status is 0 when M is 0.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from support import EXAMPLE, PYTHON, ROOT, Count, arm, holds, same, until, use_the_example

SESSIONS, ROUNDS = 20, 3
# Few enough ports that three rounds of sessions have to use some again.
FEW_PORTS, RANGE = "8001-8045", range(8001, 9001)
MOCKS = 1_000
AT_ONCE = 16
CHECKOUTS, CHECKOUT_P50_S = 20, 0.005
CALL_S, STOP_S, EMPTY_S = 60.0, 60.0, 2.0
DEMO_S = 240.0
MARK = "OSTLER_TEST_MARK"


class Daemon:
    """`ostler up` with directories of its own; every server it starts is marked. Stopped with the `with`."""

    def __init__(self, config: Path, keys: dict[str, str]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="ostler-mujoco-")
        self.mark = uuid.uuid4().hex
        self.run = Path(self.folder.name, "run")
        for name in ("run", "state"):
            Path(self.folder.name, name).mkdir(mode=0o700)
        servers = ("VIEWER", "MUJOCO") if config.parent == EXAMPLE else ("VIEWER",)
        self.env = os.environ | keys | {
            "OSTLER_RUNTIME_DIR": str(self.run), "OSTLER_STATE_DIR": str(Path(self.folder.name, "state")), "OSTLER_GATEWAY__LISTEN": "127.0.0.1:0",
        } | {f"OSTLER_SERVERS__{name}__{key}": value for name in servers
             for key, value in (("COMMAND", str(PYTHON)), ("ENV", f'{{ {MARK} = "{self.mark}" }}'))}
        self.log = Path(self.folder.name, "log").open("w+")
        self.process = subprocess.Popen([binary(), "up", config], env=self.env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
                                        start_new_session=True)
        try:
            self.http = until("endpoint.json", self.endpoint)
        except BaseException:
            self.kill()
            raise

    def endpoint(self) -> str | None:
        if self.process.poll() is not None:
            self.log.seek(0)
            raise AssertionError(f"ostler ended: {self.log.read()[-2000:]}")
        try:
            return json.loads((self.run / "endpoint.json").read_text())["http"].rstrip("/")
        except (OSError, ValueError):
            return None

    def ostler(self) -> Any:
        from ostler_client import Ostler
        return Ostler(str(self.run / "api.sock"))

    def ready_spares(self) -> int:
        """Viewers that are ready and nobody's."""
        rows = self.ostler().request("GET", "/api/v1/instances")
        return sum(1 for row in rows if row["server"] == "viewer" and row["state"] == "ready" and row["sessions"] == 0)

    def marked(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                pass                             # ended meanwhile, or not ours
        return found

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        for pid in self.marked():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.log.close()
        self.folder.cleanup()

    def stop(self) -> None:
        """Ends it as a person would; nothing of what it started may be left."""
        self.process.terminate()
        self.process.wait(STOP_S)
        until("end of every process that it started", lambda: None if self.marked() else True, EMPTY_S)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def binary() -> str:
    named = os.environ.get("OSTLER_BIN")
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    for path in [Path(named)] if named else [target / "release" / "ostler", target / "debug" / "ostler"]:
        if path.exists():
            return str(path.resolve())
    raise AssertionError("no ostler binary: build one, or set OSTLER_BIN")


async def call(client: Any, tool: str, **arguments: object) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments, read_timeout_seconds=CALL_S)
    same(result.is_error, False, f"{tool}: {result.content}")
    return result.structured_content


async def twenty(daemon: Daemon) -> None:
    """Half of the clients legacy and half modern, each with a model that no other has."""
    from mcp import Client

    ostler = daemon.ostler()
    ports: list[set[int]] = []
    async with AsyncExitStack() as stack:
        clients = []
        for links in range(1, SESSIONS + 1):
            modern = Client(f"{daemon.http}/mcp/mujoco/s/{daemon.mark}-{links}")
            clients.append(await stack.enter_async_context(modern if links % 2 else Client(f"{daemon.http}/mcp/mujoco", mode="legacy")))

        async def use(at: int, turn: int) -> dict[str, Any]:
            await call(clients[at], "step_simulation", steps=10 * (at + 1))
            state = await call(clients[at], "get_state")
            same((len(state["qpos"]), round(state["time"], 6)), (at + 1, round(0.02 * (at + 1) * turn, 6)), f"state of session {at}")
            return state

        loaded = await asyncio.gather(*(call(client, "load_model", xml=arm(at + 1)) for at, client in enumerate(clients)))
        handles = [answer["session_id"] for answer in loaded]
        same(len(set(handles)), SESSIONS, "different sessions")
        for turn in (1, 2, 3):
            states = await asyncio.gather(*(use(at, turn) for at in range(SESSIONS)))
        Count.check(f"{SESSIONS} sessions, each with its own model: states do not mix", lambda: None)

        held = [ostler.instance(handle, "viewer") for handle in handles]
        ports.append({one["ports"]["viewer"] for one in held})

        def apart() -> str:
            same(len(ports[0]), SESSIONS, "ports")
            same(len({one["pid"] for one in held}), SESSIONS, "processes")
            known = {one["id"]: one for one in ostler.sessions()}
            same([handle for handle in handles if handle not in known], [], "sessions that are not listed")
            return f"{memory([one['pid'] for one in held]) / SESSIONS / 2**20:.0f} MiB for each viewer"

        Count.check("each has a process and a port of its own", apart)

        victim = SESSIONS // 2
        os.kill(held[victim]["pid"], signal.SIGKILL)
        lost = await clients[victim].call_tool("get_state", {}, read_timeout_seconds=CALL_S)
        again = [ostler.instance(handle, "viewer") for handle in handles]
        others = [at for at in range(SESSIONS) if at != victim]
        after = await asyncio.gather(*(call(clients[at], "get_state") for at in others))
        reloaded = await call(clients[victim], "load_model", xml=arm(victim + 1))

        def killed() -> None:
            same(lost.is_error, True, "the call after it")
            holds(lost.content[0].text, "lost", "load_model")
            same([again[at]["pid"] for at in others], [held[at]["pid"] for at in others], "pids of the others")
            same(after, [states[at] for at in others], "states of the others")
            same((again[victim]["pid"] != held[victim]["pid"], again[victim]["fence"] > held[victim]["fence"]), (True, True), "another process, a higher fence")
            same(again[victim]["ports"]["viewer"] in ports[0], False, "whether the port is an old one")
            same(reloaded["controls"], victim + 1)

        Count.check(f"one viewer killed: {SESSIONS - 1} are untouched, the one comes back on a fresh port", killed)
        for handle in handles:
            ostler.end_session(handle)

    for turn in range(1, ROUNDS):
        found = [ostler.open_session(f"{daemon.mark}-{turn}-{at}", "end_to_end")["session"] for at in range(SESSIONS)]
        ports.append({ostler.instance(session, "viewer")["ports"]["viewer"] for session in found})
        for session in found:
            ostler.end_session(session)
    Count.check("ports are used again", lambda: same((len(set.union(*ports)) < ROUNDS * SESSIONS, {len(some) for some in ports}), (True, {SESSIONS})))


def warm(daemon: Daemon) -> str:
    """A session that finds a spare ready has its viewer at once."""
    ostler = daemon.ostler()
    took = []
    for at in range(CHECKOUTS):
        until("a spare", lambda: daemon.ready_spares() or None)
        session = ostler.open_session(f"{daemon.mark}-warm-{at}", "end_to_end")["session"]
        begun = time.perf_counter()
        ostler.instance(session, "viewer")
        took.append(time.perf_counter() - begun)
        ostler.end_session(session)
    p50 = statistics.median(took)
    if p50 > CHECKOUT_P50_S:
        raise AssertionError(f"p50 is {p50 * 1000:.1f} ms, more than {CHECKOUT_P50_S * 1000:g}")
    return f"p50 {p50 * 1000:.2f} ms, longest {max(took) * 1000:.2f} ms"


def demos(daemon: Daemon) -> None:
    ended = subprocess.run([PYTHON, "-B", EXAMPLE / "demo.py"], env=daemon.env | {"TMPDIR": daemon.folder.name}, capture_output=True, text=True, timeout=4 * DEMO_S)
    same(ended.returncode, 0, f"exit status: {ended.stdout}{ended.stderr}")


def memory(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024
    return total


def thousand(daemon: Daemon) -> str:
    from ostler_client import OstlerError, ViewerConnection
    ostler = daemon.ostler()

    def one(at: int) -> dict[str, Any]:
        held = ostler.instance(ostler.open_session(f"mock-{at}", "end_to_end")["session"], "viewer")
        viewer = ViewerConnection(held["ports"]["viewer"], held["session"])
        same(viewer.call("ping")["pid"], held["pid"], "pid of the one that answers")
        viewer.close()
        return held

    begun = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        held = list(pool.map(one, range(MOCKS)))
    took = time.monotonic() - begun
    same({one["ports"]["viewer"] for one in held}, set(RANGE), "ports")
    further = ostler.open_session(f"mock-{MOCKS}", "end_to_end")["session"]
    try:
        raise AssertionError(f"one more is not refused: {ostler.instance(further, 'viewer')}")
    except OstlerError as error:
        same((error.status, error.retry_after is not None), (503, True), f"refusal ({error})")
        holds(str(error), str(MOCKS))
    ostler.give_back(held[0]["session"], "viewer")
    same(ostler.instance(further, "viewer")["ports"]["viewer"] in RANGE, True, "port of the further one, once there is room")
    return f"{took:.0f} s, {memory([one['pid'] for one in held[1:]]) / MOCKS / 2**20:.1f} MiB for each"


MOCK_CONFIG = f"""
[limits]
processes = {MOCKS + 1}
sessions = {MOCKS + 100}
memory = "20GiB"

[servers.viewer]
command = "python3"
args = ["-B", "{EXAMPLE}/mock_viewer.py", "{{port.viewer}}"]
transport = "socket"
scope = "session"
ports = {{ viewer = "auto" }}
health = {{ probe = "tcp", port = "viewer" }}
pool = {{ spare = 0, max = {MOCKS}, on_return = "restart", wait = "2s" }}
"""


def on_daemon(what: str, config: Path, keys: dict[str, str], work: Callable[[Daemon], None]) -> None:
    def whole() -> None:
        with Daemon(config, keys) as daemon:
            work(daemon)
            Count.check(f"{what}: nothing is left when Ostler has ended", daemon.stop)

    Count.check(f"{what}: Ostler serves it to the end", whole)


def main() -> None:
    use_the_example()

    def real(daemon: Daemon) -> None:
        asyncio.run(twenty(daemon))
        Count.check("warm check-out", lambda: warm(daemon))
        Count.check("the demonstrations", lambda: demos(daemon))

    on_daemon("viewers", EXAMPLE / "ostler.toml", {"OSTLER_PORTS__RANGE": FEW_PORTS}, real)
    with tempfile.TemporaryDirectory(prefix="ostler-mocks-") as folder:
        config = Path(folder, "ostler.toml")
        config.write_text(MOCK_CONFIG)
        on_daemon("mocks", config, {}, lambda daemon: Count.check(f"{MOCKS} mocks at once, and no more", lambda: thousand(daemon)))
    Count.end()


if __name__ == "__main__":
    main()
