"""The protocol of a viewer, for `viewer.py` and `mock_viewer.py` alike: newline-delimited JSON over TCP.

A request is an object with `command`, the command's own fields, and if wanted `id` (given back) and `session_id`. The
process belongs to the first session it hears of and refuses every other. An answer is `{"id", "ok": true, "session_id",
...}` or `{"id", "ok": false, "session_id", "error": {"code", "message"}}`. See README.md for the commands.

One thread serves everything, one request at a time and connections in turn: an OpenGL context belongs to one thread,
and 1,000 mocks at once leave no room for more. For the same reason only small modules are imported.
"""

from __future__ import annotations

import json
import math
import os
import re
import selectors
import socket
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any
    from xml.etree.ElementTree import Element

PROTOCOL = 1
HOST = "127.0.0.1"

# Every limit, each named in the error that it causes.
MAX_LINE = 1024 * 1024         # bytes of one request
MAX_ANSWER = 8 * 1024 * 1024   # bytes of one answer: what a client has to be ready for
MAX_CONNECTIONS = 16           # at once
MAX_MODELS = 8                 # loaded at once
MAX_ELEMENTS = 5_000           # XML elements of one model
MAX_BODIES = 1_000             # bodies of one model, and copies that its text may ask for
MAX_NUMBERS = 10_000           # positions, velocities or controls of one model
MAX_STEPS = 10_000             # of one step_simulation
MAX_STEP_S = 10.0              # seconds that one step_simulation may run
MAX_SIDE = 1_024               # pixels of a picture's width or height
MAX_NAME = 64                  # characters of a session id or a model id

# Steps between two looks at the clock.
STEPS_AT_ONCE = 50
# Bytes read from a connection at once.
CHUNK = 64 * 1024
NAME = re.compile(rf"[!-~]{{1,{MAX_NAME}}}")


class Refused(Exception):
    """An error that the client is told: what failed, why, what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class World:
    """One loaded model and its state: what a viewer has to know how to do. Arguments are checked before."""

    controls = 0
    time = 0.0

    def summary(self) -> dict[str, Any]:
        """What was loaded, in numbers."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Time, positions, velocities, controls and bodies."""
        raise NotImplementedError

    def step(self, steps: int) -> None:
        """A few steps on."""
        raise NotImplementedError

    def set_control(self, control: list[float]) -> None:
        """As many numbers as `controls`."""
        raise NotImplementedError

    def reset(self) -> None:
        """Back to the state it was loaded with."""
        raise NotImplementedError

    def render(self, width: int, height: int) -> bytes:
        """A picture, as rows of red, green and blue bytes."""
        raise NotImplementedError

    def close(self) -> None:
        """It will not be used again."""


class Viewer:
    """The commands: one session's models, whatever simulates them."""

    def __init__(self, kind: str, load: Callable[[str], World]) -> None:
        self.kind = kind
        self.load = load
        self.session: str | None = None
        self.worlds: dict[str, World] = {}       # the newest is the last
        self.commands = {
            "ping": (self.ping, ()),
            "load_model": (self.load_model, ("xml", "model_id")),
            "step_simulation": (self.step_simulation, ("steps", "model_id")),
            "get_state": (self.get_state, ("model_id",)),
            "set_control": (self.set_control, ("control", "model_id")),
            "reset": (self.reset, ("model_id",)),
            "capture_render": (self.capture_render, ("width", "height", "model_id")),
            "close": (self.close, ("model_id",)),
        }

    def answer(self, line: bytes) -> bytes:
        """One line for one line, whatever it holds."""
        number: Any = None
        try:
            request = parse(line)
            number = identity(request)
            result = self.perform(request)
            return self.encode(number, result)
        except Refused as error:
            return self.refusal(error, number)
        except Exception as error:  # whatever a simulator throws ends one request and not the process
            return self.refusal(Refused("failed", f"{type(error).__name__}: {error}"), number)

    def encode(self, number: Any, result: dict[str, Any]) -> bytes:
        head = {"id": number, "ok": True, "session_id": self.session}
        try:
            return json.dumps(head | result, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        except ValueError:
            raise Refused("failed", "the simulation has become unstable: its state holds what is no number; `reset` it") from None

    def refusal(self, error: Refused, number: Any = None) -> bytes:
        body = {"id": number, "ok": False, "session_id": self.session, "error": {"code": error.code, "message": str(error)}}
        return json.dumps(body, separators=(",", ":")).encode() + b"\n"

    def perform(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request.get("command")
        if not isinstance(name, str) or name not in self.commands:
            raise Refused("bad_request", f"`command` must be one of {', '.join(self.commands)}; it is {shown(name)}")
        command, fields = self.commands[name]
        for field in request:
            if field not in ("command", "id", "session_id", *fields):
                known = ", ".join(fields) or "no fields of its own"
                raise Refused("bad_request", f"{name} has no field {shown(field)}; it takes {known}")
        self.bind(request.get("session_id"))
        return command(request)

    def bind(self, session: Any) -> None:
        """The first session id that is heard is the process's for good."""
        if session is None:
            return
        name_of("session_id", session)
        if self.session is None:
            self.session = session
        elif session != self.session:
            raise Refused("other_session", f"this viewer belongs to session {self.session} and serves no other, not {session}; "
                          "ask Ostler for the viewer of your own session")

    def ping(self, _request: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": self.kind, "protocol": PROTOCOL, "pid": os.getpid(), "models": list(self.worlds)}

    def load_model(self, request: dict[str, Any]) -> dict[str, Any]:
        model = name_of("model_id", request.get("model_id", "model"))
        xml = request.get("xml")
        if not isinstance(xml, str):
            raise Refused("bad_request", f"`xml` must be the text of an MJCF model; it is {shown(xml)}")
        if model not in self.worlds and len(self.worlds) >= MAX_MODELS:
            raise Refused("limit", f"{MAX_MODELS} models are loaded, which is the limit (MAX_MODELS): `close` one first")
        world = self.load(xml)
        self.forget(model)
        self.worlds[model] = world
        return {"model_id": model, **world.summary()}

    def step_simulation(self, request: dict[str, Any]) -> dict[str, Any]:
        model, world = self.world(request)
        steps = whole("steps", request.get("steps", 1), MAX_STEPS, "MAX_STEPS")
        deadline = time.monotonic() + MAX_STEP_S
        done = 0
        while done < steps:
            if time.monotonic() > deadline:
                raise Refused("limit", f"stopped after {done} of {steps} steps, as {MAX_STEP_S:g} s had passed (MAX_STEP_S): ask for fewer")
            now = min(STEPS_AT_ONCE, steps - done)
            world.step(now)
            done += now
        return {"model_id": model, "steps": steps, "time": world.time}

    def get_state(self, request: dict[str, Any]) -> dict[str, Any]:
        model, world = self.world(request)
        return {"model_id": model, **world.state()}

    def set_control(self, request: dict[str, Any]) -> dict[str, Any]:
        model, world = self.world(request)
        control = request.get("control")
        if not isinstance(control, list) or len(control) != world.controls:
            raise Refused("bad_request", f"`control` must be a list of {world.controls} numbers, one per actuator of {model}; it is {shown(control)}")
        world.set_control([number("control", one) for one in control])
        return {"model_id": model, "control": control}

    def reset(self, request: dict[str, Any]) -> dict[str, Any]:
        model, world = self.world(request)
        world.reset()
        return {"model_id": model, "time": world.time}

    def capture_render(self, request: dict[str, Any]) -> dict[str, Any]:
        import base64
        model, world = self.world(request)
        width = whole("width", request.get("width", 320), MAX_SIDE, "MAX_SIDE")
        height = whole("height", request.get("height", 240), MAX_SIDE, "MAX_SIDE")
        picture = png(width, height, world.render(width, height))
        return {"model_id": model, "width": width, "height": height, "time": world.time, "png": base64.b64encode(picture).decode()}

    def close(self, request: dict[str, Any]) -> dict[str, Any]:
        """Closes one model, or all of them. The process stays, and stays its session's."""
        closed = [self.world(request)[0]] if "model_id" in request else list(self.worlds)
        for model in closed:
            self.forget(model)
        return {"closed": closed}

    def forget(self, model: str) -> None:
        world = self.worlds.pop(model, None)
        if world is not None:
            world.close()

    def world(self, request: dict[str, Any]) -> tuple[str, World]:
        """The model that is meant: the one named, or else the one loaded last."""
        if not self.worlds:
            raise Refused("no_model", "no model is loaded: `load_model` first")
        model = request.get("model_id", next(reversed(self.worlds)))
        if not isinstance(model, str) or model not in self.worlds:
            raise Refused("no_model", f"there is no model {shown(model)}; loaded: {', '.join(self.worlds)}")
        return model, self.worlds[model]


def shown(value: Any) -> str:
    """A value as an error shows it: short, and on one line."""
    if value is None:
        return "missing"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def parse(line: bytes) -> dict[str, Any]:
    def no_number(text: str) -> None:
        raise ValueError(f"{text} is no number of JSON")

    try:
        request = json.loads(line.decode(), parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise Refused("bad_json", f"this line is not JSON in UTF-8 ({error}): send one object per line") from None
    if not isinstance(request, dict):
        raise Refused("bad_request", "a request is a JSON object such as {\"command\": \"ping\"}")
    return request


def identity(request: dict[str, Any]) -> str | int | None:
    value = request.get("id")
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53):
        return value
    if isinstance(value, str) and len(value) <= MAX_NAME:
        return value
    raise Refused("bad_request", f"`id` must be a whole number or a text of at most {MAX_NAME} characters (MAX_NAME)")


def name_of(field: str, value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise Refused("bad_request", f"`{field}` must be 1 to {MAX_NAME} printable ASCII characters without spaces; it is {shown(value)}")
    return value


def whole(field: str, value: Any, most: int, limit: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise Refused("bad_request", f"`{field}` must be a whole number from 1 to {most} ({limit}); it is {shown(value)}")
    return value


def number(field: str, value: Any) -> float:
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise Refused("bad_request", f"`{field}` must hold finite numbers only; one is {shown(value)}")


def check_mjcf(xml: str) -> Element:
    """The model's elements, if its text is one that a viewer takes: bounded, and naming no file of this machine."""
    from xml.etree import ElementTree
    if "<!DOCTYPE" in xml:
        raise Refused("bad_model", "a model has no document type: remove <!DOCTYPE ...>")
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError) as error:
        raise Refused("bad_model", f"the model is not XML ({error})") from None
    if root.tag != "mujoco":
        raise Refused("bad_model", f"the model's root is <{root.tag[:MAX_NAME]}>; MJCF begins with <mujoco>")
    copies = 1
    for at, element in enumerate(root.iter()):
        if at >= MAX_ELEMENTS:
            raise Refused("limit", f"the model has more than {MAX_ELEMENTS} elements (MAX_ELEMENTS)")
        named = next((name for name in element.attrib if name.startswith("file")), None)
        if element.tag == "include" or named:
            raise Refused("bad_model", f"<{element.tag[:MAX_NAME]}> names a file: a viewer reads none, so write the model out in one text")
        for count in re.findall(r"\d+", element.get("count", "")):
            copies *= max(1, int(count[:9]))
        if copies > MAX_BODIES:
            raise Refused("limit", f"the `count`s of the model ask for more than {MAX_BODIES} copies (MAX_BODIES)")
    return root


def check_size(bodies: int, *numbers: int) -> None:
    if bodies > MAX_BODIES:
        raise Refused("limit", f"the model has {bodies} bodies; the limit is {MAX_BODIES} (MAX_BODIES)")
    if max(numbers) > MAX_NUMBERS:
        raise Refused("limit", f"the model has {max(numbers)} positions, velocities or controls; the limit is {MAX_NUMBERS} (MAX_NUMBERS)")


def png(width: int, height: int, rgb: bytes) -> bytes:
    """A PNG file of rows of red, green and blue bytes."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = width * 3
    if len(rgb) != row * height:
        raise ValueError(f"a picture of {width} by {height} has {row * height} bytes, not {len(rgb)}")
    rows = b"".join(b"\0" + rgb[at:at + row] for at in range(0, len(rgb), row))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


class Connection:
    """One client: at most one line's worth of input and one answer wait here."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox = bytearray()
        self.outbox = memoryview(b"")
        self.skipping = False                    # in a line that was too long
        self.ended = False                       # the client sends no more

    def receive(self) -> None:
        data = self.sock.recv(CHUNK)
        self.ended = not data
        if self.skipping:
            _, newline, data = data.partition(b"\n")
            self.skipping = not newline
        self.inbox += data

    def line(self) -> bytes | None:
        """The next whole line, or the sign that one is too long."""
        end = self.inbox.find(b"\n")
        if end > MAX_LINE or (end < 0 and len(self.inbox) > MAX_LINE):
            self.skipping = end < 0
            del self.inbox[:end + 1 or None]
            raise Refused("too_long", f"a line is longer than {MAX_LINE} bytes (MAX_LINE); it was skipped")
        if end < 0:
            if self.ended and self.inbox:
                self.inbox.clear()
                raise Refused("bad_json", "the last line does not end with a newline; it was not performed")
            return None
        line = bytes(self.inbox[:end])
        del self.inbox[:end + 1]
        return line

    def has_work(self) -> bool:
        return bool(self.outbox) or b"\n" in self.inbox or len(self.inbox) > MAX_LINE or (self.ended and bool(self.inbox))

    def advance(self, viewer: Viewer) -> None:
        """Sends what waits, or answers one line; the other connections have their turn in between."""
        if not self.outbox:
            try:
                line = self.line()
            except Refused as error:
                self.outbox = memoryview(viewer.refusal(error))
            else:
                if line is not None and line.strip():
                    self.outbox = memoryview(viewer.answer(line))
        if self.outbox:
            self.outbox = self.outbox[self.sock.send(self.outbox):]


class Server:
    """Serves a viewer's connections until the process is told to end."""

    def __init__(self, viewer: Viewer, listener: socket.socket) -> None:
        self.viewer = viewer
        self.selector = selectors.DefaultSelector()
        self.listener = listener
        self.connections = 0
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        while True:
            for key, events in self.selector.select():
                if key.data is None:
                    self.accept()
                else:
                    self.serve(key.data, events)

    def accept(self) -> None:
        try:
            sock, _ = self.listener.accept()
        except OSError:                          # the client is gone already
            return
        sock.setblocking(False)
        if self.connections >= MAX_CONNECTIONS:
            error = Refused("limit", f"{MAX_CONNECTIONS} connections are open, which is the limit (MAX_CONNECTIONS): close one first")
            try:
                sock.send(self.viewer.refusal(error))
            except OSError:
                pass
            sock.close()
            return
        self.connections += 1
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.selector.register(sock, selectors.EVENT_READ, Connection(sock))

    def serve(self, connection: Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                connection.receive()
            else:
                connection.advance(self.viewer)
        except BlockingIOError:
            return
        except OSError:                          # reset by the client
            return self.drop(connection)
        if connection.has_work():
            self.selector.modify(connection.sock, selectors.EVENT_WRITE, connection)
        elif connection.ended:
            self.drop(connection)
        else:
            self.selector.modify(connection.sock, selectors.EVENT_READ, connection)

    def drop(self, connection: Connection) -> None:
        self.connections -= 1
        self.selector.unregister(connection.sock)
        connection.sock.close()


def main(kind: str, load: Callable[[str], World], warm_up: Callable[[], None] | None = None) -> None:
    """`PROGRAM PORT`: serves a viewer on that port of loopback; port 0 takes a free one."""
    program = os.path.basename(sys.argv[0])
    if len(sys.argv) != 2 or not sys.argv[1].isascii() or not sys.argv[1].isdigit() or int(sys.argv[1][:6]) > 65535:
        sys.exit(f"usage: {program} PORT    (0 to 65535; 0 takes a free one)")
    port = int(sys.argv[1])
    try:
        listener = socket.create_server((HOST, port), backlog=MAX_CONNECTIONS)
    except OSError as error:
        sys.exit(f"{program}: cannot listen on {HOST}:{port}: {error.strerror}; give another port, or 0 for a free one")
    print(f"{program}: listening on {HOST}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    if warm_up is not None:
        warm_up()                                # clients that connect meanwhile wait in the backlog
    try:
        Server(Viewer(kind, load), listener).run()
    except KeyboardInterrupt:
        sys.exit(130)
