"""Ostler's management API over its unix socket, and a viewer's protocol over TCP: what a session needs to reach its viewer."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

from protocol import HOST, MAX_ANSWER, MAX_LINE, MAX_STEP_S

# Longest wait for an instance: more than `pool.wait` of ostler.toml, which is what ends it.
INSTANCE_WAIT_S = 60.0
# Longest wait for a viewer to be connected to, and to answer: importing MuJoCo and the longest call together.
CONNECT_WAIT_S = 5.0
ANSWER_WAIT_S = MAX_STEP_S + 30.0
MAX_API_ANSWER = 16 * 1024 * 1024


class OstlerError(Exception):
    """Ostler refused or did not answer; `status` is 0 where no answer came."""

    def __init__(self, message: str, status: int = 0, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class ViewerLost(Exception):
    """The viewer's process is not there, or went away before it answered."""


class ViewerError(Exception):
    """The viewer answered with an error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Ostler:
    """The part of the management API that concerns sessions and their instances."""

    def __init__(self, path: str) -> None:
        self.path = path

    def request(self, method: str, target: str, body: Any = None) -> Any:
        connection = UnixConnection(self.path, INSTANCE_WAIT_S)
        what = f"{method} {target}"
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, target, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            text = response.read(MAX_API_ANSWER + 1)
        except (OSError, http.client.HTTPException) as error:
            raise OstlerError(f"{what} on {self.path} failed ({type(error).__name__}: {error}): is `ostler up` running?") from None
        finally:
            connection.close()
        if len(text) > MAX_API_ANSWER:
            raise OstlerError(f"{what}: the answer is longer than {MAX_API_ANSWER} bytes (MAX_API_ANSWER)")
        try:
            answer = json.loads(text) if text else None
        except ValueError:
            answer = text.decode(errors="replace")[:500]
        if not 200 <= response.status < 300:
            raise OstlerError(reason(answer) or f"{what}: {response.status} {response.reason}", response.status, response.getheader("Retry-After"))
        return answer

    def instance(self, session: str, server: str) -> dict[str, Any]:
        """The session's own instance of the server, ready; it is got or made."""
        return self.request("POST", instance_path(session, server))

    def give_back(self, session: str, server: str) -> None:
        """The session has no instance of the server any more, if it had one."""
        try:
            self.request("DELETE", instance_path(session, server))
        except OstlerError as error:
            if error.status != 404:
                raise

    def open_session(self, key: str) -> str:
        """The session of this key, found or begun: by the name that the API has for it."""
        return self.request("POST", "/api/v1/sessions", {"key": key})["id"]

    def instances(self) -> list[dict[str, Any]]:
        """What runs, of all servers."""
        return self.request("GET", "/api/v1/instances")

    def sessions(self) -> list[dict[str, Any]]:
        return self.request("GET", "/api/v1/sessions")

    def session(self, session: str) -> dict[str, Any]:
        return self.request("GET", f"/api/v1/sessions/{quote(session, safe='')}")

    def end_session(self, session: str) -> None:
        self.request("DELETE", f"/api/v1/sessions/{quote(session, safe='')}")


def instance_path(session: str, server: str) -> str:
    return f"/api/v1/sessions/{quote(session, safe='')}/instances/{quote(server, safe='')}"


def reason(answer: Any) -> str | None:
    """The error and the hint of Ostler's error body; a plain text as it is."""
    if isinstance(answer, dict):
        return "; ".join(str(answer[part]) for part in ("error", "hint") if answer.get(part)) or None
    return answer if isinstance(answer, str) else None


def runtime_dir() -> Path:
    """Where a running daemon keeps its socket (`api.sock`) and its address (`endpoint.json`)."""
    if named := os.environ.get("OSTLER_RUNTIME_DIR"):
        return Path(named)
    if xdg := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(xdg, "ostler")
    user = Path("/run/user", str(os.getuid()))
    return user / "ostler" if user.is_dir() else Path(os.environ.get("TMPDIR", "/tmp"), f"ostler-{os.getuid()}")


class ViewerConnection:
    """One connection to a viewer; one request at a time."""

    def __init__(self, port: int, session: str | None = None) -> None:
        self.session = session
        try:
            self.sock = socket.create_connection((HOST, port), CONNECT_WAIT_S)
        except OSError as error:
            raise ViewerLost(f"no viewer answers on {HOST}:{port} ({error})") from None
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.settimeout(ANSWER_WAIT_S)
        self.answers = self.sock.makefile("rb")

    def call(self, command: str, **fields: Any) -> dict[str, Any]:
        """The answer's fields; `ViewerError` if it is an error, `ViewerLost` if none came."""
        request = {"command": command} | ({"session_id": self.session} if self.session else {}) | fields
        line = json.dumps(request, separators=(",", ":")).encode() + b"\n"
        if len(line) > MAX_LINE:
            raise ViewerError("too_long", f"{command} takes {len(line)} bytes; a viewer reads at most {MAX_LINE} (MAX_LINE)")
        try:
            self.sock.sendall(line)
            text = self.answers.readline(MAX_ANSWER + 1)
        except OSError as error:
            raise ViewerLost(f"the viewer did not answer {command} ({type(error).__name__}: {error})") from None
        if not text.endswith(b"\n"):
            raise ViewerLost(f"the viewer went away before it answered {command}" if len(text) <= MAX_ANSWER
                             else f"the viewer's answer is longer than {MAX_ANSWER} bytes (MAX_ANSWER)")
        answer = json.loads(text)
        if not answer["ok"]:
            raise ViewerError(answer["error"]["code"], answer["error"]["message"])
        return answer

    def close(self) -> None:
        self.answers.close()
        self.sock.close()
