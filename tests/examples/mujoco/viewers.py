"""The protocol, from outside: the same tests for the viewer and for the mock."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import protocol
from ostler_client import ViewerConnection, ViewerError
from harness import Count, Picture, expect, holds, memory, same, until
from support import EXAMPLE, START_S, STOP_S, Program, arm

ANSWER_S = 30.0
# The mock has to be there 1,000 times at once.
MOCK_MEMORY = 12 * 2**20

# Lines that are no request, and the code of the error.
BAD_LINES = [
    (b"{", "bad_json"), (b"hello", "bad_json"), (b"\xff\xfe", "bad_json"), (b'{"command":"ping","id":NaN}', "bad_json"), (b"[" * 100_000, "bad_json"),
    (b"1" * 10_000, "bad_json"), (b"[]", "bad_request"), (b"null", "bad_request"), (b"{}", "bad_request"),
    (b'{"command":"dance"}', "bad_request"), (b'{"command":["ping"]}', "bad_request"), (b'{"command":"ping","id":{}}', "bad_request"),
    (b'{"command":"ping","size":1}', "bad_request"), (b'{"command":"ping","session_id":7}', "bad_request"),
    (b'{"command":"ping","session_id":""}', "bad_request"), (b'{"command":"ping","session_id":"a b"}', "bad_request"),
    (b'{"command":"load_model"}', "bad_request"), (b'{"command":"load_model","xml":5}', "bad_request"),
    (b'{"command":"step_simulation","steps":0}', "bad_request"), (b'{"command":"step_simulation","steps":10001}', "bad_request"),
    (b'{"command":"step_simulation","steps":true}', "bad_request"), (b'{"command":"step_simulation","steps":1.5}', "bad_request"),
    (b'{"command":"get_state","model_id":"other"}', "no_model"), (b'{"command":"get_state","model_id":[1]}', "no_model"),
    (b'{"command":"set_control","control":[1]}', "bad_request"), (b'{"command":"set_control","control":["1","2"]}', "bad_request"),
    (b'{"command":"set_control","control":[1e999,0]}', "bad_request"), (b'{"command":"set_control","control":[1%s,0]}' % (b"0" * 400), "bad_request"),
    (b'{"command":"capture_render","width":1025}', "bad_request"), (b'{"command":"capture_render","height":-1}', "bad_request"),
]
BAD_MODELS = [
    ("", "not XML"), ("<mujoco>", "not XML"), ("<robot/>", "<mujoco>"), ("<!DOCTYPE a><mujoco/>", "DOCTYPE"),
    ('<mujoco><include file="/etc/passwd"/></mujoco>', "names a file"),
    ('<mujoco><asset><mesh name="m" file="/etc/passwd"/></asset></mujoco>', "names a file"),
    ('<mujoco><worldbody><replicate count="1000000"><geom size="1"/></replicate></worldbody></mujoco>', "MAX_BODIES"),
    ('<mujoco><worldbody><replicate count="100"><replicate count="100"><geom size="1"/></replicate></replicate></worldbody></mujoco>', "MAX_BODIES"),
    ("<mujoco><worldbody>" + '<geom size="1"/>' * (protocol.MAX_ELEMENTS + 1) + "</worldbody></mujoco>", "MAX_ELEMENTS"),
    ('<mujoco><worldbody><body><joint type="elbow"/><geom size="1"/></body></worldbody></mujoco>', "elbow"),
]


class Raw:
    """A connection on which anything can be sent."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), ANSWER_S)
        self.file = self.sock.makefile("rb")

    def ask(self, line: bytes) -> dict:
        self.sock.sendall(line + b"\n")
        return self.read()

    def read(self) -> dict:
        return json.loads(self.file.readline())

    def close(self) -> None:
        self.file.close()
        self.sock.close()


def error_of(work: Callable[[], object]) -> ViewerError:
    try:
        seen = work()
    except ViewerError as error:
        return error
    raise AssertionError(f"no error, but {seen!r}")


def one(name: str) -> None:
    kind = "mock" if name.startswith("mock") else "real"

    def check(what: str, work: Callable[[], object]) -> None:
        Count.check(f"{kind}: {what}", work)

    with Program(name) as program:
        calls = ViewerConnection(program.port)

        def call(command: str, **fields: object) -> dict:
            return calls.call(command, **fields)

        def render(**fields: object) -> Picture:
            return Picture.read(base64.b64decode(call("capture_render", **fields)["png"]))

        def starts() -> str:
            same(call("ping")["viewer"], "mock" if kind == "mock" else "mujoco")
            same(call("ping")["session_id"], None, "session of an unbound process")
            held = memory([program.process.pid])
            expect(kind != "mock" or held <= MOCK_MEMORY, f"it holds {held} bytes, more than {MOCK_MEMORY}")
            return f"listens after {program.took:.2f} s, {held / 2**20:.1f} MiB"

        def loads() -> None:
            holds(str(error_of(lambda: call("get_state"))), "load_model")
            seen = call("load_model", xml=arm(2))
            same({key: seen[key] for key in ("model_id", "bodies", "positions", "velocities", "controls", "timestep")},
                 {"model_id": "model", "bodies": 3, "positions": 2, "velocities": 2, "controls": 2, "timestep": 0.002})

        def steps() -> None:
            call("reset")
            first = call("get_state")
            same((first["time"], len(first["qpos"]), [body["name"] for body in first["bodies"]]), (0.0, 2, ["world", "link0", "link1"]))
            same(round(call("step_simulation", steps=120)["time"], 9), 0.24, "time")
            later = call("get_state")
            if later["qpos"] == first["qpos"] or later["bodies"] == first["bodies"]:
                raise AssertionError("nothing has moved")
            call("reset")
            same(call("get_state"), first, "state after reset")
            call("step_simulation", steps=120)
            same(call("get_state"), later, "state after the same steps again")

        def controls() -> None:
            ends = []
            for push in ([0.0, 0.0], [0.5, -0.5]):
                call("reset")
                call("set_control", control=push)
                same(call("get_state")["control"], push)
                call("step_simulation", steps=50)
                ends.append(call("get_state")["qpos"])
            if ends[0] == ends[1]:
                raise AssertionError("a control has no effect")
            call("reset")
            same(call("get_state")["control"], [0.0, 0.0], "controls after reset")

        def pictures() -> str:
            call("reset")
            before = render()
            same((before.width, before.height), (320, 240))
            expect(render() == before, "two pictures of the same state differ")
            call("step_simulation", steps=200)
            expect(render() != before, "the picture is the same after 200 steps")
            expect(len(before.colours) > 1, "the picture is all one colour")
            for width, height in ((1, 1), (33, 7), (protocol.MAX_SIDE, protocol.MAX_SIDE)):
                sized = render(width=width, height=height)
                same((sized.width, sized.height), (width, height))
            return f"{len(before.colours)} colours"

        def models() -> None:
            alone = render(width=321)
            call("load_model", xml=arm(3), model_id="other")
            same((len(call("get_state")["qpos"]), len(call("get_state", model_id="model")["qpos"])), (3, 2))
            before = call("get_state", model_id="model")
            call("step_simulation", steps=10, model_id="other")
            same(call("get_state", model_id="model"), before, "the other model's state")
            render()                             # of another size, so that the next one needs a renderer of its own
            expect(render(width=321) != alone, "two models look alike")
            expect(render(width=321, model_id="model") == alone, "a picture is another after one of another model")
            for at in range(protocol.MAX_MODELS - 2):
                call("load_model", xml=arm(1), model_id=f"m{at}")
            holds(str(error_of(lambda: call("load_model", xml=arm(1), model_id="more"))), "MAX_MODELS")
            call("load_model", xml=arm(1), model_id="m0")
            for at in range(protocol.MAX_MODELS - 2):
                same(call("close", model_id=f"m{at}")["closed"], [f"m{at}"])
            call("close", model_id="other")
            same(call("ping")["models"], ["model"])

        def bad_lines() -> str:
            raw = Raw(program.port)
            for line, code in BAD_LINES:
                seen = raw.ask(line)
                same((seen["ok"], seen.get("error", {}).get("code")), (False, code), line[:60].decode(errors="replace"))
                same(raw.ask(b'{"command":"ping","id":7}')["id"], 7, f"ping after {line[:60]!r}")
            raw.close()
            return f"{len(BAD_LINES)} lines"

        def long_lines() -> None:
            raw = Raw(program.port)
            ping = b'{"command":"ping"}'
            same(raw.ask(ping.ljust(protocol.MAX_LINE))["ok"], True, "a line of just MAX_LINE")
            for length in (protocol.MAX_LINE + 1, 5 * protocol.MAX_LINE):
                seen = raw.ask(ping.ljust(length))
                same(seen["error"]["code"], "too_long")
                holds(seen["error"]["message"], "MAX_LINE")
                same(raw.ask(ping)["ok"], True, "the next line")
            raw.sock.sendall(b'{"command":"ping"}')
            raw.sock.shutdown(socket.SHUT_WR)
            holds(raw.read()["error"]["message"], "newline")
            same(raw.file.readline(), b"", "end of the connection")
            raw.close()

        def bad_models() -> str:
            for xml, part in BAD_MODELS:
                holds(str(error_of(lambda: call("load_model", xml=xml))), part)
            same(call("ping")["models"], ["model"], "models")
            return f"{len(BAD_MODELS)} models"

        def together() -> None:
            """As many connections as may be, their lines interleaved; one more is refused until one goes."""
            some = [Raw(program.port) for _ in range(protocol.MAX_CONNECTIONS - 1)]
            for turn in range(3):
                for at, raw in enumerate(some):
                    raw.sock.sendall(b"".join(b'{"command":"ping","id":%d}\n' % (1000 * turn + 10 * at + n) for n in range(5)))
                for at, raw in enumerate(some):
                    same([raw.read()["id"] for _ in range(5)], [1000 * turn + 10 * at + n for n in range(5)], "answers in order")
            one_more = Raw(program.port)
            holds(one_more.read()["error"]["message"], "MAX_CONNECTIONS")
            one_more.close()
            for raw in some:
                raw.close()

            def room() -> bool:
                raw = Raw(program.port)
                try:
                    return raw.ask(b'{"command":"ping"}')["ok"]
                except (OSError, ValueError):
                    return False
                finally:
                    raw.close()

            until("room for a connection", room)

        def deaf() -> None:
            """A client that asks for pictures and reads none holds up no other."""
            raw = Raw(program.port)
            raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.sock.settimeout(0.5)
            try:
                for _ in range(60):
                    raw.sock.sendall(b'{"command":"get_state"}\n' * 2000)
            except TimeoutError:
                pass
            same(call("ping")["ok"], True)
            raw.close()
            same(call("ping")["ok"], True, "ping after it has gone")

        def binding() -> None:
            first, second = ViewerConnection(program.port, "s1"), ViewerConnection(program.port, "s2")
            same(first.call("ping")["session_id"], "s1")
            error = error_of(lambda: second.call("get_state"))
            same(error.code, "other_session")
            holds(str(error), "s1", "s2")
            same(error_of(lambda: second.call("load_model", xml=arm(1))).code, "other_session")
            same(call("ping")["session_id"], "s1", "session in the answer to a request without one")
            same(call("ping")["models"], ["model"], "models")
            first.close()
            second.close()

        def closes() -> None:
            same(call("close")["closed"], ["model"])
            same(error_of(lambda: call("step_simulation")).code, "no_model")
            other = ViewerConnection(program.port, "s2")
            same(error_of(lambda: other.call("ping")).code, "other_session", "still bound")
            other.close()

        def refused_ports() -> None:
            for argument, part in ((str(program.port), "in use"), ("70000", "usage"), ("x", "usage")):
                ended = subprocess.run([sys.executable, "-B", EXAMPLE / name, argument], capture_output=True, text=True, timeout=START_S)
                same(ended.returncode, 1, "exit status")
                holds(ended.stderr, part)

        def ends() -> None:
            os.kill(program.process.pid, signal.SIGTERM)
            same(program.process.wait(STOP_S), -signal.SIGTERM, "status")

        for what, work in (
            ("starts", starts), ("loads a model", loads), ("steps, resets and steps alike", steps), ("controls", controls),
            ("pictures", pictures), ("several models", models), ("lines that are no request", bad_lines), ("lines without end", long_lines),
            ("models that it does not take", bad_models), ("connections at once", together), ("a client that does not read", deaf),
            ("belongs to one session", binding), ("closes", closes), ("ports it cannot have", refused_ports), ("ends when told", ends),
        ):
            check(what, work)
        calls.close()


def test() -> None:
    for name in ("mock_viewer.py", "viewer.py"):
        one(name)
