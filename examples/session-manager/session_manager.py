#!/usr/bin/env python3
"""A session manager's words, said to Ostler's management API. Python's standard library only.

    session_manager.py [SOCKET]        shows each word once, on the daemon that listens there

SOCKET is the daemon's, `api.sock` in its runtime directory ($XDG_RUNTIME_DIR/ostler); by default $OSTLER_SOCKET, which
Ostler gives the servers it starts. Showing `cleanup_stale` ends every session of that daemon in which no call runs.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
from typing import Any


class SessionManager:
    """get_or_create, get_stats, cleanup_session and cleanup_stale, each one call or two."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get_or_create(self, name: str) -> dict[str, Any]:
        """The session of this name, which begins with its first use."""
        return self._request("POST", "/api/v1/sessions", {"key": name})

    def instance(self, session: dict[str, Any], server: str) -> dict[str, Any]:
        """Its own instance of a server: process id, ports. Started, or taken from the pool, where it has none yet."""
        return self._request("POST", f"/api/v1/sessions/{session['id']}/instances/{server}")

    def get_stats(self) -> dict[str, Any]:
        """How many sessions there are, and of each its client, age, idle time, calls and instances."""
        sessions = self._request("GET", "/api/v1/sessions")
        return {"total": len(sessions), "sessions": sessions}

    def cleanup_session(self, session: dict[str, Any]) -> bool:
        """Ends a session and all that runs for it; False where that is still ending, because a call runs."""
        return self._request("DELETE", f"/api/v1/sessions/{session['id']}") is None

    def cleanup_stale(self, idle_s: float) -> list[str]:
        """Ends those that have been idle for so long. Ostler does so by itself (sessions.idle, sessions.stale); this is sooner."""
        stale = [one for one in self.get_stats()["sessions"] if one["idle_ms"] >= idle_s * 1000 and one["calls"] == 0]
        for session in stale:
            self.cleanup_session(session)
        return [session["id"] for session in stale]

    def _request(self, method: str, target: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        try:
            connection.sock.connect(self.path)
            headers = {"Content-Type": "application/json"}
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        answer = json.loads(text) if text else None
        if response.status >= 400:
            raise RuntimeError(f"{method} {target}: {response.status} {answer['error']}")
        return answer


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("OSTLER_SOCKET", "")
    if not path:
        sys.exit(__doc__)
    manager = SessionManager(path)
    mine, other = manager.get_or_create("mine"), manager.get_or_create("other")
    assert manager.get_or_create("mine")["id"] == mine["id"] != other["id"]
    print("sessions:", manager.get_stats()["total"])
    print("ended:", manager.cleanup_session(mine))
    print("stale:", len(manager.cleanup_stale(idle_s=0)))
    print("sessions:", manager.get_stats()["total"])


if __name__ == "__main__":
    main()
