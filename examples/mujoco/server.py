#!/usr/bin/env python3
"""An MCP server with a MuJoCo simulator for each of its sessions: one process of it serves all of them.

It knows no sessions. Ostler tells with each request whose it is (`tell_session = true`), and is asked for that
session's viewer, over the unix socket whose path it gives in OSTLER_SOCKET. All that is kept here is a bounded number
of open connections, each worth nothing but the time to open it again.
"""

from __future__ import annotations

import base64
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Annotated, Any

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from ostler_client import Ostler, OstlerError, ViewerConnection, ViewerError, ViewerLost
from protocol import MAX_SIDE, MAX_STEPS

SESSION_META = "io.ostler/session"
# The server of ostler.toml whose instances are the viewers; the tests put the mock in its place.
VIEWER = os.environ.get("VIEWER_SERVER", "viewer")
# Connections kept open; the one unused for longest makes room.
MAX_KEPT = 256
# Calls performed at once, those that wait for a viewer included.
MAX_CALLS = 256
# Longest that Ostler gets to notice that a viewer is gone, and how often it is asked.
LOST_WAIT_S = 20.0
LOST_POLL_S = 0.1

# The instance, which of its processes, and the number of the lease: another of any is another viewer.
Place = tuple[str, int, int | None]
ModelId = Annotated[str | None, Field(description="Which model, if several are loaded; otherwise the one loaded last")]


class Seat:
    """A session's connection to its viewer. Its lock keeps calls of one session in order."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.place: Place | None = None          # where it was last connected to
        self.connection: ViewerConnection | None = None

    def drop(self) -> None:
        if self.connection:
            self.connection.close()
        self.connection = None


class Viewers:
    """Finds the viewer of a session and talks with it."""

    def __init__(self, ostler: Ostler) -> None:
        self.ostler = ostler
        self.seats: OrderedDict[str, Seat] = OrderedDict()
        self.lock = threading.Lock()

    def seat(self, session: str) -> Seat:
        with self.lock:
            seat = self.seats.setdefault(session, Seat())
            self.seats.move_to_end(session)
            idle = [name for name, other in self.seats.items() if other is not seat and not other.lock.locked()]
            for name in idle[:max(0, len(self.seats) - MAX_KEPT)]:
                self.seats.pop(name).drop()
            return seat

    def call(self, session: str, command: str, fields: dict[str, Any]) -> dict[str, Any]:
        """Performs a command on the session's viewer. What is lost is asked for anew, and the answer says so."""
        seat = self.seat(session)
        with seat.lock:
            known = seat.place
            try:
                port = self.connect(seat, session)
                answer = self.connection(seat).call(command, **fields)
            except ViewerLost as lost:
                port = self.replace(seat, session, lost)
                answer = self.again(seat, known, command, fields, port, lost)
            except ViewerError as error:
                if error.code == "no_model" and known not in (None, seat.place):
                    raise ToolError(f"{command}: {replaced(seat, port)}") from None
                raise ToolError(f"{command}: {error}") from None
            if known not in (None, seat.place):
                answer["notice"] = replaced(seat, port)
            return answer

    def connect(self, seat: Seat, session: str) -> int:
        """Asks Ostler which viewer is the session's, and connects where it is not the one of before."""
        found = self.ostler.instance(session, VIEWER)
        try:
            port, place = int(found["ports"]["viewer"]), (found["instance"], found["generation"], found["fence"])
        except (KeyError, TypeError) as error:
            raise OstlerError(f"Ostler's answer about the viewer lacks {error}: `{VIEWER}` needs a port named `viewer` in ostler.toml") from None
        if place != seat.place or seat.connection is None:
            seat.drop()
            seat.connection = ViewerConnection(port, session)
            seat.place = place
        return port

    def connection(self, seat: Seat) -> ViewerConnection:
        assert seat.connection is not None, "connect() was called before"
        return seat.connection

    def replace(self, seat: Seat, session: str, lost: ViewerLost) -> int:
        """Waits until Ostler has another viewer for the session, or finds the same one well."""
        deadline = time.monotonic() + LOST_WAIT_S
        seat.drop()
        while True:
            try:
                port = self.connect(seat, session)
                self.connection(seat).call("ping")
                return port
            except ViewerLost:
                seat.drop()
            if time.monotonic() > deadline:
                raise ToolError(f"{lost}, and there was no other within {LOST_WAIT_S:g} s (LOST_WAIT_S): see `ostler logs {VIEWER}`")
            time.sleep(LOST_POLL_S)

    def again(self, seat: Seat, known: Place | None, command: str, fields: dict[str, Any], port: int,
              lost: ViewerLost) -> dict[str, Any]:
        """What needs no earlier state is done again on the new viewer; of anything else nobody knows whether it was done."""
        if command != "load_model":
            now = "it answers again, and `get_state` shows what was done" if seat.place == known else replaced(seat, port)
            raise ToolError(f"{command}: {lost}; {now}")
        try:
            return self.connection(seat).call(command, **fields)
        except (ViewerLost, ViewerError) as error:
            seat.drop()
            raise ToolError(f"{command}: {lost}, and on the new viewer: {error}") from None

    def give_back(self, session: str) -> None:
        with self.lock:
            seat = self.seats.pop(session, None)
        if seat:
            with seat.lock:
                seat.drop()
        self.ostler.give_back(session, VIEWER)


def replaced(seat: Seat, port: int) -> str:
    assert seat.place is not None, "it was connected"
    instance, generation, _ = seat.place
    return (f"the session's viewer was lost; it has a new one ({instance}, process {generation}, port {port}) without the models of before: "
            "`load_model` again")


def session_of(context: Context) -> str:
    session = (context.request_context.meta or {}).get(SESSION_META)
    if not isinstance(session, str) or not session:
        raise ToolError(f"this request does not say whose it is (`_meta` has no {SESSION_META!r}): reach this server through Ostler, "
                        "with `tell_session = true` in its ostler.toml")
    return session


def build(viewers: Viewers) -> MCPServer:
    """The tools. Each is performed in a thread, as viewers and Ostler are waited for."""
    server = MCPServer("mujoco", version="1.0.0", log_level="WARNING", instructions="Each session has a MuJoCo simulator of its own: `load_model`, "
                       "then `step_simulation`, `get_state`, `set_control`, `capture_render`; `close` gives it back.")
    calls = anyio.CapacityLimiter(MAX_CALLS)

    async def perform(work: Callable[[], Any]) -> Any:
        try:
            return await anyio.to_thread.run_sync(work, limiter=calls)
        except OstlerError as error:
            later = f"; try again in {error.retry_after} s" if error.retry_after else ""
            raise ToolError(f"Ostler has no viewer for this session: {error}{later}") from None

    async def viewer(context: Context, command: str, **fields: Any) -> dict[str, Any]:
        session = session_of(context)
        given = {name: value for name, value in fields.items() if value is not None}
        answer = await perform(lambda: viewers.call(session, command, given))
        return {name: value for name, value in answer.items() if name not in ("id", "ok")}

    @server.tool()
    async def load_model(context: Context, xml: Annotated[str, Field(description="The text of an MJCF model; it may name no files")],
                         model_id: ModelId = None) -> dict[str, Any]:
        """Loads a model, in place of one with the same id, and answers with its numbers of bodies, positions and controls."""
        return await viewer(context, "load_model", xml=xml, model_id=model_id)

    @server.tool()
    async def step_simulation(context: Context, steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 1, model_id: ModelId = None) -> dict[str, Any]:
        """Simulates some steps and answers with the simulated time in seconds."""
        return await viewer(context, "step_simulation", steps=steps, model_id=model_id)

    @server.tool()
    async def get_state(context: Context, model_id: ModelId = None) -> dict[str, Any]:
        """Time, positions, velocities, controls, and where each body is."""
        return await viewer(context, "get_state", model_id=model_id)

    @server.tool()
    async def set_control(context: Context, control: Annotated[list[float], Field(description="A number for each actuator")],
                          model_id: ModelId = None) -> dict[str, Any]:
        """Sets the controls, which hold from the next step on."""
        return await viewer(context, "set_control", control=control, model_id=model_id)

    @server.tool()
    async def reset(context: Context, model_id: ModelId = None) -> dict[str, Any]:
        """Puts a model back to the state it was loaded with."""
        return await viewer(context, "reset", model_id=model_id)

    @server.tool(structured_output=False)
    async def capture_render(context: Context, width: Annotated[int, Field(ge=1, le=MAX_SIDE)] = 320,
                             height: Annotated[int, Field(ge=1, le=MAX_SIDE)] = 240, model_id: ModelId = None) -> list[Any]:
        """A picture (PNG) of a model as it is now."""
        answer = await viewer(context, "capture_render", width=width, height=height, model_id=model_id)
        notice = [answer["notice"]] if "notice" in answer else []
        return [Image(data=base64.b64decode(answer["png"]), format="png"), *notice]

    @server.tool()
    async def close(context: Context) -> dict[str, Any]:
        """Ends the session's simulator with all its models; the next call gets a fresh one."""
        session = session_of(context)
        await perform(lambda: viewers.give_back(session))
        return {"session_id": session, "closed": True}

    return server


def main() -> None:
    path = os.environ.get("OSTLER_SOCKET")
    if not path:
        sys.exit("server.py: OSTLER_SOCKET is not set: let Ostler start this server, with `tell_session = true` (see ostler.toml)")
    build(Viewers(Ostler(path))).run("stdio")


if __name__ == "__main__":
    main()
