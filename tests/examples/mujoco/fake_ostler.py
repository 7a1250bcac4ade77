"""Plays the part of Ostler that the MCP server talks to: sessions' viewers over HTTP on a unix socket, as promised."""

from __future__ import annotations

import json
import socketserver
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from support import Program


@dataclass
class Held:
    """A session's lease of a viewer, and the process that it has now."""
    program: Program
    fence: int
    generation: int = 1


class FakeOstler:
    """Starts a viewer for each session that asks; what it does wrong on purpose is set from outside."""

    def __init__(self, folder: Path, program: str) -> None:
        self.path = str(folder / "api.sock")
        self.program = program
        self.lock = threading.Lock()
        self.viewers: dict[str, Held] = {}
        self.fence = 0
        self.blind = 0                           # so many further answers still tell of a viewer that has ended
        self.full = False
        self.asked: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status: int, body: object = None, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                if body is not None:
                    self.wfile.write(json.dumps(body).encode())

            def do_POST(self) -> None:
                with fake.lock:
                    fake.asked.append(f"POST {self.path}")
                    if fake.full:
                        return self.answer(503, {"error": "server viewer: all 5 instances are leased", "hint": "raise pool.max"}, Retry_After="3")
                    self.answer(200, fake.instance(self.path.split("/")[4]))

            def do_DELETE(self) -> None:
                with fake.lock:
                    fake.asked.append(f"DELETE {self.path}")
                    fake.viewers.pop(self.path.split("/")[4]).program.stop()
                    self.answer(204)

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *_: object) -> None:
                pass

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self.server = Server(self.path, Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def instance(self, session: str) -> dict[str, object]:
        held = self.viewers.get(session)
        if held is None:
            self.fence += 1
            held = self.viewers[session] = Held(Program(self.program), self.fence)
        elif held.program.process.poll() is not None:
            if self.blind:
                self.blind -= 1
            else:
                # The lease lasts, with another process.
                held.program.stop()
                held.program, held.generation = Program(self.program), held.generation + 1
        return {"session": session, "server": "viewer", "instance": f"viewer.{held.fence}", "generation": held.generation, "fence": held.fence,
                "pid": held.program.process.pid, "state": "ready", "ports": {"viewer": held.program.port}}

    def named(self, session: str) -> str:
        """The session's viewer, as the MCP server is to name it."""
        held = self.viewers[session]
        return f"viewer.{held.fence}, process {held.generation}"

    def kill(self, session: str) -> None:
        self.viewers[session].program.process.kill()
        self.viewers[session].program.process.wait()

    def move(self, session: str) -> Program:
        """Gives the session another viewer while the one of before lives on; that is the caller's to stop."""
        return self.viewers.pop(session).program

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        for held in self.viewers.values():
            held.program.stop()
